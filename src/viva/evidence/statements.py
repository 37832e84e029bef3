"""Facts in single statements: invariants, failure paths, environment variables, command-line options."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from viva.evidence.fact import Fact, Span
from viva.index.calls import dotted
from viva.index.extract import parse
from viva.index.resolve import Resolver
from viva.index.trees import identifiers

MAX_TITLE_CHARS = 160
ONLY_TELLS = ("logger.", "logging.", "print", "str", "repr")  # calls that do nothing about an error
ENVIRONMENT_READS = ("os.environ.get", "os.getenv", "environ.get", "getenv", "get_bool_env_var", "get_int_env_var")


def invariants(file: str, node: ast.AST, around: str) -> Fact | None:
    """An assert on more than one name: what must hold between things."""
    if not isinstance(node, ast.Assert):
        return None
    names = sorted(identifiers(node.test))
    if len(names) < 2 or "isinstance" in names:
        return None
    score = len(names) + 2 * isinstance(node.test, ast.Compare)
    return _fact("invariant", file, node, around, f"asserts {_text(node.test)}", names, score)


def failures(file: str, node: ast.AST, around: str) -> Fact | None:
    """A raise with a message, or a handler that does something about an error."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        return _fact("failure", file, node, around, f"raises {_text(node.exc)}", sorted(identifiers(node.exc)), 1)
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        calls = [dotted(item.func) for item in ast.walk(node) if isinstance(item, ast.Call)]
        doing = [call for call in dict.fromkeys(calls) if not call.startswith(ONLY_TELLS)]
        if doing:
            title = f"on {_text(node.type)}: {', '.join(doing)[:MAX_TITLE_CHARS]}"
            return _fact("failure", file, node, around, title, sorted(identifiers(node)), 2 + len(doing))
    return None


def options(file: str, node: ast.AST, around: str) -> Fact | None:
    """An environment variable that is read, or a command-line option that is declared."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    called, first = dotted(node.func), node.args[0].value
    if not isinstance(first, str):
        return None
    if called.endswith(ENVIRONMENT_READS):
        rest = ", ".join(ast.unparse(item) for item in node.args[1:]) or "none"
        return _fact("option", file, node, around, f"environment {first} (default {rest})", [first], 1)
    if called.endswith(".add_argument") and first.startswith("--"):
        default = next((ast.unparse(item.value) for item in node.keywords if item.arg == "default"), "none")
        return _fact("option", file, node, around, f"flag {first} (default {default})", [first], 1)
    return None


def _text(node: ast.expr) -> str:
    return ast.unparse(node)[:MAX_TITLE_CHARS]


STATEMENTS: dict[str, Callable[[str, ast.AST, str], Fact | None]] = {
    "invariant": invariants,
    "failure": failures,
    "option": options,
}


MUST_CONTAIN = {
    "invariant": ("assert ",),
    "failure": ("raise ", "except "),
    "option": ("environ", "getenv", "add_argument", "env_var"),
}


def statement_facts(resolver: Resolver, topic: str, files: Sequence[str]) -> Iterator[Fact]:
    """The facts of one topic in some files."""
    miner = STATEMENTS[topic]
    for path in files:
        text = resolver.store.text(path)
        if not any(word in text for word in MUST_CONTAIN[topic]):
            continue
        try:
            tree = parse(text)
        except (SyntaxError, ValueError):
            continue  # reported when the source was indexed
        stack: list[tuple[ast.AST, str]] = [(tree, "")]
        while stack:
            node, around = stack.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                around = f"{around}.{node.name}".lstrip(".")
            found = miner(path, node, around)
            if found is not None:
                yield found
            stack.extend((child, around) for child in reversed(list(ast.iter_child_nodes(node))))


def _fact(topic: str, file: str, node: ast.stmt | ast.expr | ast.ExceptHandler, around: str, title: str,
          names: Sequence[str], score: float) -> Fact:  # fmt: skip
    span = Span(file, node.lineno, node.end_lineno or node.lineno)
    title = " ".join(title.split())
    return Fact(topic, around, f"{around or 'the module'} {title}", (span,), (*around.split("."), *names), (), score)
