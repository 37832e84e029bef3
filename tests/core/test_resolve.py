"""Configuration: layers, sources, errors."""

from __future__ import annotations

import pytest

from phloem.core.errors import ConfigError
from phloem.core.resolve import resolve


def test_flags_win_over_the_file_and_every_value_knows_its_source() -> None:
    resolved = resolve(file={"port": 1, "host": "::1"}, flags={"port": 2})
    assert (resolved.config.port, resolved.config.host) == (2, "::1")
    assert [resolved.sources[name] for name in ("port", "host", "model")] == ["flag", "file", "default"]


def test_derived_values_are_checked_and_marked() -> None:
    resolved = resolve().derive(threads=3)
    assert resolved.config.threads == 3
    assert resolved.sources["threads"] == "derived"
    with pytest.raises(ConfigError):
        resolved.derive(threads=0)


@pytest.mark.parametrize(
    ("flags", "field"),
    [({"prot": 1}, "prot"), ({"port": -1}, "port"), ({"port": "x"}, "port"), ({"policy": "random"}, "policy")],
)
def test_an_unknown_or_wrong_option_is_named(flags: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        resolve(flags=flags)
    assert error.value.field == field


def test_a_wrong_word_is_answered_with_the_right_ones() -> None:
    """Red when the message of a choice does not name what can be chosen."""
    with pytest.raises(ConfigError, match="choose from auto, bfloat16, float16, float32"):
        resolve(flags={"dtype": "float8"})


@pytest.mark.parametrize("name", ["memory_gb", "max_body_mb", "drain_timeout_s"])
def test_infinity_is_out_of_range(name: str) -> None:
    """Red when an infinite size or time is accepted: JSON, which carries the options to the engine, has none."""
    with pytest.raises(ConfigError, match=rf"option {name}: .* \(given: inf\)"):
        resolve(flags={name: float("inf")})
