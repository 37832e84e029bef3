"""The program that writes a question's prose: one evidence pack, then a branch a section, all on the same prefix."""

from __future__ import annotations

from phloem import assistant, gen, program, system, user
from viva.compose.skeleton import Skeleton

MAX_QUOTE_LINES = 16  # of a citation, in the prompt

RULES = """\
You write an interview question bank about the source code of an LLM serving engine, in Chinese, for experts. Say only
what the evidence shows. Names are those of the evidence, between backticks; each sentence ends with the citation that
shows it."""


@program
def write_sections(s, evidence, *, sections):  # type: ignore[no-untyped-def]
    """The evidence once; every section goes on from there."""
    s += system(RULES)
    s += user(evidence)
    s += assistant("Which section?")
    branches = s.fork(len(sections), name="sections")
    for branch, section in zip(branches, sections):
        branch += user(section.instruction)
        branch += assistant(gen("text", regex=section.pattern, max_tokens=section.max_tokens))
    s.join(branches)
    return s["sections"]


@program
def write_plainly(s, evidence, *, sections):  # type: ignore[no-untyped-def]
    """The same for an endpoint that knows no grammar: what it says is checked afterwards."""
    s += system(RULES)
    s += user(evidence)
    s += assistant("Which section?")
    branches = s.fork(len(sections), name="sections")
    for branch, section in zip(branches, sections):
        branch += user(section.instruction)
        branch += assistant(gen("text", max_tokens=section.max_tokens))
    s.join(branches)
    return s["sections"]


def evidence_of(skeleton: Skeleton) -> str:
    """The pack as the model reads it."""
    parts = [f"# Evidence for `{skeleton.root.name}` (level {skeleton.slot.level}, {skeleton.slot.module})"]
    for citation in skeleton.citations:
        quote = "\n".join(citation.quote.split("\n")[:MAX_QUOTE_LINES])
        parts.append(f"[{citation.id}] {citation.file}:{citation.lines[0]}-{citation.lines[1]}\n{quote}")
    parts.append("# Names\n" + " ".join(f"`{name}`" for name in skeleton.names))
    return "\n\n".join(parts)


def instruction_of(name: str, draft: str, faults: list[str]) -> str:
    """What to write; after a failed round with what the verifier said."""
    asked = f"Write the section `{name}`. Facts to start from:\n{draft}"
    return f"{asked}\nThe last attempt was refused:\n" + "\n".join(faults[:6]) if faults else asked
