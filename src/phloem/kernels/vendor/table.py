"""The function of each implementation that implementations.py lists, by op name; as kernels/triton/table.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from phloem.kernels.vendor.flash_attention3 import paged_attention

FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType({"paged_attention": paged_attention})
