"""The server: what it shows, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.viva import garden
from viva.practice.match import Matcher
from viva.practice.session import Session
from viva.web.app import MAX_BODY_BYTES, make_app
from viva.web.command import open_stores
from viva.web.sources import SourcePages

HOSTS = frozenset({"127.0.0.1", "localhost"})


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bank = garden.bank()
    session = Session(bank, Matcher(bank), folder=tmp_path / "session")
    app = make_app(bank, SourcePages(bank, open_stores(bank)), session, hosts=HOSTS)
    return TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=True)


def test_a_citation_leads_to_its_lines_marked(client: TestClient) -> None:
    """Red when a link of the page goes nowhere, or other lines are marked."""
    page = client.get("/").text
    assert "/source/garden/garden/engine.py?lines=28-42" in page
    source = client.get("/source/garden/garden/engine.py?lines=28-42").text
    assert source.count('class="line hit"') == 15
    assert '<span class="line hit" data-n="28" id="L28">' in source
    assert 'href="/#pause"' in source
    fragment = client.get("/source/garden/garden/engine.py?lines=28-42&fragment=1").text
    assert fragment.startswith('<span class="line" data-n="14">')
    assert fragment.count("hit") == 15


@pytest.mark.parametrize(
    "path",
    [
        "/source/garden/../../../../etc/passwd",
        "/source/garden/..%2f..%2f..%2fetc%2fpasswd",
        "/source/garden/%2e%2e/other/meadow/sheep.py",
        "/source/garden//etc/passwd",
        "/source/vllm/vllm/v1/core/sched/scheduler.py",
        "/source/nobody/garden/engine.py",
        "/source/garden/garden/engine.py?lines=1-9999",
        "/source/garden/garden/engine.py?lines=9-2",
        "/source/garden/garden/engine.py?lines=0",
        "/source/garden/garden/engine.py?lines=x",
        "/static/page.py",
        "/static/..%2fpage.py",
    ],
)
def test_only_indexed_files_and_their_lines_are_served(client: TestClient, path: str) -> None:
    """Red when a path reaches the file system, or a wrong line is a crash."""
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_every_answer_carries_the_policy(client: TestClient) -> None:
    """Red when a page could run a script that is not this server's."""
    for path in ("/", "/source/garden/garden/engine.py", "/nothing", "/export?format=md"):
        policy = client.get(path).headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


def test_other_names_and_other_sites_are_refused(client: TestClient) -> None:
    """Red when a page of another site can read or write here (DNS rebinding, cross-site requests)."""
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    body = {"question": "pause", "answer": "x"}
    assert client.post("/practice/grade", json=body, headers={"origin": "http://evil.example"}).status_code == 403
    plain = client.post("/practice/grade", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 400


def test_an_answer_is_graded_and_followed_up(client: TestClient) -> None:
    """Red when the page's practice differs from the terminal's, or the report lacks what was said."""
    graded = client.post("/practice/grade", json={"question": "pause", "answer": "失败时归还工具"}).json()
    assert [point["id"] for point in graded["points"]] == ["r1", "r2", "r3"]
    assert graded["points"][2] == {"id": "r3", "verdict": "covered", "citation": "c2", "why": ""}
    assert graded["follow_up"]
    more = {"question": "pause", "answer": "先收后判断 _paused", "follow_up": True}
    better = client.post("/practice/grade", json=more).json()
    assert better["score"] > graded["score"]
    report = client.get("/practice/report.md").text
    assert "失败时归还工具" in report
    assert "先收后判断 _paused" in report


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"question": "pause"}', b'{"question": "nobody", "answer": "x"}',
     b'{"question": "pause", "answer": " "}', b'{"question": "pause", "answer": "x", "follow_up": true}',
     b'{"question": "pause", "answer": "' + b"x" * MAX_BODY_BYTES + b'"}'],
)  # fmt: skip
def test_a_body_that_is_no_answer_is_a_message(client: TestClient, body: bytes) -> None:
    """Red when bad input is a traceback."""
    answer = client.post("/practice/grade", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_selection_is_downloaded(client: TestClient) -> None:
    """Red when export ignores what was selected, or its form."""
    made = client.get("/export?format=json&id=pause")
    assert made.headers["content-disposition"] == 'attachment; filename="bank.json"'
    assert client.get("/export?format=exe").status_code == 400
    assert client.get("/export?format=md&id=nobody").status_code == 400


def test_serving_needs_no_torch() -> None:
    """Red when an import on the way to the page loads the engine."""
    code = (
        "import sys, viva.web.command, viva.render.export_command, viva.practice.command; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
