"""Rotary frequencies and the ways there are to stretch them. All return float32 [head_dim / 2]."""

from __future__ import annotations

from math import log, pi

import numpy as np
import numpy.typing as npt

from phloem.models.definition import Rope
from phloem.models.fields import MAX_CONTEXT, Fields

Frequencies = npt.NDArray[np.float32]


def read_rope(fields: Fields, head_dim: int, max_context: int) -> Rope:
    """From config.json: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling`."""
    table = fields.table("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    theta = table.number("rope_theta") if "rope_theta" in table else fields.number("rope_theta", 10_000.0)
    for owner in (table, fields):
        if owner.number("partial_rotary_factor", 1.0) != 1.0:
            raise owner.error("partial_rotary_factor", "is not 1: partial rotation is not supported")
    kind = table.get("rope_type") or table.get("type") or "default"
    plain = base_frequencies(theta, head_dim)
    match kind:
        case "default" | "dynamic":  # dynamic scaling starts beyond max_context, which this engine does not pass
            return Rope(plain)
        case "linear":
            return Rope(linear(plain, table.number("factor")))
        case "llama3":
            return Rope(
                llama3(
                    plain,
                    factor=table.number("factor"),
                    low=table.number("low_freq_factor"),
                    high=table.number("high_freq_factor"),
                    original=table.integer("original_max_position_embeddings", most=MAX_CONTEXT),
                )
            )
        case "yarn":
            return _read_yarn(table, theta, plain, max_context)
    raise table.error("rope_type", f"is {kind!r}; supported: default, dynamic, linear, llama3, yarn")


def base_frequencies(theta: float, head_dim: int) -> Frequencies:
    """theta^(-2i/d): Su et al. 2021, "RoFormer", section 3.2.2."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: Frequencies = 1.0 / np.power(np.float32(theta), exponents)
    return frequencies


def linear(plain: Frequencies, factor: float) -> Frequencies:
    """Positions squeezed by `factor`: Chen et al. 2023, "Position Interpolation"."""
    return plain / np.float32(factor)


def llama3(plain: Frequencies, *, factor: float, low: float, high: float, original: int) -> Frequencies:
    """Long waves squeezed by `factor`, short ones kept, a ramp between: the Llama 3.1 release's `apply_scaling`."""
    waves = 2 * pi / plain
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return np.asarray((1 - smooth) * plain / factor + smooth * plain, np.float32)


def yarn(
    plain: Frequencies,
    *,
    theta: float,
    factor: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Frequencies:
    """Peng et al. 2023, "YaRN", section 3.2: dims that turn often keep their pace, slow ones are interpolated."""
    head_dim = 2 * len(plain)

    def dim_that_turns(rotations: float) -> float:
        return head_dim * log(original / (rotations * 2 * pi)) / (2 * log(theta))

    low, high = dim_that_turns(beta_fast), dim_that_turns(beta_slow)
    if truncate:
        low, high = float(np.floor(low)), float(np.ceil(high))
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    span = high - low if high != low else 0.001
    interpolated = np.clip((np.arange(len(plain)) - low) / span, 0.0, 1.0)
    return np.asarray(plain * (1 - interpolated) + plain / factor * interpolated, np.float32)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies queries and keys by: 0.1 ln(s) + 1 (section 3.4)."""
    return 0.1 * mscale * log(factor) + 1.0 if factor > 1 else 1.0


def _read_yarn(table: Fields, theta: float, plain: Frequencies, max_context: int) -> Rope:
    factor, original = (
        table.number("factor"),
        table.integer("original_max_position_embeddings", max_context, most=MAX_CONTEXT),
    )
    attention_factor = yarn_attention_factor(factor)
    if "mscale" in table and "mscale_all_dim" in table:
        over, under = (yarn_attention_factor(factor, table.number(name)) for name in ("mscale", "mscale_all_dim"))
        attention_factor = over / under
    stretched = yarn(
        plain,
        theta=theta,
        factor=factor,
        original=original,
        beta_fast=table.number("beta_fast", 32.0),
        beta_slow=table.number("beta_slow", 1.0),
        truncate=table.boolean("truncate", True),
    )
    return Rope(stretched, table.number("attention_factor", attention_factor))
