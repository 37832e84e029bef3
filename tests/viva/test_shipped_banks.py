"""The banks of this repository hold. A source that is neither in viva's cache nor to be had is left out, or the bank is
skipped where it is the subject."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.viva.mutations import all_mutations, spoiled_fetched_citations
from viva.bank.load import Bank, load_bank
from viva.errors import SourceError
from viva.index.build import open_source
from viva.index.resolve import Resolver
from viva.place import cache_folder
from viva.verify.verify import Verifier

BANKS = sorted(path.parent for path in (Path(__file__).parent.parent.parent / "banks").glob("*/bank.yaml"))
EVERY_NTH = 97  # of the spoiled questions; the fixture's are all tried


def verifier_of(bank: Bank) -> Verifier:
    """The verifier with every source that can be had."""
    resolvers: dict[str, Resolver] = {}
    for source in bank.file.sources:
        if source.repository:
            continue
        try:
            resolvers[source.id] = Resolver(open_source(source, bank_folder=bank.folder, cache=cache_folder()))
        except SourceError as error:
            if source.role == "subject":
                pytest.skip(error.message)
    return Verifier(bank, resolvers)


@pytest.mark.slow
@pytest.mark.parametrize("folder", BANKS, ids=lambda folder: folder.name)
def test_a_shipped_bank_holds(folder: Path) -> None:
    """Red when a bank's source changed under it (ours: the tree), or a claim was edited into something untrue."""
    report = verifier_of(load_bank(folder)).bank()
    assert [str(fault) for fault in report.all_faults] == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", BANKS, ids=lambda folder: folder.name)
def test_a_spoiled_shipped_bank_does_not(folder: Path) -> None:
    """Red when the verifier overlooks, in real answers, what it notices in the fixture. A declaration in `locals` that
    was not needed may go."""
    bank = load_bank(folder)
    verifier = verifier_of(bank)
    fetched = {source.id for source in bank.file.sources if not source.repository}
    unnoticed: list[str] = []
    for question in bank.questions:
        spoiled = [*all_mutations(question), *spoiled_fetched_citations(question, fetched)]
        tried = [item for item in spoiled if "not declared" not in item[0]][::EVERY_NTH]
        unnoticed += [f"{question.id}: {what}" for what, changed in tried if not verifier.question(changed).faults]
    assert unnoticed == []
