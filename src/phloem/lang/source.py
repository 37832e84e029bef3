"""The author's source, rewritten before it is traced, where Python alone would decide something without asking us.

f-strings become calls (a plain f-string would turn a value into text for good), and `is`, `isinstance`, `type` and
`match` ask first whether they look at a value that is known only at run time. Inside `with s.If / Else / While / Map`,
Python runs every block once, so what would be wrong there is refused: rebinding a name that is used outside, `return`,
`break`, `continue`. The mutation of Python objects is the author's own business: it happens once, while tracing.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

from phloem.lang.where import Where, trace_error

HELPER = "__phloem__"
BLOCKS = frozenset({"If", "Else", "While", "Map"})
LOOKS_AT_TYPES = frozenset({"isinstance", "issubclass", "type", "id", "callable", "vars", "dir", "hasattr", "getattr"})

AnyFunction = Callable[..., Any]


def rewritten(function: AnyFunction, helper: object) -> AnyFunction:
    """`function` with its source rewritten; `helper` is what the rewritten source calls. TraceError for what is
    refused, and when there is no source."""
    if not isinstance(function, types.FunctionType):
        raise trace_error(f"{function!r} is not a Python function")
    try:
        lines, first_line = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise trace_error(f"the source of {function.__name__!r} cannot be read; define it in a file") from error
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first_line - 1)
    definition = tree.body[0]
    file = function.__code__.co_filename
    if not isinstance(definition, ast.FunctionDef):
        raise trace_error("only a plain function can be traced: no lambda, no async def", at=Where(file, first_line))
    _refuse(definition, file)
    definition.decorator_list = []
    changed = ast.fix_missing_locations(_Rewriter(file).visit(definition))
    return _recompiled(changed, function, helper)


def _recompiled(definition: ast.FunctionDef, function: types.FunctionType, helper: object) -> AnyFunction:
    """Compiled inside a function that has the same free variables, so that closures stay closures."""
    free = [*function.__code__.co_freevars, HELPER]
    factory = ast.FunctionDef(
        name="factory",
        args=ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, []),
        body=[definition, ast.Return(ast.Name(definition.name, ast.Load()))],
        decorator_list=[],
    )
    module = ast.fix_missing_locations(ast.copy_location(ast.Module([factory], []), definition))
    for node in (factory, factory.body[-1]):
        ast.copy_location(node, definition)
    outer = compile(ast.fix_missing_locations(module), function.__code__.co_filename, "exec")
    code = _code_in(_code_in(outer, "factory"), definition.name)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    cells[HELPER] = types.CellType(helper)
    closure = tuple(cells[name] for name in code.co_freevars)
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _code_in(code: types.CodeType, name: str) -> types.CodeType:
    return next(each for each in code.co_consts if isinstance(each, types.CodeType) and each.co_name == name)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, file: str) -> None:
        self._file = file

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """f"a{x!r:>5}" -> helper.text("a", (x, 114, ">5"))"""
        parts: list[ast.expr] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = ast.Constant("") if part.format_spec is None else part.format_spec
                entry = [part.value, ast.Constant(part.conversion), spec]
                parts.append(ast.Tuple([self.visit(each) for each in entry], ast.Load()))
            else:
                parts.append(part)
        return ast.copy_location(_call("text", parts), node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """`a is b` -> `helper.known(a, "is") is helper.known(b, "is")`"""
        self.generic_visit(node)
        if any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            node.left = _known(node.left, "is")
            node.comparators = [_known(each, "is") for each in node.comparators]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`isinstance(x, T)` -> `isinstance(helper.known(x, "isinstance"), T)`"""
        if not (isinstance(node.func, ast.Name) and node.func.id in LOOKS_AT_TYPES):
            return self.generic_visit(node)
        node.args = [_known(self.visit(each), node.func.id) for each in node.args]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """What looks at types may only be called, so that its calls can be seen."""
        if isinstance(node.ctx, ast.Load) and node.id in LOOKS_AT_TYPES:
            raise trace_error(f"`{node.id}` under another name; call it as it is", at=_at(node, self._file))
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`x.__class__` -> `helper.known(x, "__class__").__class__`"""
        self.generic_visit(node)
        if node.attr.startswith("__") and not node.attr.startswith(HELPER):
            node.value = _known(node.value, node.attr)
        return node

    def visit_Match(self, node: ast.Match) -> ast.AST:
        """`match x:` -> `match helper.known(x, "match"):`"""
        self.generic_visit(node)
        node.subject = _known(node.subject, "match")
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        """Inside a block, `x += ...` must be meant for a state."""
        if _is_block(node):
            node.body = [each for statement in node.body for each in _guarded(statement)]
        self.generic_visit(node)
        return node


def _guarded(statement: ast.stmt) -> Iterator[ast.stmt]:
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        name = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement)
        yield ast.copy_location(ast.Expr(_call("state", [name])), statement)
    yield statement


def _call(name: str, args: list[ast.expr]) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name(HELPER, ast.Load()), name, ast.Load()), args, [])


def _known(value: ast.expr, what: str) -> ast.expr:
    return ast.copy_location(_call("known", [value, ast.Constant(what)]), value)


# -- what is refused


def _refuse(definition: ast.FunctionDef, file: str) -> None:
    for node in ast.walk(definition):
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await | ast.AsyncFor | ast.AsyncWith):
            raise trace_error("a program cannot yield or await; use s.fork for what runs at once", at=_at(node, file))
        if isinstance(node, ast.Try | ast.TryStar):
            raise trace_error(
                "`try` would hide what cannot be traced; do it in a registered function", at=_at(node, file)
            )
        if isinstance(node, ast.With) and _is_block(node):
            _refuse_in_block(node, definition, file)


def _refuse_in_block(block: ast.With, definition: ast.FunctionDef, file: str) -> None:
    kind = _kind(block)
    for node in _walk_here(block.body, inside_loop=False):
        word = type(node).__name__.lower()
        raise trace_error(
            f"`{word}` inside `with s.{kind}`: Python would follow it whichever way the run goes; set a variable and "
            "use If around what comes after",
            at=_at(node, file),
        )
    inside = {id(node) for node in ast.walk(block)}
    for node, name in _bindings(block):
        for other in ast.walk(definition):
            is_used = isinstance(other, ast.Name) and other.id == name and id(other) not in inside
            if is_used and not _is_own(other, name, block, definition):
                raise trace_error(
                    f"{name!r} is set inside `with s.{kind}`, but Python sets it whichever way the run goes; write "
                    f's["{name}"] = ... there and read s["{name}"]',
                    at=_at(node, file),
                )


def _walk_here(body: list[ast.stmt], *, inside_loop: bool) -> Iterator[ast.AST]:
    """Statements that leave a block: `return` anywhere in it, `break` and `continue` of a loop around it."""
    for statement in body:
        match statement:
            case ast.Return():
                yield statement
            case ast.Break() | ast.Continue() if not inside_loop:
                yield statement
            case ast.FunctionDef() | ast.ClassDef():
                continue
            case _:
                for field in ("body", "orelse", "finalbody"):
                    is_loop = inside_loop or (isinstance(statement, ast.For | ast.While) and field == "body")
                    yield from _walk_here(vars(statement).get(field, []), inside_loop=is_loop)


def _bindings(block: ast.With) -> Iterator[tuple[ast.AST, str]]:
    """Names that statements of the block bind, but for loops' and with's own."""
    for node in (inner for statement in block.body for inner in ast.walk(statement)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            targets = [node.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    yield node, name.id


def _is_own(use: ast.AST, name: str, block: ast.With, definition: ast.FunctionDef) -> bool:
    """Whether a use elsewhere is of a name that another block, not around this one, binds for itself."""
    for other in ast.walk(definition):
        if not isinstance(other, ast.With) or not _is_block(other) or other is block:
            continue
        inner = list(ast.walk(other))
        if any(node is use for node in inner) and not any(node is block for node in inner):
            return any(bound == name for _, bound in _bindings(other))
    return False


def _is_block(node: ast.With) -> bool:
    return _kind(node) in BLOCKS


def _kind(node: ast.With) -> str:
    for item in node.items:
        call = item.context_expr
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            return call.func.attr
    return ""


def _at(node: ast.AST, file: str) -> Where:
    return Where(file, vars(node)["lineno"])
