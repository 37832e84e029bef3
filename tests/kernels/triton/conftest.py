"""Triton kernels are tested on whatever is there: a GPU, else Triton's interpreter on the CPU.

The interpreter is chosen when a kernel is decorated, so this runs before any test of the folder imports one.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch

HAS_TRITON = find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["test_*.py"]


def _let_scalars_bound_ranges() -> None:
    """Triton 3.6's interpreter keeps scalars in arrays of one element, which numpy 2.4 no longer takes for an index."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _round_to_fp8_as_the_device_does() -> None:
    """Triton 3.6's interpreter loses the carry of a rounding and drops bits of subnormals; torch does neither."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float

    def patched(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target == tl.float8e4nv and source == tl.float32:
            return torch.from_numpy(values.astype(np.float32)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        if source == tl.float8e4nv and target in (tl.float16, tl.float32):
            wide = torch.from_numpy(values.astype(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
            return wide.astype(np.float16 if target == tl.float16 else np.float32)
        return original(values, source, target, rounding)

    interpreter._convert_float = patched


if HAS_TRITON and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    _let_scalars_bound_ranges()
    _round_to_fp8_as_the_device_does()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
