"""The static inputs of a step program: buffers at fixed addresses, refilled every step, and the sizes in use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StepLimits:
    """Upper bounds that size every static buffer."""

    max_tokens: int
    max_rows: int
    max_pages_per_row: int


@dataclass(frozen=True)
class StepDims:
    """How much of each static buffer this step uses."""

    num_tokens: int
    num_rows: int
    num_logits: int
    num_shared: int = 0


class StepInputs:
    """int32 buffers on the host; `tensor(name)` and `array(name)` are two views of the same memory.

    Shapes, with T `max_tokens` and R `max_rows`: `token_ids`, `positions`, `slots`, `logit_rows` [T]; `query_start`
    [R + 1]; `context_len` [R]; `block_table` [R, max_pages_per_row]; `shared_start` [R + 1], `shared_rows` and
    `shared_pages` [R]. What they mean stands with `paged_attention` in graph/ops.
    """

    def __init__(self, limits: StepLimits) -> None:
        tokens, rows = limits.max_tokens, limits.max_rows
        shapes: dict[str, tuple[int, ...]] = {
            "token_ids": (tokens,),
            "positions": (tokens,),
            "slots": (tokens,),
            "logit_rows": (tokens,),
            "query_start": (rows + 1,),
            "context_len": (rows,),
            "block_table": (rows, limits.max_pages_per_row),
            "shared_start": (rows + 1,),
            "shared_rows": (rows,),
            "shared_pages": (rows,),
        }
        self.limits = limits
        self._tensors = {name: torch.zeros(shape, dtype=torch.int32) for name, shape in shapes.items()}
        self._arrays: dict[str, IntArray] = {name: tensor.numpy() for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """The whole buffer as a tensor."""
        return self._tensors[name]

    def array(self, name: str) -> IntArray:
        """The whole buffer as an array, for filling."""
        return self._arrays[name]

    def in_use(self, dims: StepDims) -> dict[str, torch.Tensor]:
        """Every input cut to what the step uses."""
        lengths = {
            "token_ids": dims.num_tokens,
            "positions": dims.num_tokens,
            "slots": dims.num_tokens,
            "logit_rows": dims.num_logits,
            "query_start": dims.num_rows + 1,
            "context_len": dims.num_rows,
            "block_table": dims.num_rows,
            "shared_start": dims.num_shared + 1,
            "shared_rows": int(self._arrays["shared_start"][dims.num_shared]),
            "shared_pages": dims.num_shared,
        }
        return {name: self._tensors[name][:length] for name, length in lengths.items()}
