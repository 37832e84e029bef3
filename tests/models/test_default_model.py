"""The real default model, read from GGUF by us and by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phloem.graph.checkpoint.open import open_checkpoint
from phloem.models.catalog import define_model

transformers = pytest.importorskip("transformers")

TEXT = [
    1,
    9690,
    198,
    2683,
    359,
    253,
    5356,
    5646,
    11173,
    3365,
    3511,
    308,
    34519,
    28,
    7018,
    411,
    407,
    19712,
    8182,
    2,
    198,
]


def test_definition(default_model: Path) -> None:
    """Red if a number of the default model is read wrongly from its metadata."""
    definition = define_model(open_checkpoint(default_model))
    dims = definition.dims
    assert definition.family.name == "llama"
    assert (dims.num_layers, dims.hidden, dims.num_heads, dims.num_kv_heads, dims.head_dim) == (30, 576, 9, 3, 64)
    assert (dims.ffn, dims.vocab, dims.max_context, dims.tied) == (1536, 49152, 8192, True)
    assert (definition.bos_id, definition.eos_ids) == (1, (2,))
    assert dims.windows == (None,) * 30
    assert dims.rope.inv_freq[1] == pytest.approx(1e5 ** (-2 / 64))


@pytest.mark.slow
@torch.no_grad()
def test_logits_equal_transformers(default_model: Path, driver_for, schedules) -> None:
    """Red if a quantized block, the row order of q and k, or tying goes wrong on the real file."""
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        default_model.parent, gguf_file=default_model.name, dtype=torch.float32
    )
    expected = oracle(torch.tensor([TEXT])).logits[0]
    (logits,) = driver_for(default_model).lowered([TEXT], schedules["whole"]([TEXT]))
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=0)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
