"""generate, chat, bench, graph and models as a user types them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess


def phloem(*arguments: str, said: str = "", home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with `said` on standard input."""
    import os

    env = dict(os.environ)
    if home is not None:
        env["XDG_STATE_HOME"] = str(home)
    command = [sys.executable, "-m", "phloem", *arguments]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=60, check=False, env=env)


def test_generate_prints_the_text_and_nothing_else() -> None:
    """Red when notes reach standard output, where a script reads the answer."""
    done = phloem("generate", "Hello", "--model", "dummy:null", "--max-tokens", "12")
    assert (done.returncode, len(done.stdout)) == (0, 12 + len("\n"))


def test_generate_reads_standard_input() -> None:
    """Red when `-` is taken for the prompt: greedy text depends on the prompt alone."""
    typed = phloem("generate", "Hello there", "--model", "dummy:null", "--max-tokens", "12")
    piped = phloem("generate", "-", "--model", "dummy:null", "--max-tokens", "12", said="Hello there")
    assert typed.stdout == piped.stdout


def test_generate_refuses_what_http_refuses() -> None:
    """Red when sampling options are not checked."""
    done = phloem("generate", "Hello", "--model", "dummy:null", "--top-p", "7")
    assert done.returncode == 2
    assert "phloem: error: top_p" in done.stderr


def test_chat_answers_every_line_and_knows_its_commands(tmp_path: Path) -> None:
    """Red when a command is sent to the model, an answer is missing, or the end of input is an error."""
    said = "/help\nHello\n/clear\nAgain\n"
    done = phloem("chat", "dummy:null", "--max-tokens", "12", said=said, home=tmp_path)
    assert done.returncode == 0
    assert "/system TEXT" in done.stdout
    answers = [line for line in done.stdout.replace("> ", "\n").splitlines() if len(line) == 12]
    assert len(answers) == 2
    assert (tmp_path / "phloem" / "history").is_file()


def test_chat_with_a_server(shared_server: ServerProcess, tmp_path: Path) -> None:
    """Red when --url does not stream, or a server's refusal ends the conversation."""
    said = "Hello\n" + "x" * 5000 + "\nstill there?\n"
    done = phloem("chat", "--url", shared_server.url, "--max-tokens", "12", said=said, home=tmp_path)
    assert done.returncode == 0
    assert "the server refused" in done.stderr
    assert len([line for line in done.stdout.replace("> ", "\n").splitlines() if len(line) == 12]) == 2


def test_chat_without_a_server_says_so(tmp_path: Path) -> None:
    """Red when a refused connection is a traceback."""
    done = phloem("chat", "--url", "http://127.0.0.1:9", said="Hello\n", home=tmp_path)
    assert "is the server running?" in done.stderr
    assert "Traceback" not in done.stderr


CHUNK = b'data: {"choices": [{"delta": {"content": "Once upon"}}]}\n\n'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (CHUNK, "ended in the middle of the answer"),
        (CHUNK + b"data: 5\n\n", "cannot talk to"),
        (CHUNK + b'data: {"error": {"message": "out of ink"}}\n\n', "out of ink"),
    ],
)
def test_chat_with_a_server_that_fails_in_the_middle(answer: bytes, said: str, tmp_path: Path) -> None:
    """Red when half an answer is taken for a whole one, or nonsense from a server is a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_answer_once, args=(listener, answer))
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = phloem("chat", "--url", url, said="Hello\n", home=tmp_path)
        server.join()
    assert "Once upon" in done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as request:
        length = 0
        while (line := request.readline().lower().strip()) != b"":
            length = int(line.split(b":")[1]) if line.startswith(b"content-length:") else length
        request.read(length)  # closing with unread bytes would reset the connection
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + answer)


def test_chat_with_a_wrong_url_says_so(tmp_path: Path) -> None:
    """Red when a URL that urllib cannot read is a traceback."""
    done = phloem("chat", "--url", "http://[", said="Hello\n", home=tmp_path)
    assert "cannot talk to" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_prints_a_table_and_writes_rows(tmp_path: Path) -> None:
    """Red when a workload fails, or its row is missing from the file."""
    file = tmp_path / "rows.json"
    done = phloem("bench", "dummy:null", "--json", str(file))
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert [row["metric"] for row in rows] == ["time to first token", "decode", "prefill", "output", "output"]
    assert all(row["value"] > 0 and row["workload"][:2] in done.stdout for row in rows)


def test_graph_shows_the_stages_and_knows_their_names() -> None:
    """Red when `phloem graph` loses a pass, or a wrong name is not answered with the right ones."""
    done = phloem("graph", "dummy:qwen3-tiny")
    assert done.returncode == 0, done.stderr
    assert "trace" in done.stdout
    assert "merge_linears" in done.stdout
    wrong = phloem("graph", "dummy:qwen3-tiny", "--pass", "no_such_pass")
    assert wrong.returncode == 2
    assert "merge_linears" in wrong.stderr


@pytest.mark.parametrize("name", ["default", "dummy:null", "dummy:qwen3-0.6b"])
def test_models_lists_what_can_be_served(name: str) -> None:
    """Red when a name disappears from the list."""
    assert name in phloem("models").stdout
