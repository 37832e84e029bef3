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


if HAS_TRITON and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    _let_scalars_bound_ranges()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
