"""Weight recipes carried out on a device: each tensor is uploaded as stored, joined and permuted there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np
import torch

from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.ops.fp8 import FP8, quantize_rows
from phloem.graph.weights import (
    Columns,
    Concat,
    Constant,
    Fp8Numbers,
    Fp8Scales,
    Rows,
    Stored,
    WeightRecipe,
    load_raw,
    to_torch,
)
from phloem.kernels.spec import RawWeight

_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NUM_READERS = 8
"""Threads that read and decode tensors ahead of the device."""


def load_parameters(
    recipes: Mapping[str, WeightRecipe], checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Every parameter on `device` in its type (`type_of`). ModelError as `load_raw`."""
    scales = {id(recipe.source): name for name, recipe in recipes.items() if isinstance(recipe, Fp8Scales)}
    parameters: dict[str, torch.Tensor] = {}
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="phloem-load") as readers:
        waiting: list[tuple[tuple[str, ...], Future[tuple[torch.Tensor, ...]]]] = []
        for name, recipe in recipes.items():
            if isinstance(recipe, Fp8Numbers):  # with its scales: the source is read once
                both = (name, scales[id(recipe.source)])
                waiting.append((both, readers.submit(_make_fp8, recipe.source, checkpoint, dtype, device)))
            elif not isinstance(recipe, Fp8Scales):
                kept = type_of(name, recipe, dtype)
                waiting.append(((name,), readers.submit(_make_plain, recipe, checkpoint, kept, device)))
        for names, future in waiting:
            parameters |= zip(names, future.result(), strict=True)
    return parameters


def type_of(name: str, recipe: WeightRecipe, activation: torch.dtype) -> torch.dtype:
    """What a parameter is kept in: 8-bit floats where quantized, with float32 scales; frequencies float32; else the
    activation type."""
    if isinstance(recipe, Fp8Numbers):
        return FP8
    return torch.float32 if name == "inv_freq" or isinstance(recipe, Fp8Scales) else activation


def _make_plain(
    recipe: WeightRecipe, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor]:
    return (_make(recipe, checkpoint, dtype, device),)


def _make_fp8(
    source: WeightRecipe, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers, scales) of a matrix that is on the device in `dtype` for a moment."""
    return quantize_rows(_make(source, checkpoint, dtype, device))


def _make(recipe: WeightRecipe, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The tensor of a recipe. Parts of a join are written where they belong: nothing is on the device twice."""
    out = torch.empty(recipe.shape, dtype=dtype, device=device)
    start = 0
    for part in _parts(recipe):
        rows = out[start : start + part.shape[0]]
        start += part.shape[0]
        _fill(rows, part, checkpoint)
    return out


def _parts(recipe: WeightRecipe) -> Iterator[WeightRecipe]:
    if isinstance(recipe, Concat):
        for part in recipe.parts:
            yield from _parts(part)
    else:
        yield recipe


def _fill(out: torch.Tensor, recipe: WeightRecipe, checkpoint: Checkpoint) -> None:
    match recipe:
        case Stored(name, shape):
            entry = checkpoint.tensors.entries.get(name)
            if entry is not None and entry.pattern is not None:
                _repeat(out, entry.pattern(), shape)
            else:
                _upload(out, load_raw(recipe, checkpoint))
        case Constant():
            _upload(out, load_raw(recipe, checkpoint))
        case Rows(source, index):
            whole = torch.empty(source.shape, dtype=out.dtype, device=out.device)
            _fill(whole, source, checkpoint)
            rows = index if isinstance(index, slice) else torch.from_numpy(np.asarray(index)).to(out.device)
            out.copy_(whole[rows])
        case Columns(source, index):
            whole = torch.empty(source.shape, dtype=out.dtype, device=out.device)
            _fill(whole, source, checkpoint)
            out.copy_(whole[:, index])
        case Concat() | Fp8Numbers() | Fp8Scales():
            raise AssertionError("joins and 8-bit floats are not parts of anything on a device")


def _upload(out: torch.Tensor, raw: RawWeight) -> None:
    """Plain floats travel as stored and are converted on the device; quantized blocks are decoded here."""
    stored = _TORCH_TYPES.get(raw.encoding)
    if stored is None:
        out.copy_(to_torch(raw, out.dtype))
        return
    host = torch.from_numpy(np.ascontiguousarray(raw.data)).view(stored).reshape(raw.shape)
    out.copy_(host)


def _repeat(out: torch.Tensor, pattern: RawWeight, shape: tuple[int, ...]) -> None:
    """Fill `out` with a run of numbers, over and over: only the run travels."""
    run = torch.empty(pattern.shape, dtype=out.dtype, device=out.device)
    _upload(run, pattern)
    flat, length = out.view(-1), run.numel()
    whole = prod(shape) // length
    flat[: whole * length].view(whole, length).copy_(run.expand(whole, length))
    flat[whole * length :].copy_(run[: prod(shape) - whole * length])
