"""`phloem program show FILE`: a program from a file of this machine, before and after each pass."""

from __future__ import annotations

from pathlib import Path

from phloem.core.errors import ConfigError
from phloem.lang import ir
from phloem.lang.draw import show_svg
from phloem.lang.passes.bounds import bounds
from phloem.lang.passes.context import PassContext
from phloem.lang.passes.pipeline import PASSES, stages
from phloem.lang.show import show_bounds, show_mermaid, show_text
from phloem.lang.trace import ProgramFunction
from phloem.lang.verify import numbered, verify
from phloem.launch.modules import load_module

FORMATS = {"text": show_text, "mermaid": show_mermaid, "svg": show_svg}


def show(file: str, *, name: str | None, only: str | None, form: str) -> int:
    """Print every stage as text, or the stage `only` (default: the source) in another form; "json" is the IR itself."""
    program = numbered(load(file, name=name))
    context = PassContext()
    verify(program, limits=context.limits)
    if only is not None and only not in ("source", *PASSES):
        raise ConfigError(f"no pass {only!r}; there are source, {', '.join(PASSES)}", field="pass")
    wanted = only if only is not None or form == "text" else "source"
    before = ""
    for stage, after in stages(program, list(PASSES), context):
        if wanted is not None and stage != wanted:
            continue
        text = ir.to_json(after).decode() if form == "json" else FORMATS[form](after)
        if form != "text" or wanted is not None:
            print(text)
        elif text == before:
            print(f"-- {stage}: nothing changes")
        else:
            print(f"-- {stage}\n{text}")
        before, last = text, after
    if form == "text" and wanted is None:
        print(f"-- bounds\n{show_bounds(bounds(last, limits=context.limits))}")
    return 0


def load(file: str, *, name: str | None) -> ir.Program:
    """The program in a .json file (its IR), or the one of this name in a .py file. ConfigError says what is missing."""
    path = Path(file)
    try:
        if path.suffix != ".py":
            return ir.from_json(path.read_bytes())
        found = programs_in(file)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", field="file") from error
    if name is None and len(found) == 1:
        [name] = found
    if name not in found:
        known = ", ".join(found) or "none"
        raise ConfigError(f"{file} has these programs: {known}; name one with --name", field="name")
    return found[name].trace()


def programs_in(file: str) -> dict[str, ProgramFunction]:
    """The `@program` functions that a Python file defines. Runs the file."""
    module = load_module(file, field="file")
    return {name: value for name, value in vars(module).items() if isinstance(value, ProgramFunction)}
