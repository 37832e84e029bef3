"""The examples of docs/structured-output.md, run as they are printed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "structured-output.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
          "json_schema", "regex", "ebnf")  # fmt: skip


@pytest.fixture(scope="module")
def server(start_server):
    started = start_server()
    yield started
    started.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
@pytest.mark.parametrize("script", [text for kind, text in BLOCKS if kind == "bash"])
def test_curl_examples(server, script):
    """Red when an example of the page is no longer accepted, or its answer is not whole."""
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, server.url)], capture_output=True, text=True, timeout=60, check=True
    )
    answers = re.split(r"(?<=\})(?=\{\"id\")", done.stdout.replace("\n", ""))
    assert len(answers) == script.count("curl ")
    for answer in map(json.loads, answers):
        assert answer["choices"][0]["finish_reason"] in ("stop", "length"), answer


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python" and "LLM()" not in text])
def test_python_examples(server, code):
    """Red when an example of the page fails."""
    exec(compile(code.replace(ADDRESS, server.url), str(PAGE), "exec"), {})


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python" and "LLM()" in text])
def test_offline_examples(default_model, code, capsys):
    """Red when an offline example of the page fails, or says nothing."""
    exec(compile(code, str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_every_field_has_its_examples():
    """Red when a field is taken that no curl or no Python example shows."""
    for kind in ("bash", "python"):
        texts = "".join(text for each, text in BLOCKS if each == kind)
        assert [field for field in FIELDS if field not in texts] == []
