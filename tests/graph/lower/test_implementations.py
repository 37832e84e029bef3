"""The generic test: the native implementation of every lowered op against its reference, on the op's own examples.

Red when a kernel, the packing of weights or the cache layout computes anything else than the op's contract says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from phloem.graph.lower.cpu import NATIVE, REFERENCE, REGISTRY
from phloem.graph.ops.contract import Op
from phloem.graph.ops.vocabulary import LOWERED_OPS
from phloem.kernels.cpu import library
from phloem.kernels.cpu.kv_layout import pack_pages, unpack_pages
from phloem.kernels.cpu.pack import Packer
from phloem.kernels.cpu.tape import AttentionMeta, CacheShape, Dims, Rows, Tape

EXAMPLES = [
    pytest.param(op, dtype, index, id=f"{op.name}-{str(dtype).removeprefix('torch.')}-{index}")
    for op in LOWERED_OPS.values()
    for dtype in (torch.float32, torch.bfloat16)
    for index in range(len(list(op.examples(torch.Generator(), dtype))))
]


def test_every_lowered_op_has_both() -> None:
    """Red when an op joins the vocabulary without a kernel, or without its reference registered."""
    registered = {name: {each.name for each in REGISTRY.candidates(name)} for name in LOWERED_OPS}
    assert registered == {name: {NATIVE, REFERENCE} for name in LOWERED_OPS}


@pytest.mark.parametrize(("op", "dtype", "index"), EXAMPLES)
def test_native_equals_reference(op: Op, dtype: torch.dtype, index: int) -> None:
    found = library.load()
    if found.library is None:
        pytest.skip(found.reason)
    example = list(op.examples(torch.Generator().manual_seed(7), dtype))[index]
    pool = found.library.pool(2)
    native = OneOp(Tape(found.library, pool), Packer(found.library, pool), dtype)
    actual = getattr(native, op.name)(*example)  # before the reference, which writes into the example's cache
    out = op(*example)
    expected = list(out) if isinstance(out, tuple) else [out]
    if op.name == "rope_kv_write":
        expected.append(example[-1])
    for ours, theirs in zip(actual, expected, strict=True):
        theirs = theirs.float().reshape(ours.shape)
        scale = theirs.abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=op.tolerance[dtype] * max(scale, 1e-6))


class OneOp:
    """A tape with a single op. Each method takes the arguments of the op of its name and returns its results."""

    def __init__(self, tape: Tape, packer: Packer, dtype: torch.dtype) -> None:
        self.tape, self.dtype = tape, dtype
        self._pack: Callable[[torch.Tensor], Any] = lambda weight: packer.pack(
            weight.contiguous(), storage="f32" if dtype == torch.float32 else "bf16"
        )

    def embed(self, token_ids: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        out = torch.empty(len(token_ids), weight.shape[1])
        self.tape.embed(token_ids, self._pack(weight if self.dtype == torch.float32 else weight.bfloat16()), out)
        return self._run(len(token_ids), out)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> list[torch.Tensor]:
        out = torch.empty(x.shape, dtype=weight.dtype)
        self.tape.rms_norm(x, weight.float(), out, eps=eps)
        return self._run(len(x), out)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> list[torch.Tensor]:
        out, total = torch.empty_like(x), torch.empty_like(residual)
        self.tape.add_rms_norm(x, residual, weight.float(), out, eps=eps, new_residual=total)
        return self._run(len(x), out, total)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, float32_out: bool
    ) -> list[torch.Tensor]:
        out = torch.empty(len(x), len(weight), dtype=torch.float32 if float32_out else x.dtype)
        self.tape.linear(x, self._pack(weight), out, bias=bias)
        return self._run(len(x), out)

    def rope_kv_write(self, qkv: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        q_norm, k_norm, eps, positions, slots, inv_freq, plain = arguments
        shape, cache = self._cache(plain)
        out = torch.empty(len(qkv), qkv.shape[1] - 2 * shape.num_kv_heads * shape.head_dim, dtype=self.dtype)
        self.tape.rope_kv_write(
            qkv,
            out,
            cache,
            shape=shape,
            positions=positions.contiguous(),
            slots=slots.contiguous(),
            inv_freq=inv_freq.float(),
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
        )
        results = self._run(len(qkv), out)
        halves = unpack_pages(
            cache, num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim, page_size=shape.page_size
        )
        return [*results, torch.stack(halves, dim=1)]

    def paged_attention(self, q: torch.Tensor, plain: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        *meta, scale, window = arguments
        shape, cache = self._cache(plain)
        out = torch.empty(len(q), q.shape[1] * q.shape[2], dtype=self.dtype)
        self.tape.paged_attention(
            q, cache, out, meta=AttentionMeta(*meta), shape=shape, num_heads=q.shape[1], scale=scale, window=window
        )
        return self._run(len(q), out, num_rows=len(meta[1]), num_groups=len(meta[5]))

    def silu_mul(self, gate_up: torch.Tensor) -> list[torch.Tensor]:
        out = torch.empty(len(gate_up), gate_up.shape[1] // 2, dtype=self.dtype)
        self.tape.silu_mul(gate_up, out, rows=Rows.TOKENS)
        return self._run(len(gate_up), out)

    def select_rows(self, x: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
        out = torch.empty(len(index), x.shape[1], dtype=x.dtype)
        self.tape.select_rows(x, index, out)
        return self._run(len(x), out, num_logit_rows=len(index))

    def _cache(self, plain: torch.Tensor) -> tuple[CacheShape, torch.Tensor]:
        """The reference's cache [P, 2, S, K, d] in the kernels' layout."""
        _, _, page_size, num_kv_heads, head_dim = plain.shape
        shape = CacheShape(num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size)
        return shape, pack_pages(plain[:, 0].contiguous(), plain[:, 1].contiguous())

    def _run(
        self, num_tokens: int, *outs: torch.Tensor, num_rows: int = 1, num_groups: int = 0, num_logit_rows: int = 0
    ) -> list[torch.Tensor]:
        self.tape.run(Dims(num_tokens, num_logit_rows, num_rows, num_groups))
        return list(outs)
