"""Which linears become 8-bit ones, and what their parameters are made of."""

from __future__ import annotations

import torch
from torch import nn

from phloem.graph.compile import mark
from phloem.graph.ir import calls
from phloem.graph.ops.fp8 import linear_fp8
from phloem.graph.ops.model import embed, linear, rms_norm
from phloem.graph.passes.quantize_fp8 import quantize_fp8
from phloem.graph.trace import trace
from phloem.graph.verify import verify
from phloem.graph.weights import Fp8Numbers, Fp8Scales, Stored


def test_every_linear_but_the_head(compiled, count) -> None:
    """Red if a linear of a layer keeps its type, the LM head loses its, or numbers and scales get two sources."""
    step = compiled("qwen2-tiny")
    before, after = step.stages[-1], quantize_fp8(step.stages[-1])
    verify(after, step.layers, lowered=True)
    assert (count(after)["linear"], count(after)["linear_fp8"]) == (1, count(before)["linear"] - 1)
    for node in calls(after.graph, linear_fp8):
        weight, scale = (str(node.args[index].target) for index in (1, 2))
        numbers, scales = after.recipes[weight], after.recipes[scale]
        assert isinstance(numbers, Fp8Numbers)
        assert isinstance(scales, Fp8Scales)
        assert numbers.source is scales.source is before.recipes[weight]


class Odd(nn.Module):
    """Linears over a table that tokens are looked up in, a matrix of 40 rows, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "table": (32, 32),
            "norm": (32,),
            "ragged": (40, 32),
            "back": (32, 40),
            "plain": (48, 32),
            "head": (9, 48),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape, device="meta"))

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = linear(rms_norm(embed(token_ids, self.table), self.norm, 1e-6), self.table)
        x = linear(linear(x, self.ragged), self.back)
        return linear(linear(x, self.plain), self.head, None, True)


def test_ragged_and_shared_weights_are_left_alone() -> None:
    """Red if a matrix that the units cannot take, or whose rows somebody else looks up, is rounded to 8 bits."""
    module = Odd()
    recipes = {name: Stored(name, tuple(value.shape)) for name, value in module.named_buffers()}
    after = quantize_fp8(mark(trace(module, recipes), ()))
    assert [node.args[1].target for node in calls(after.graph, linear_fp8)] == ["plain"]
