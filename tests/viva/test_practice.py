"""Practice: grades, what happens when a model fails, and that no answer is lost."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.viva import garden
from viva.bank.load import load_bank
from viva.cli import main
from viva.practice.grading import Graded, better, score, weakest
from viva.practice.match import COVERED, Matcher
from viva.practice.program import GradingFailed, ProgramGrader, read_grades, schema_of
from viva.practice.session import Session

BANK = str(garden.DATA / "bank")
SHIPPED = Path(__file__).parents[2] / "banks" / "sglang-0.5.23"
GOOD = {
    "r1": {"verdict": "covered", "citation": "c1", "why": "said"},
    "r2": {"verdict": "partly", "citation": "c1", "why": "half"},
    "r3": {"verdict": "missing", "citation": "c2", "why": "not said"},
}


@contextmanager
def endpoint(says: Callable[[dict[str, Any]], bytes | None]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers each request with what `says` gives for its body; None hangs until the end."""
    done = threading.Event()
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            text = says(body)
            if text is None:
                done.wait(30)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        done.set()
        server.shutdown()
        server.server_close()


def chunks(text: str) -> bytes:
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()


def well(body: dict[str, Any]) -> bytes:
    return chunks(json.dumps(GOOD) if "response_format" in body else "归还之后呢？")


def practise(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("先收后判断\n.\n追问的回答\n.\n"))
    return main(["practice", BANK, "--endpoint", url, "--model", "m", "--session", str(folder), *options])


def test_a_model_grades_under_the_rubric_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when the schema is not sent, the grades are not the model's, or the prefix is not shared by the follow-up."""
    with endpoint(well) as (url, asked):
        assert practise(url, tmp_path, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "62 / 100" in out  # weights 2, 1, 1: covered, half, nothing
    assert "追问: 归还之后呢？" in out
    schema = asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["r3"]["properties"]["citation"]["enum"] == ["c2"]
    assert asked[1]["messages"][:2] == asked[0]["messages"][:2]
    [item] = json.loads((tmp_path / "session.json").read_bytes())["items"]
    assert item["graded"]["by"] == "program"
    assert item["follow_up_answer"] == "追问的回答"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"<html>busy</html>",
        b"data: nonsense\n\n",
        b"data: []\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"error": {"message": "out of memory"}}\n\n',
        chunks("I think the answer is good."),
        chunks("{}"),
        chunks(json.dumps({**GOOD, "r1": {"verdict": "perfect", "citation": "c1", "why": ""}})),
        chunks(json.dumps({**GOOD, "r1": {"verdict": "covered", "citation": "c99", "why": ""}})),
        chunks(json.dumps({**GOOD, "r1": 3})),
    ],
)
def test_rubbish_from_an_endpoint_is_said_and_nothing_is_lost(
    rubbish: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when an endpoint's nonsense is a traceback, a grade, or costs the answer."""
    with endpoint(lambda body: rubbish) as (url, _):
        assert practise(url, tmp_path, monkeypatch) == 0
    assert "模型评分没有成功" in capsys.readouterr().out
    [item] = json.loads((tmp_path / "session.json").read_bytes())["items"]
    assert item["answer"] == "先收后判断"
    assert item["graded"]["by"] == "matching"
    assert "先收后判断" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_an_endpoint_that_hangs_is_left_after_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when practice waits longer than --timeout for a grade."""
    with endpoint(lambda body: None) as (url, _):
        assert practise(url, tmp_path, monkeypatch, "--timeout", "0.2") == 0
    assert "no grades within 0.2 s" in capsys.readouterr().out


def test_an_endpoint_that_is_not_there_is_named_before_the_first_question(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a candidate writes an answer before he learns that nobody listens."""
    assert main(["practice", BANK, "--endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert "no answer" in capsys.readouterr().err
    assert main(["practice", BANK, "--endpoint", "localhost"]) == 2
    assert "http://127.0.0.1:8000/v1" in capsys.readouterr().err


def test_without_a_model_matching_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when matched words are sold as a judgement."""
    monkeypatch.setattr("sys.stdin", io.StringIO("失败时归还工具\n.\n:quit\n"))
    assert main(["practice", BANK, "--session", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "SmolLM2-135M" in out
    assert "[覆盖] 失败时归还工具" in out
    assert "[c2] garden/engine.py:53-60" in out


def test_the_answer_is_on_disk_before_it_is_graded(tmp_path: Path) -> None:
    """Red when a crash while grading loses what was typed."""

    class Crashing(Matcher):
        def grade(self, question: Any, answer: str) -> Any:
            raise KeyboardInterrupt

    session = Session(garden.bank(), Crashing(garden.bank()), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        session.answer(garden.question(), "很长的回答")
    assert "很长的回答" in (tmp_path / "session.json").read_text(encoding="utf-8")
    assert "未评分" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_model_answers_match_their_own_rubric_and_not_that_of_others() -> None:
    """Red when the thresholds stop telling a right answer from one on another subject of the same module."""
    bank = load_bank(SHIPPED)
    matcher = Matcher(bank)
    own, other = [], []
    for question in bank.questions:
        for each in bank.questions:
            text = "\n".join([each.answer.overview, *each.answer.flow, each.answer.layout, each.answer.tradeoffs])
            verdicts = [point.verdict for point in matcher.grade(question, text)]
            (own if each is question else other).extend(verdicts)
    assert own.count("missing") / len(own) < 0.15
    assert own.count("covered") / len(own) > 0.5
    assert other.count("missing") / len(other) > 0.9
    assert 0 < COVERED < 1


def test_repeating_the_question_is_no_answer() -> None:
    """Red when the words that a question gives away score."""
    bank = load_bank(SHIPPED)
    matcher = Matcher(bank)
    verdicts = [point.verdict for question in bank.questions for point in matcher.grade(question, question.title)]
    assert set(verdicts) == {"missing"}


def test_grades_are_weighed_and_a_follow_up_never_takes_away() -> None:
    """Red when a part counts whole, weights are ignored, or a better second answer is lost."""
    question = garden.question()
    points = read_grades(question, GOOD)
    assert score(question, points) == 62
    assert weakest(question, points).id == "r3"
    improved = read_grades(
        question, {**GOOD, "r1": GOOD["r3"] | {"citation": "c1"}, "r3": GOOD["r1"] | {"citation": "c2"}}
    )
    assert [point.verdict for point in better(points, improved)] == ["covered", "partly", "covered"]
    assert weakest(question, read_grades(question, {k: v | {"verdict": "covered"} for k, v in GOOD.items()})) is None


def test_a_grader_that_fails_twice_has_failed() -> None:
    """Red when the program retries for ever or not at all."""
    runs: list[int] = []

    def run(program: Any, /, options: Any, **arguments: Any) -> dict[str, Any]:
        runs.append(options.seed)
        return {"grades": {}}

    grader = ProgramGrader(garden.bank(), run, name="m", timeout_s=5)
    with pytest.raises(GradingFailed, match="rubric"):
        grader.grade(garden.question(), "x")
    assert runs == [0, 1]
    assert list(schema_of(garden.question())["properties"]) == ["r1", "r2", "r3"]
    assert Graded.__struct_fields__[0] == "question"


@pytest.mark.parametrize("options", [["--count", "0"], ["--level", "2"], ["--timeout", "0"]])
def test_options_that_make_no_session_are_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a session without questions begins."""
    assert main(["practice", BANK, *options]) == 2
    assert options[0] in capsys.readouterr().err
