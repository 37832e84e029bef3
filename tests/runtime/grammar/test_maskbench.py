"""A sample of MaskBench: valid instances are accepted token by token, invalid ones rejected (all: bench.maskbench)."""

from __future__ import annotations

import pytest
from bench import maskbench

pytestmark = pytest.mark.skipif(not maskbench.SCHEMAS.exists(), reason="MaskBench is not on this machine")

EVERY = 16


@pytest.fixture(scope="module")
def outcomes(default_compiler):
    return [maskbench.judge(default_compiler, entry) for entry in maskbench.read_schemas(every=EVERY)]


def test_only_what_is_published_as_failing_fails(outcomes):
    """Red when a schema is refused that the library is known to compile, a valid instance is rejected, an invalid one
    is accepted, or the sample became a different one."""
    assert maskbench.unexpected(outcomes, maskbench.read_expected()) == []
    found = maskbench.summary(outcomes)
    assert found["schemas"] == 498
    assert found["compiled"] > 400
    assert found["valid_instances"] > 400
    assert found["invalid_instances"] > 700


def test_what_is_refused_has_a_reason(outcomes):
    """Red when a refusal does not name the construct that is not supported."""
    refused = [outcome.refused for outcome in outcomes if outcome.refused]
    assert refused
    assert all(10 < len(reason) < 700 for reason in refused)
