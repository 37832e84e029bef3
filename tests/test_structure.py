"""Ratchets: numbers that may only improve, and the rules of the tree that no linter checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem.core.config import Config
from phloem.launch.options import GROUPS

SOURCE = Path(__file__).parent.parent / "src"
FILES = sorted(path for path in SOURCE.rglob("*.py") if ".egg-info" not in str(path))

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CLASS_LINES = 400, 60, 300

BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "managers", "manager", "misc"}

TORCH_FREE = ("phloem", "phloem.core", "phloem.runtime.sched", "phloem.runtime.loop", "phloem.runtime.mailbox",
              "phloem.runtime.grammar", "phloem.memory.ledger", "phloem.serve", "phloem.lang",
              "phloem.launch.cli", "phloem.launch.serve")  # fmt: skip

OPTIONS = (
    "model served_model_name dtype quantize kv_cache_dtype deterministic "
    "chat_template tool_format reasoning_format max_model_len seed "
    "device threads memory_gb page_size "
    "tp ep pp dp router_policy "
    "nodes node_rank meet role kv_port cluster ray_address min_replicas max_replicas "
    "policy max_running max_step_tokens max_queue overlap prefix_cache "
    "host port api_key max_body_mb program_functions drain_timeout_s log_level max_restarts record"
)


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path.relative_to(SOURCE), ast.parse(path.read_text(encoding="utf-8"))


def _too_long(kinds: type[ast.AST] | tuple[type[ast.AST], ...], limit: int) -> list[str]:
    found = []
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > limit:
                    found.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    return found


def test_no_file_is_longer_than_a_few_screens() -> None:
    """Red when a file grows past 400 lines: split it by what it owns."""
    lengths = {path.relative_to(SOURCE): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    """Red when a function grows past 60 lines."""
    assert _too_long((ast.FunctionDef, ast.AsyncFunctionDef), MAX_FUNCTION_LINES) == []


def test_no_class_is_longer_than_300_lines() -> None:
    """Red when a class grows past 300 lines."""
    assert _too_long(ast.ClassDef, MAX_CLASS_LINES) == []


def test_nothing_is_global() -> None:
    """Red when a function rebinds a module's name."""
    found = [
        f"{path}:{node.lineno}" for path, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.Global)
    ]
    assert found == []


def test_getattr_is_not_used_defensively() -> None:
    """Red when code outside serve/ asks an object whether it has an attribute instead of knowing its type."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in _trees()
        if path.parts[:2] != ("phloem", "serve")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if (node.func.id == "getattr" and len(node.args) == 3) or node.func.id == "hasattr"
    ]
    assert found == []


def test_the_environment_is_read_in_launch_only() -> None:
    """Red when another package reads os.environ: configuration is resolved once, in core.resolve, by launch. The build
    script of the native library runs at installation and follows CXX; viva asks once where its cache is."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in _trees()
        if path.parts[:2] not in {("phloem", "launch"), ("viva", "place.py"), ("viva", "practice")}
        if path.parts[-2:] != ("cpu", "build.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert found == []


def test_config_is_named_in_core_and_launch_only() -> None:
    """Red when another package imports Config: constructors receive plain values."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in _trees()
        if path.parts[:2] not in {("phloem", "core"), ("phloem", "launch"), ("phloem", "__init__.py")}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "phloem.core.config"
    ]
    assert found == []


def test_package_files_hold_a_docstring_only() -> None:
    """Red when an __init__.py re-exports: the import linter cannot see through it. `phloem` itself has __getattr__."""
    found = [
        str(path)
        for path, tree in _trees()
        if path.name == "__init__.py" and path.parts != ("phloem", "__init__.py")
        if len(tree.body) != 1 or ast.get_docstring(tree) is None
    ]
    assert found == []


def test_no_module_is_a_drawer() -> None:
    """Red when a module is named after nothing."""
    assert [str(path) for path, _ in _trees() if BANNED_NAMES & {part.removesuffix(".py") for part in path.parts}] == []


def test_every_module_has_a_docstring() -> None:
    """Red when a module does not say what it is."""
    assert [str(path) for path, tree in _trees() if ast.get_docstring(tree) is None] == []


def test_the_option_list_is_pinned() -> None:
    """Red when an option appears or goes: decide that it is really needed, and put it into its group of --help."""
    assert tuple(OPTIONS.split()) == Config.__struct_fields__
    assert tuple(name for names in GROUPS.values() for name in names) == Config.__struct_fields__


@pytest.mark.parametrize("package", TORCH_FREE)
def test_deciding_and_serving_do_not_load_torch(package: str) -> None:
    """Red when something under `package` imports torch, through whatever re-export."""
    folder = SOURCE.joinpath(*package.split("."))
    if not folder.exists() and not folder.with_suffix(".py").exists():
        pytest.skip(f"{package} does not exist yet")
    names = [package]
    if folder.is_dir() and package != "phloem":
        names = sorted(_module_names(folder))
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _module_names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        yield ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
