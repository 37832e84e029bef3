"""`phloem graph` prints what it promises."""

from __future__ import annotations

import pytest

from phloem.core.errors import ConfigError
from phloem.graph.show import show
from phloem.models.catalog import define_dummy


@pytest.fixture
def shown(compiled):
    def text(**options) -> str:
        return show(compiled("qwen3-tiny"), define_dummy("qwen3-tiny").checkpoint, **options)

    return text


def test_counts_and_one_layer_of_each_stage(shown) -> None:
    """Red if a stage is missing, its counts are wrong, or a layer is not cut out of the graph."""
    text = shown()
    assert [line.split()[1:] for line in text.splitlines() if line.startswith("linear  ")] == [["15"] + ["9"] * 5]
    for name in ("trace", "merge_linears", "fuse_residual_norm", "fuse_activation", "fuse_rope_kv_write"):
        assert f"== {name} (one layer) ==" in text
    layer = text.split("== select_last_rows (one layer) ==")[1]
    assert layer.count("paged_attention(") == 1
    assert "linear(getitem_2, attention.q_k_v)" in layer
    assert "lm_head" not in layer
    assert "whole step" in layer


def test_one_stage_in_full(shown) -> None:
    """Red if --full leaves nodes out or --pass prints another stage."""
    text = shown(only="trace", full=True)
    assert "== trace (all nodes) ==" in text
    assert "merge_linears" not in text
    assert "embed.weight" in text
    assert text.count("attention(") == 2


def test_unknown_pass_is_an_option_error(shown) -> None:
    """Red if a wrong name prints nothing."""
    with pytest.raises(ConfigError, match="there is no pass 'fuse'; there are trace, merge_linears"):
        shown(only="fuse")
