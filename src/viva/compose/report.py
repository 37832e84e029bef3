"""What a run achieved, in numbers that can be checked against the bank and the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from viva.compose.compose import Done
from viva.compose.writer import Writer
from viva.verify.report import BankReport, Tally


def run_report(
    verified: BankReport, done: Sequence[Done], writer: Writer, *, planned: int, known: int, complete: bool,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """`done` and the tokens are those of this run; claims and sentences those of the whole bank."""
    total = verified.total
    failed = [f"question {one.slot.number}: {line}" for one in done if one.question is None for line in one.faults]
    return {
        "complete": complete,
        "questions": len(verified.questions),
        "planned": planned,
        "from_an_earlier_run": known,
        "share_of_claims_verified": round(share_verified(total, len(verified.all_faults)), 4),
        "share_of_sentences_without_citation": round(
            (total.uncited + total.opinion) / total.sentences if total.sentences else 0.0, 4
        ),
        "repair_rounds": sum(one.rounds for one in done),
        "sections_from_templates": sum(one.templated for one in done),
        "writer": writer.name,
        "prose": writer.style,
        "tokens": writer.counts,
        "prefix_cache_hit_rate": round(writer.counts.hit_rate, 4),
        "seconds": round(seconds, 1),
        "faults": [*map(str, verified.all_faults), *failed],
    }


def share_verified(tally: Tally, num_faults: int) -> float:
    """Checked and true, of all that is claimed: what is only declared, or not fetched, counts against it."""
    true = sum((tally.citations, tally.names, tally.edges, tally.ordered, tally.fields, tally.signatures, tally.absent))
    rest = tally.external + tally.declared + tally.dynamic + num_faults
    return true / (true + rest) if true + rest else 0.0


def report_lines(report: dict[str, Any]) -> list[str]:
    counts = report["tokens"]
    state = "complete" if report["complete"] else "PARTIAL"
    lines = [
        f"{state}: {report['questions']} of {report['planned']} questions verified in {report['seconds']} s "
        f"({report['from_an_earlier_run']} from an earlier run), prose {report['prose']} by {report['writer']}",
        f"claims verified {report['share_of_claims_verified']:.1%}; sentences without a citation "
        f"{report['share_of_sentences_without_citation']:.1%}; repair rounds {report['repair_rounds']}; sections from "
        f"templates {report['sections_from_templates']}",
        f"tokens: {counts.prompt_tokens} prompt ({report['prefix_cache_hit_rate']:.1%} from the prefix cache), "
        f"{counts.generated_tokens} generated, {counts.requests} requests",
    ]
    return lines + [f"  {fault}" for fault in report["faults"]]
