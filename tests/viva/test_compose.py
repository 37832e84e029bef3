"""Building a bank: skeletons from a small source, a writer that does as it is told (or not), what is kept."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from viva.bank.load import load_bank
from viva.bank.schema import BankFile, Source
from viva.compose.abridge import abridged
from viva.compose.areas import parsed_topics
from viva.compose.compose import Composer
from viva.compose.draft import drafts, plain_text
from viva.compose.folder import PARTIAL, RunFolder
from viva.compose.grammar import Section, Style, holds, pattern_of
from viva.compose.pick import slots
from viva.compose.report import share_verified
from viva.compose.second import prepared, second_sources
from viva.compose.skeleton import Skeleton
from viva.compose.writer import Counts, Writer
from viva.errors import VivaError
from viva.index.build import build_index
from viva.index.corpus import Folder
from viva.index.resolve import Resolver
from viva.index.store import Store
from viva.index.trees import Trees
from viva.verify.quotes import check_citation
from viva.verify.report import Tally
from viva.verify.verify import Verifier

ENGINE = '''\
import logging

from pack.sched.pages import take_pages

logger = logging.getLogger(__name__)


class Engine:
    def __init__(self, waiting: list, running: list, budget: int):
        self.waiting: list[int] = waiting
        self.running: list[int] = running
        self.budget: int = budget
        self.num_steps: int = 0

    def step_once(self, limit: int) -> int:
        """One step."""
        logger.info("a step begins")
        self.receive_all()
        if not self.waiting:
            return 0
        for request in self.waiting:
            self.check_one(request)
            take_pages(self, request, limit)
        self.launch_batch()
        self.num_steps += 1
        self.settle_all()
        done = self.num_steps
        return done

    def receive_all(self) -> None: ...
    def check_one(self, request: int) -> None: ...
    def launch_batch(self) -> None: ...
    def settle_all(self) -> None: ...
'''
PAGES = """\
def take_pages(engine, request: int, limit: int) -> int:
    taken = 0
    while taken < limit:
        taken += 1
        if taken > engine.budget:
            break
    engine.running.append(request)
    engine.waiting.remove(request)
    return taken
"""


class Usage(NamedTuple):
    requests: int = 2
    prompt_tokens: int = 100
    computed_tokens: int = 25
    generated_tokens: int = 10


class Result:
    """What `LLM.run` gives."""

    usage = Usage()

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __getitem__(self, name: str) -> Any:
        return [{"text": text} for text in self._texts] if name == "sections" else None


class Scripted:
    """A model that says `wrong` for the first rounds, then the first words that its grammar allows."""

    def __init__(self, wrong: str = "", rounds: int = 0) -> None:
        self.wrong, self.rounds, self.asked = wrong, rounds, list[list[Section]]()

    def write(self, evidence: str, sections: Sequence[Section], *, seed: int) -> dict[str, str]:
        self.asked.append(list(sections))
        if len(self.asked) <= self.rounds:
            return {section.name: self.wrong for section in sections}
        return {section.name: _fact(section) for section in sections}


class Fake(Writer):
    def __init__(self, model: Scripted, style: Style) -> None:
        super().__init__(lambda *_, **__: None, name="fake", style=style, has_grammar=True, timeout_s=1)
        self.write = model.write  # type: ignore[method-assign]


def _fact(section: Section) -> str:
    return section.instruction.partition("Facts to start from:\n")[2].partition("\nThe last attempt")[0]


@pytest.fixture(scope="module")
def resolvers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Resolver]]:
    root = tmp_path_factory.mktemp("sources")
    found = {}
    for source, package in (("subject", "pack"), ("vllm", "vllm")):
        folder = root / source / package / "sched"
        folder.mkdir(parents=True)
        (folder / "engine.py").write_text(ENGINE.replace("pack.", f"{package}."), encoding="utf-8")
        (folder / "pages.py").write_text(PAGES, encoding="utf-8")
        (folder / "peer.py").write_text(f"class {package.title()}OnlyScheduler:\n    size = 1\n", encoding="utf-8")
        index = build_index(Folder(root / source), cache=root / "cache")
        found[source] = Resolver(Store(index.path))
    return found


def bank_file() -> BankFile:
    sources = (
        Source(id="subject", role="subject", tree="."),
        Source(id="vllm", role="comparison", package="vllm", version="1"),
        *second_sources(),
    )
    return BankFile(schema="viva-bank/1", title="t", sources=sources)


def composer(resolvers: dict[str, Resolver], out: Path, model: Scripted, style: Style = "told") -> Composer:
    folder = RunFolder(out, {"count": 1}, bank_file())
    return Composer(bank_file(), resolvers, {"execution": ""}, Fake(model, style), folder, max_rounds=2)


def skeleton(resolvers: dict[str, Resolver], out: Path) -> Skeleton:
    found = composer(resolvers, out, Scripted())._skeleton(slots(2, ["execution"])[0])
    assert found is not None
    return found


def test_a_composed_question_is_clean_and_can_be_read_back(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    """Red when a skeleton says what its source does not, or a question does not survive being written."""
    done = composer(resolvers, tmp_path, Scripted()).compose(slots(2, ["execution"])[0])
    bank = load_bank(tmp_path)
    assert bank.questions == (done.question,)
    assert Verifier(bank, resolvers).question(bank.questions[0]).faults == []
    assert (done.rounds, done.templated) == (0, 0)


def test_a_false_premise_names_what_only_the_other_system_has(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    done = composer(resolvers, tmp_path, Scripted()).compose(slots(1, ["execution"])[0])
    assert done.question is not None
    assert done.question.premise is not None
    assert done.question.premise.absent == ("VllmOnlyScheduler",)


def test_a_refused_section_is_written_again_with_the_reason(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    """Red when repair asks again without saying why, or asks for what was fine."""
    model = Scripted(wrong="不存在的 `made_up_name`。", rounds=1)
    done = composer(resolvers, tmp_path, model).compose(slots(2, ["execution"])[0])
    assert done.question is not None
    assert done.rounds == 1
    assert all("The last attempt was refused" in section.instruction for section in model.asked[1])


def test_a_model_that_never_satisfies(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    """The index's own words stand in where they are the style; free prose has no question then, and nothing is kept."""
    told = composer(resolvers, tmp_path / "told", Scripted("rubbish", 9)).compose(slots(2, ["execution"])[0])
    assert told.question is not None
    assert told.templated == len(drafts(skeleton(resolvers, tmp_path / "x")))
    free = composer(resolvers, tmp_path / "free", Scripted("rubbish", 9), "free").compose(slots(2, ["execution"])[0])
    assert free.question is None
    assert free.faults
    assert not (tmp_path / "free" / "questions").exists()


def test_what_was_asked_and_said_is_kept(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    composer(resolvers, tmp_path, Scripted("rubbish", 1)).compose(slots(2, ["execution"])[0])
    kept = sorted(path.name for path in (tmp_path / "run" / "rounds").iterdir())
    assert kept == ["q01-engine-step-once-0.json", "q01-engine-step-once-1.json"]


def test_free_prose_names_only_the_pack_and_cites_only_the_pack(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    """Red when the grammar lets a name or a citation through that the evidence has not."""
    found = skeleton(resolvers, tmp_path)
    pattern = pattern_of("layout", drafts(found)["layout"], found, "free")
    section = Section("layout", "", pattern, 10)
    assert holds(section, "字段 `budget` 决定上限。[c3]")
    assert not holds(section, "字段 `budgets` 决定上限。[c3]")
    assert not holds(section, "字段 `budget` 决定上限。[c9]")
    assert not holds(section, "字段 `budget` 决定上限。")


def test_every_alternative_of_the_told_style_fits_its_own_grammar(
    resolvers: dict[str, Resolver], tmp_path: Path
) -> None:
    found = skeleton(resolvers, tmp_path)
    for name, places in drafts(found).items():
        section = Section(name, "", pattern_of(name, places, found, "told"), 10)
        assert holds(section, plain_text(places))
        assert holds(section, "".join(place[-1] for place in places))


def test_pseudo_code_leaves_out_and_changes_nothing(resolvers: dict[str, Resolver]) -> None:
    symbol = resolvers["subject"].find_one("Engine.step_once")
    text = abridged(symbol, Trees(resolvers["subject"]).function(symbol))
    assert text is not None
    assert "logger" not in text
    assert "One step" not in text
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert set(calls) == {"self.receive_all", "self.check_one", "take_pages", "self.launch_batch", "self.settle_all"}


def test_an_interrupted_run_goes_on_and_another_does_not(resolvers: dict[str, Resolver], tmp_path: Path) -> None:
    composer(resolvers, tmp_path, Scripted()).compose(slots(2, ["execution"])[0])
    again = RunFolder(tmp_path, {"count": 1}, bank_file())
    assert list(again.verified()) == [1]
    assert load_bank(tmp_path).file.title.endswith(PARTIAL)
    with pytest.raises(VivaError, match="other settings"):
        RunFolder(tmp_path, {"count": 2}, bank_file())


def test_a_slow_or_broken_model_is_a_clear_error() -> None:
    section = Section("title", "", "a", 4)
    slow = Writer(lambda *_, **__: time.sleep(5), name="m", style="free", has_grammar=True, timeout_s=0.05)
    with pytest.raises(VivaError, match=r"no answer within 0\.05 s"):
        slow.write("e", [section], seed=0)
    rubbish = Writer(lambda *_, **__: 7, name="m", style="free", has_grammar=True, timeout_s=5)
    with pytest.raises(VivaError, match="answers rubbish"):
        rubbish.write("e", [section], seed=0)


def test_tokens_are_counted() -> None:
    writer = Writer(lambda *_, **__: Result(["x"]), name="m", style="told", has_grammar=True, timeout_s=5)
    assert writer.write("e", [Section("title", "", "x", 4)], seed=0) == {"title": "x"}
    assert writer.counts == Counts(2, 100, 25, 10)
    assert writer.counts.hit_rate == 0.75


def test_the_plan_has_all_levels_and_modules() -> None:
    plan = slots(12, ["execution", "graph-ir", "kv-cache", "parallelism", "system"])
    assert {slot.level for slot in plan} == {2, 3, 4, 5}
    assert len({slot.module for slot in plan}) == 5
    assert [slot.kind for slot in plan].count("false-premise") == 1
    with pytest.raises(VivaError, match="--count"):
        slots(0, ["system"])


def test_topics() -> None:
    assert parsed_topics(["kv-cache:Radix"]) == {"kv-cache": "radix"}
    with pytest.raises(VivaError, match="--topics caching"):
        parsed_topics(["caching"])


def test_the_second_systems_quotes_agree() -> None:
    """Red when a prepared quote was edited, or a name in a prepared sentence is not in its quote."""
    assert [check_citation(item.citation, None) for item in prepared()] == [None] * len(prepared())
    assert len(prepared()) >= 12


def test_what_is_only_declared_counts_against_the_share() -> None:
    assert share_verified(Tally(names=8, declared=1, external=1), 0) == 0.8
    assert share_verified(Tally(), 0) == 0.0
