"""`--program-functions`: the operator declares what programs may call; a client only names it."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phloem import LLM, InvalidRequest, LimitExceeded, ProgramError, ProgramLimits, RunOptions, program
from phloem.core.errors import ConfigError
from phloem.lang.errors import FunctionFailed
from phloem.lang.functions import BUILT_IN
from phloem.launch.cli import main
from phloem.launch.program_functions import load_functions

SOURCE = """
def look_up(name):
    return {"Lima": "Peru"}[name]

def broken():
    raise OSError("the disk is gone")

async def later():
    pass

FUNCTIONS = {"look_up": look_up, "broken": broken}
SHADOWS = {"lower": look_up}
ASYNC = {"later": later}
NOT_NAMES = {"look up": look_up}
LIST = [look_up]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "operator_functions.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_a_file_or_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when one of the two spellings does not load, or the built-in functions are lost."""
    assert load_functions(None) is BUILT_IN
    by_file = load_functions(f"{file}:FUNCTIONS")
    assert by_file["look_up"]("Lima") == "Peru"
    assert by_file.keys() > BUILT_IN.keys()
    monkeypatch.chdir(file.parent)
    assert load_functions("operator_functions:FUNCTIONS").keys() == by_file.keys()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":NONE", "no mapping"), (":LIST", "no mapping"), (":SHADOWS", "'lower' is built in"), (":ASYNC", "is async"),
        (":NOT_NAMES", "'look up' is not the name"), ("", "write FILE.py:NAME"), (":a-b", "write FILE.py:NAME"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_says_what_is_wrong(file: Path, name: str, says: str) -> None:
    """Red when a mistake of the operator's shows only when a program calls the function."""
    with pytest.raises(ConfigError, match=says) as caught:
        load_functions(f"{file}{name}")
    assert caught.value.field == "program_functions"


@pytest.mark.parametrize("where", ["none.py:F", "no_such_module:F", "broken.py:F"])
def test_what_cannot_be_imported_is_not_a_traceback(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when `phloem serve` ends in a traceback, or starts a model first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    assert main(["serve", "--model", "dummy:null", "--program-functions", where]) == 2
    assert where.removesuffix(":F") in capsys.readouterr().err


@pytest.fixture
def url(start_server: Any, file: Path) -> Iterator[str]:
    server = start_server("--program-functions", f"{file}:FUNCTIONS")
    yield server.url
    server.close()


def test_programs_over_http_call_them(url: str) -> None:
    """Red when a declared function does not reach the server, another one does, or an error takes the server down."""
    assert _call(url, "look_up", "Lima") == (200, {"x": "Peru"})
    assert _call(url, "look_up", "Rome")[0] == 400
    status, error = _call(url, "broken")
    assert (status, error["code"]) == (500, "function_failed")
    status, error = _call(url, "open", "/etc/passwd")
    assert (status, error["param"]) == (400, "program.body[0]")
    assert _call(url, "look_up", "Lima")[0] == 200


def _call(url: str, function: str, *values: Any) -> tuple[int, Any]:
    node = {"op": "call", "name": "x", "function": function, "args": [{"op": "const", "value": v} for v in values]}
    body = json.dumps({"program": {"version": 1, "name": "p", "body": [node]}}).encode()
    request = urllib.request.Request(f"{url}/v1/programs", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)["variables"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


@program
def calls(s):  # type: ignore[no-untyped-def]
    s["x"] = s.call("mine", 1)


def test_an_operators_function_runs_in_a_thread_and_only_in_the_run() -> None:
    """Red when a slow function holds up other requests, is called while the program is prepared, outlives the time
    limit, or gives what JSON does not have."""
    threads: list[str] = []

    def mine(_: Any) -> bool:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return True

    with LLM("dummy:null") as llm:
        assert llm.run(calls, RunOptions(functions={**BUILT_IN, "mine": mine}))["x"] is True
        assert len(threads) == 1
        assert threads[0] != threading.main_thread().name
        with pytest.raises(LimitExceeded, match="not finished"):
            llm.run(calls, RunOptions(functions={"mine": mine}, limits=ProgramLimits(wall_time_s=0.05)))
        for value in ({1, 2}, float("nan"), object()):
            with pytest.raises(ProgramError, match="not a value that JSON has"):
                llm.run(calls, RunOptions(functions={"mine": lambda _, value=value: value}))
        with pytest.raises(FunctionFailed, match="mine failed: OSError: gone"):
            llm.run(calls, RunOptions(functions={"mine": _gone}))
        with pytest.raises(InvalidRequest, match="no function 'mine'"):
            llm.run(calls)


def _gone(_: Any) -> None:
    raise OSError("gone")
