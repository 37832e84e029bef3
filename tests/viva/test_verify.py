"""What the verifier says, and about the bank as a whole."""

from __future__ import annotations

import msgspec
import pytest

from tests.viva import garden
from tests.viva.mutations import changed
from viva.bank.load import Bank
from viva.bank.schema import Question
from viva.errors import SourceError
from viva.verify.premise import present
from viva.verify.quotes import overlap
from viva.verify.verify import Verifier, open_sources


def messages(question: Question) -> str:
    return "\n".join(str(fault) for fault in garden.faults(question))


def with_code(text: str, **more: object) -> Question:
    """The fixture's question with other pseudo-code."""
    code = {"text": text, **more}
    return changed(garden.question(), lambda plain: plain["answer"].update(pseudocode=code))


def code_messages(text: str, **more: object) -> str:
    return "\n".join(line for line in messages(with_code(text, **more)).split("\n") if "pseudocode" in line)


# --- one question ---


def test_a_message_names_file_section_and_nearest_name() -> None:
    """Red when a message no longer says where it is and what may be meant."""
    said = code_messages("# x\nclass Gardener:\n    def watr(self):\n        pass\n")
    assert said.startswith("questions/01-pause.yaml pseudocode:3: ")
    assert "Gardener (garden/engine.py:15) has no method 'watr'; nearest: water" in said


def test_a_call_of_a_callee_says_which_def_is_missing() -> None:
    """Red when an abridged call chain (run calls take itself) passes, or the message does not say what to write."""
    said = code_messages("# x\nclass Gardener:\n    def run(self):\n        self.shed.take()\n")
    assert "does not call self.shed.take; Gardener.water (garden/engine.py:53), which it calls, does" in said


def test_an_order_that_the_source_contradicts() -> None:
    """Red when statements can be exchanged unnoticed; the message has the lines of both calls."""
    said = code_messages(
        "# x\nclass Gardener:\n    def run(self, rounds=1):\n        self.next_batch()\n        self.receive()\n"
    )
    assert "self.receive after self.next_batch" in said
    assert "self.next_batch on line 35, self.receive on line 31" in said


def test_calls_of_different_arms_do_not_follow_each_other() -> None:
    """Red when the arms of a branch are read as one sequence: the source waters or tidies, never both."""
    begin = "# x\nclass Gardener:\n    def run(self):\n        batch = self.next_batch()\n"
    assert "self.tidy after self.water" in code_messages(begin + "        self.water(batch)\n        self.tidy()\n")
    arms = "        if batch:\n            self.water(batch)\n        else:\n            self.tidy()\n"
    assert code_messages(begin + arms) == ""


def test_a_method_of_a_base_class_belongs_to_the_subclass() -> None:
    """Red when bases are not followed: Gardener inherits rest from Worker."""
    assert code_messages("# x\nclass Gardener:\n    def rest(self):\n        self.inbox.clear()\n") == ""


def test_a_name_that_is_assigned_is_not_thereby_declared() -> None:
    """Red when pseudo-code can invent variables without saying so."""
    text = "# x\nclass Gardener:\n    def tidy(self):\n        rows = None\n        self.shed.sort()\n"
    assert "'rows' is no name of Gardener.tidy" in code_messages(text)
    assert code_messages(text, locals=["rows"]) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# x\ndef make_policy(name\n", "no Python syntax"),
        ("make_policy()\n# x\n", "a call outside of a def"),
        ("def make_policy(name):\n    pass\n", "no comment says which core logic it shows"),
        ("# file: garden/nowhere.py\ndef make_policy(name):\n    pass\n", "the source has no such file"),
        ("# x\ndef order(self, plants):\n    pass\n", "is defined 2 times"),
        ("# x\nclass Gardener:\n    def run(self, rounds=2):\n        pass\n", "rounds has the default 1"),
        ("# x\nclass Gardener:\n    def run(self, laps):\n        pass\n", "has no parameter 'laps'"),
        ("# x\nMAX_PLANTS = 65\ndef make_policy(name):\n    pass\n", "MAX_PLANTS is 4 * 16 in garden/engine.py:11"),
        ("# x\nfrom garden.cache import Barn\ndef make_policy(name): ...\n", "the source has no garden.cache.Barn"),
        ("# wie `frobnicate`\ndef make_policy(name):\n    pass\n", "comment: frobnicate"),
        ("# x\nclass Gardener:\n    def tidy(self):\n        return self.broom\n", "has no member 'broom'"),
        ("# x\nclass Gardener:\n    def tidy(self):\n        return self.waiting\n", "does not read self.waiting"),
        ("# x\nclass Gardener:\n    def pour(self):\n        return 7\n", "7 is no number or string of Gardener.pour"),
        ("# x\nclass Gardener:\n    def tidy(self):\n        return MAX_PLANTS\n", "is no name of Gardener.tidy"),
    ],
)  # fmt: skip
def test_what_is_said_about_pseudocode(text: str, said: str) -> None:
    """Red when one of these passes or is called something else."""
    assert said in code_messages(text)


def test_a_quote_that_stands_elsewhere_is_told_where() -> None:
    """Red when a shifted citation is only called wrong."""
    shifted = changed(garden.question(), lambda plain: plain["citations"][0].update(lines=[27, 41]))
    assert "garden/engine.py:27-41: the quote stands at lines 28-42" in messages(shifted)


def test_a_name_that_no_cited_file_has_is_told_where_it_is() -> None:
    """Red when names of the whole source are accepted though the question does not cite them."""
    less = changed(garden.question(), lambda plain: plain["citations"].pop(2))
    assert "'num_taken' is in no file this question cites; garden/cache.py:16 defines it: cite it" in messages(less)


def test_a_premise_that_is_true_is_a_fault() -> None:
    """Red when a false-premise question may call absent what the source has."""
    for name in ("Gardener", "Shed.take", "garden/cache.py", "GARDEN_PATIENCE", "Gardener.inbox", "garden.cache"):
        wrong = changed(garden.question(), lambda plain, n=name: plain["premise"].update(absent=[n]))
        assert f"{name!r} is in the source after all" in messages(wrong)
    assert present("Gardener.hose", garden.resolvers()["garden"]) is None


def test_sentences_without_markers_are_counted_not_hidden() -> None:
    """Red when the report no longer tells cited sentences from opinion."""
    tally = Verifier(garden.bank(), garden.resolvers()).question(garden.question()).tally
    assert (tally.cited, tally.uncited, tally.opinion) == (9, 2, 0)
    assert (tally.citations, tally.external, tally.dynamic) == (6, 1, 1)


# --- the bank ---


def bank_of(*questions: Question, subject_package: bool = False) -> Bank:
    bank = garden.bank()
    file = bank.file
    if subject_package:
        subject = msgspec.structs.replace(file.sources[0], tree=None, package="garden", version="1")
        file = msgspec.structs.replace(file, sources=(subject, *file.sources[1:]))
    paths = {question.id: bank.folder / f"{question.id}.yaml" for question in questions}
    return Bank(folder=bank.folder, file=file, questions=questions, paths=paths)


def variants(count: int) -> list[Question]:
    """Questions that cover all levels and modules; they share spans, which is judged elsewhere."""
    modules = ("execution", "graph-ir", "kv-cache", "parallelism", "system")
    plain = garden.question()
    return [
        msgspec.structs.replace(
            plain, id=f"q{number}", level=2 + number % 4, module=modules[number % 5], title=f"问题 {number} 是什么？"
        )
        for number in range(count)
    ]


def bank_messages(bank: Bank) -> list[str]:
    return [f"{fault.section}: {fault.message}" for fault in Verifier(bank, garden.resolvers()).bank().faults]


def test_a_bank_on_a_tree_needs_eight_questions_one_on_a_package_twelve() -> None:
    """Red when a bank can be shorter, or can lower the number itself."""
    assert bank_messages(bank_of(*variants(8))) == []
    assert bank_messages(bank_of(*variants(7))) == ["questions: 7 questions; a bank has at least 8"]
    assert bank_messages(bank_of(*variants(11), subject_package=True)) == [
        "questions: 11 questions; a bank has at least 12"
    ]
    assert bank_messages(bank_of(*variants(12), subject_package=True)) == []


def test_a_bank_has_all_levels_modules_and_kinds() -> None:
    """Red when a level, a module, the false premise or the question over several files can be missing."""
    same = [msgspec.structs.replace(question, level=2, module="system") for question in variants(8)]
    said = bank_messages(bank_of(*same))
    assert [line.partition(":")[0] for line in said] == ["levels"] * 3 + ["modules"] * 4
    plain = [msgspec.structs.replace(question, kind="ordinary", premise=None) for question in variants(8)]
    assert "kinds: no false-premise question" in bank_messages(bank_of(*plain))
    one_file = [msgspec.structs.replace(question, citations=question.citations[:1]) for question in variants(8)]
    assert "kinds: no question that needs two or more files of the subject" in bank_messages(bank_of(*one_file))


def test_two_questions_may_not_cite_the_same_span() -> None:
    """Red when a span, or nearly the same one, serves two questions."""
    report = Verifier(bank_of(*variants(2)), garden.resolvers()).bank()
    assert any("is the span that q0 cites as c1" in fault.message for fault in report.questions[1].faults)
    assert overlap((10, 19), (11, 20)) > 0.5
    assert overlap((10, 19), (18, 40)) < 0.5


def test_a_package_is_compared_with_vllm_and_one_of_two_others() -> None:
    """Red when any two systems will do for a published engine."""
    report = Verifier(bank_of(*variants(1), subject_package=True), garden.resolvers()).bank()
    assert any("one of TensorRT-LLM and TGI" in fault.message for fault in report.questions[0].faults)


def test_a_source_of_comparisons_can_be_left_out() -> None:
    """Red when a bank cannot be verified where a comparison's package cannot be had, or when the report hides it."""
    fewer = open_sources(garden.bank(), cache=garden.CACHE, skip=["meadow"])
    report = Verifier(garden.bank(), fewer).bank()
    assert report.questions[0].faults == []
    assert report.questions[0].tally.external == 2
    assert "not fetched" in report.sources["meadow"]
    with pytest.raises(SourceError, match="the subject 'garden' is not indexed"):
        Verifier(garden.bank(), {})
