"""Skeleton and texts to a question."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from viva.bank.schema import Answer, Comparison, Premise, Question, RubricPoint
from viva.compose.draft import drafts, plain_text, proposed_names
from viva.compose.skeleton import Skeleton

SECTION_OF = {  # the beginning of a fault's section -> the piece of prose to write again
    "title": "title", "overview": "overview", "flow": "flow", "layout": "layout", "comparison[vllm": "vllm",
    "comparison[": "second", "tradeoffs": "tradeoffs", "evolution": "evolution",
}  # fmt: skip


def drafted(skeleton: Skeleton) -> dict[str, str]:
    return {name: plain_text(places) for name, places in drafts(skeleton).items()}


def question_of(skeleton: Skeleton, texts: Mapping[str, str], *, subject: str) -> Question:
    """The texts are trusted here, and verified afterwards."""
    second = skeleton.second.citation.source
    answer = Answer(
        overview=texts["overview"],
        pseudocode=skeleton.pseudocode,
        flow=tuple(line for line in texts["flow"].split("\n") if line.strip()),
        layout=texts["layout"],
        fields=skeleton.claimed_fields(),
        signatures=skeleton.claimed_signatures(),
        comparison=(Comparison(system="vllm", text=texts["vllm"]), Comparison(system=second, text=texts["second"])),
        tradeoffs=texts["tradeoffs"],
        evolution=tuple(line for line in texts["evolution"].split("\n") if line.strip())[:2],
        proposed=proposed_names(skeleton),
    )
    premise = Premise(claim=f"这里由 `{skeleton.absent}` 负责", absent=(skeleton.absent,)) if skeleton.absent else None
    citations = tuple(
        msgspec.structs.replace(item, source=subject) if item.source == "subject" else item
        for item in skeleton.citations
    )
    return Question(
        id=skeleton.id, level=skeleton.slot.level, module=skeleton.slot.module, kind=skeleton.slot.kind,
        title=texts["title"], premise=premise, citations=citations, answer=answer, rubric=_rubric(skeleton),
    )  # fmt: skip


def _rubric(skeleton: Skeleton) -> tuple[RubricPoint, ...]:
    told = "、".join(f"`{call.text}`" for call in skeleton.root.calls[:3])
    listed = "、".join(f"`{item.name}`" for item in skeleton.fields[:3])
    return (
        RubricPoint(id="r1", point=f"说出源码顺序：{told}", weight=3, citations=("c1",)),
        RubricPoint(id="r2", point=f"指出 `{skeleton.lead[0]}` 走到 `{skeleton.lead[1].qualname}`", weight=2,
                    citations=("c1", "c2")),
        RubricPoint(id="r3", point=f"说出 `{skeleton.owner.qualname}` 的字段 {listed} 中的至少两个", citations=("c3",)),
    )  # fmt: skip


def section_of(fault_section: str) -> str | None:
    """The piece of prose that a fault is about; None if no model wrote it."""
    return next((name for start, name in SECTION_OF.items() if fault_section.startswith(start)), None)
