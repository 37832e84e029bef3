"""Options are generated from Config, and flags win over the file."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.core.resolve import Resolved
from phloem.launch.options import GROUPS, OFFLINE_OMITS, add_options, resolve_options


def parse(*arguments: str) -> Resolved:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return resolve_options(parser.parse_args(arguments))


def test_without_flags_every_value_is_the_default() -> None:
    """Red when the parser brings defaults of its own."""
    resolved = parse()
    assert resolved.config == Config()
    assert set(resolved.sources.values()) == {"default"}


def test_every_field_is_a_flag_with_its_type() -> None:
    """Red when a type of Config is not understood."""
    config = parse(
        "--threads", "2", "--memory-gb", "1.5", "--no-prefix-cache", "--policy", "fcfs", "--api-key", "k"
    ).config
    assert (config.threads, config.memory_gb, config.prefix_cache) == (2, 1.5, False)
    assert (config.policy, config.api_key) == ("fcfs", "k")


def test_a_flag_wins_over_the_file_and_both_are_remembered(tmp_path: Path) -> None:
    """Red when the order of the layers changes."""
    file = tmp_path / "a.toml"
    file.write_text("port = 1234\nmax-running = 7\n")
    resolved = parse("--config", str(file), "--port", "4321")
    assert (resolved.config.port, resolved.config.max_running) == (4321, 7)
    assert (resolved.sources["port"], resolved.sources["max_running"]) == ("flag", "file")


@pytest.mark.parametrize("content", ["port = ", "\x00", "port = 'x'", "nonsense = 1"])
def test_a_wrong_file_is_a_config_error(tmp_path: Path, content: str) -> None:
    """Red when a broken or mistyped file raises anything else."""
    file = tmp_path / "a.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        parse("--config", str(file))


def test_the_file_is_not_blamed_for_a_flag(tmp_path: Path) -> None:
    """Red when every error names the file that happened to be given."""
    file = tmp_path / "a.toml"
    file.write_text("port = 1")
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file), "--threads", "0")
    assert "a.toml" not in caught.value.message


def test_help_states_bounds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when help loses what Config knows."""
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "token budget of one step; default: 1024 on a CPU, 8192 on a GPU (>= 1, <= 16384)" in text
    assert "port to listen on; 0: any free one (>= 0, <= 65535; default 8000)" in text


def test_omitted_options_exist() -> None:
    """Red when an option is renamed and the list of those without meaning offline is forgotten."""
    assert set(OFFLINE_OMITS) <= {name for names in GROUPS.values() for name in names}
