"""What the documentation says exists, exists."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import phloem
from phloem.launch.cli import parser
from viva.cli import COMMANDS as VIVA_COMMANDS
from viva.cli import parser as viva_parser

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "phloem"
VIVA = ROOT / "src" / "viva"
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])
FOLDER_READMES = sorted([*SOURCE.rglob("README.md"), *VIVA.rglob("README.md")])

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"[\w./-]+/[\w.-]+\.(?:py|cpp|h|md|phloem)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"^(?: {4})?phloem (\w+)", re.MULTILINE)
NUMBERS = re.compile(r"<!-- numbers:begin -->.*?<!-- numbers:end -->", re.DOTALL)  # commands of bench/
NAME = re.compile(r"(?:[A-Z]\w*\.)?(\w+)(?:\(\))?")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def _code_words(path: Path) -> Iterator[str]:
    return (match[1] for match in CODE.finditer(_prose(path)))


@pytest.fixture(scope="module")
def defined_names() -> set[str]:
    """Every function, method, class and field in src, by its last name."""
    names: set[str] = set()
    for path in [*SOURCE.rglob("*.py"), *VIVA.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(name)
    return names


@pytest.mark.parametrize("path", [*PAGES, *FOLDER_READMES], ids=_name)
def test_files_that_are_named_exist(path: Path) -> None:
    """Red when a file is moved or deleted and a page still names it. Paths count from the page's folder, from
    src/phloem, src/viva, src or the root of the repository; names like `path/to/model.gguf` are not source files."""
    places = (path.parent, SOURCE, VIVA, SOURCE.parent, ROOT)
    named = [word for word in _code_words(path) if FILE.fullmatch(word)]
    missing = [word for word in named if not any((place / word).exists() for place in places)]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_resolve(path: Path) -> None:
    """Red when a page links to a file that is not there, or shows a picture that is not."""
    targets = [match[1].partition("#")[0] for match in LINK.finditer(_prose(path))]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_functions_that_are_named_exist(path: Path, defined_names: set[str]) -> None:
    """Red when a function or method is renamed and a page still says `name()` or `Class.name`."""
    words = [word for word in _code_words(path) if word.endswith("()") or re.fullmatch(r"[A-Z]\w*\.\w+", word)]
    named = {word: match[1] for word in words if (match := NAME.fullmatch(word))}
    assert {word for word, name in named.items() if name not in defined_names} == set()


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_python_examples_use_what_is_exported(path: Path) -> None:
    """Red when an example is no Python, or imports from `phloem` what is not public."""
    examples = [match[2] for match in FENCE.finditer(path.read_text(encoding="utf-8")) if match[1] == "python"]
    nodes = [node for example in examples for node in ast.walk(ast.parse(example))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "phloem"]
    wanted = {alias.name for node in imports for alias in node.names}
    assert wanted <= set(phloem.__all__)


def test_the_front_page_has_its_examples() -> None:
    """Red when the two front pages lose an example, or differ in code: one is the other's translation."""
    strip = re.compile(r"\s*#.*")
    english, chinese = (
        [strip.sub("", match[2]) for match in FENCE.finditer((ROOT / name).read_text(encoding="utf-8"))]
        for name in ("README.md", "README.zh.md")
    )
    assert len(english) >= 5
    assert english == chinese


def test_the_words_of_the_command_line_exist() -> None:
    """Red when an option or a command is renamed and a page still uses it."""
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    viva = next(
        action for action in viva_parser(VIVA_COMMANDS)._actions if isinstance(action, argparse._SubParsersAction)
    )
    every = [*commands.values(), *viva.choices.values()]
    known = {flag for command in every for action in command._actions for flag in action.option_strings}
    texts = {_name(path): NUMBERS.sub("", path.read_text(encoding="utf-8")) for path in PAGES}
    flags = {(name, flag) for name, text in texts.items() for flag in FLAG.findall(text)}
    used = {(name, command) for name, text in texts.items() for command in COMMAND.findall(text)}
    assert {(name, flag) for name, flag in flags if flag not in known} == set()
    assert {(name, command) for name, command in used if command not in commands} == set()
    assert len(used) > len(commands), "the pages teach the command line, or this test does not find where"
