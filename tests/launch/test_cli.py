"""The command line: help that teaches, errors of one line, exit codes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = ("serve", "generate", "chat", "bench", "graph", "models")


def phloem(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phloem", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **kwargs)  # type: ignore[call-overload, no-any-return]


def test_help_shows_every_command_and_an_example_of_each() -> None:
    """Red when a command is added without a line that teaches it."""
    text = phloem("--help").stdout
    assert all(f"  phloem {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    """Red when `phloem COMMAND --help` fails or shows no example."""
    done = phloem(command, "--help")
    assert done.returncode == 0
    assert f"\n  phloem {command}" in done.stdout


def test_help_is_quick() -> None:
    """Red when the command line imports torch or the HTTP stack before it knows what is wanted."""
    fastest_s = min(_seconds("--help") for _ in range(3))
    assert fastest_s < 1.0  # 0.1 s on an idle machine; torch alone takes more than a second
    code = "import sys, phloem.launch.cli as cli; cli.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "starlette", "tokenizers", "rich", "zmq"} & set(done.stdout.split())


def _seconds(*arguments: str) -> float:
    started_s = time.monotonic()
    phloem(*arguments)
    return time.monotonic() - started_s


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve", "--port", "70000"], "port"),
        (["serve", "--max-running", "0"], "max_running"),
        (["serve", "--memory-gb", "nan", "--model", "dummy:null", "--port", "0"], "memory_gb"),
        (["serve", "--model", "dummy:null", "--max-running", "1000000000"], "max_running"),
        (["serve", "--model", "no/such/model"], "model"),
        (["serve", "--model", ""], "no model at ''"),
        (["serve", "./nothing.gguf"], "nothing.gguf"),
        (["serve", "dummy:null", "--model", "default"], "MODEL"),
        (["serve", "--config", "missing.toml"], "missing.toml"),
        (["serve", "--model", "dummy:null", "--host", "not a host"], "host"),
        (["serve", "--model", "dummy:no-such-family"], "no-such-family"),
        (["serve", "--model", "dummy:null", "--port", "0", "--chat-template", "missing.jinja"], "missing.jinja"),
        (["models", "fetch", "dummy:null"], "nothing to fetch"),
        (["bench", "--only", "a,z", "--model", "dummy:null"], "'z'"),
        (["chat", "--url", "localhost"], "--url"),
    ],
)
def test_what_the_caller_got_wrong_is_one_line_and_exit_code_2(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    """Red when a mistake on the command line ends in a traceback, in silence, or in another exit code."""
    done = phloem(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("phloem: error: ")]
    assert named in line


def test_an_unknown_option_of_a_file_is_named(tmp_path: Path) -> None:
    """Red when a misspelt key in --config is ignored."""
    file = tmp_path / "phloem.toml"
    file.write_text("max-runing = 3\n")
    done = phloem("serve", "--config", str(file))
    assert done.returncode == 2
    assert "max_runing" in done.stderr


def test_a_port_in_use_is_found_before_anything_slow() -> None:
    """Red when the port is tried after the model was loaded, or the message does not name port and remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started_s = time.monotonic()
        done = phloem("serve", "--model", "dummy:null", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "--port" in done.stderr
    assert time.monotonic() - started_s < 3


def test_debug_shows_where_an_error_came_from() -> None:
    """Red when --log-level debug hides the traceback."""
    assert "Traceback" in phloem("serve", "--model", "no/such/model", "--log-level", "debug").stderr
