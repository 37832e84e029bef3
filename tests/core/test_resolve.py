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
