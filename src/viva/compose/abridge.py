"""A function of the source to pseudo-code: statements are left out, none is invented, none changes its place."""

from __future__ import annotations

import ast
import copy

from viva.index.calls import Function
from viva.index.facts import Symbol

MAX_LINES = 38
TELLS = ("log", "logger", "logging", "print", "warnings")  # calls that do nothing
LOOP_NOTE, FAILURE_NOTE = "# 循环：每次迭代都付出下面的调用", "# 失败路径"


def abridged(symbol: Symbol, node: Function) -> str | None:
    """Python text under a `# file:` comment, or None if it cannot be made short enough."""
    tree = copy.deepcopy(node)
    tree.decorator_list, tree.returns = [], None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    for drop in (_is_said_only, _has_no_call, _is_nested_call):
        _prune(tree, drop, depth=0)
        text = ast.unparse(ast.fix_missing_locations(tree))
        if text.count("\n") < MAX_LINES:
            return _framed(symbol, text)
    return None


def _prune(node: ast.AST, drop: object, *, depth: int) -> None:
    assert callable(drop)
    for name in ("body", "orelse", "finalbody"):
        block = node.__dict__.get(name)
        if not isinstance(block, list):
            continue
        kept = [statement for statement in block if not drop(statement, depth)]
        for statement in kept:
            _prune(statement, drop, depth=depth + 1)
        node.__dict__[name] = kept or ([ast.Pass()] if name == "body" else [])
    for handler in node.__dict__.get("handlers", ()):
        _prune(handler, drop, depth=depth + 1)


def _is_said_only(statement: ast.stmt, depth: int) -> bool:
    """Docstrings, imports, logging."""
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
        return True
    if not isinstance(statement, ast.Expr):
        return False
    if isinstance(statement.value, ast.Constant):
        return True
    head = ast.unparse(statement.value).partition("(")[0]
    return any(part in TELLS or part.startswith("log_") for part in head.split("."))


def _has_no_call(statement: ast.stmt, depth: int) -> bool:
    leaves = isinstance(statement, ast.Return | ast.Raise | ast.Break | ast.Continue)
    return not leaves and not any(isinstance(below, ast.Call) for below in ast.walk(statement))


def _is_nested_call(statement: ast.stmt, depth: int) -> bool:
    return depth > 1 and isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign)


def _framed(symbol: Symbol, text: str) -> str:
    head, *body = text.split("\n")
    lines = [
        head,
        f"    # 摘自第 {symbol.line}-{symbol.end} 行：省去日志与细节，调用的先后与源码一致",
        *map(_noted, body),
    ]
    if symbol.owner:
        lines = [f"class {symbol.owner}:", *(f"    {line}" for line in lines)]
    return "\n".join([f"# file: {symbol.file}", *lines])


def _noted(line: str) -> str:
    code = line.strip()
    if code.startswith(("for ", "while ")) and code.endswith(":"):
        return f"{line}  {LOOP_NOTE}"
    return f"{line}  {FAILURE_NOTE}" if code.startswith("except") and code.endswith(":") else line
