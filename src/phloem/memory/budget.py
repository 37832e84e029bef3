"""How many pages fit: measured free memory turned into a number, with the arithmetic in words."""

from __future__ import annotations

from pathlib import Path

import msgspec

from phloem.core.errors import ConfigError
from phloem.memory.spec import LayerState, bytes_per_page

GB, MB = 1e9, 1e6
FREE_FRACTION = 0.4
"""Of the host's free memory, what the cache may take when nobody says; the rest is for everybody else."""
DEVICE_MARGIN = 0.02
"""Of a device's memory, what nothing is planned for."""


class PageBudget(msgspec.Struct, frozen=True):
    """A solved pool: `num_pages` pages of `bytes_per_page` bytes, for contexts of up to `max_model_len` tokens.

    `arithmetic` says in one line how the numbers came about.
    """

    num_pages: int
    pages_per_sequence: int
    max_model_len: int
    bytes_per_page: int
    arithmetic: str


def solve_pages(
    *,
    layers: tuple[LayerState, ...],
    page_size: int,
    bytes_per_element: int,
    model_context: int,
    max_model_len: int | None,
    max_running: int,
    free_bytes: int,
    memory_gb: float | None,
    free_fraction: float = FREE_FRACTION,
) -> PageBudget:
    """Pages for `max_running` sequences of the longest context, or as many as the memory allows.

    `memory_gb` is the user's bound in GB; None takes `free_fraction` of `free_bytes`. `max_model_len` None takes the
    model's own context, or what the memory holds if that is less. ConfigError when the memory does not hold one
    sequence of the length asked for, or not even two pages.
    """
    page_bytes = bytes_per_page(layers, page_size=page_size, bytes_per_element=bytes_per_element)
    allowed_bytes = int(memory_gb * GB) if memory_gb is not None else int(free_bytes * free_fraction)
    if memory_gb is not None and allowed_bytes > free_bytes:
        raise ConfigError(
            f"too little memory: --memory-gb asks for {allowed_bytes / GB:.2f} GB, {free_bytes / GB:.2f} GB are free",
            field="memory_gb",
        )
    allowed_pages = allowed_bytes // page_bytes
    context = max_model_len or min(model_context, max(1, allowed_pages - 1) * page_size)
    pages_per_sequence = -(-context // page_size) + 1
    bound = f"--memory-gb {memory_gb:g}" if memory_gb is not None else f"{free_fraction:.0%} of free memory"
    if allowed_pages < pages_per_sequence:
        raise ConfigError(
            f"too little memory: one sequence of {context} tokens needs "
            f"{pages_per_sequence * page_bytes / MB:.1f} MB of KV cache, {bound} gives {allowed_bytes / MB:.1f} MB; "
            "lower --max-model-len or raise --memory-gb",
            field="memory_gb",
        )
    wanted = max_running * pages_per_sequence
    num_pages = min(wanted, allowed_pages)
    per_token = page_bytes // page_size
    arithmetic = (
        f"KV cache: {len(layers)} layers x {per_token // len(layers):,} B = {per_token:,} B a token, "
        f"x {page_size} tokens = {page_bytes:,} B a page; {bound} allows {allowed_bytes / GB:.2f} GB; "
        f"{max_running} sequences of {context:,} tokens want {wanted:,} pages -> "
        f"{num_pages:,} pages = {num_pages * page_size:,} tokens = {num_pages * page_bytes / GB:.2f} GB"
    )
    return PageBudget(
        num_pages=num_pages,
        pages_per_sequence=pages_per_sequence,
        max_model_len=context,
        bytes_per_page=page_bytes,
        arithmetic=arithmetic,
    )


class DeviceBytes(msgspec.Struct, frozen=True):
    """What was measured on a device, in bytes: its memory, what is left beside the weights, and the most that a step
    takes for a moment."""

    total: int
    free: int
    step: int

    @property
    def for_cache(self) -> int:
        """What the KV cache may take: free memory less two such steps, as captured ones keep their own memory, and a
        margin for the libraries' workspaces and for fragments."""
        return self.free - 2 * self.step - int(self.total * DEVICE_MARGIN)

    @property
    def arithmetic(self) -> str:
        """How that number came about, in words."""
        return (
            f"device memory: {self.free / GB:.2f} of {self.total / GB:.2f} GB free beside the weights, less "
            f"twice {self.step / GB:.2f} GB for the largest step, eager and captured, and "
            f"{self.total * DEVICE_MARGIN / GB:.2f} GB margin = {self.for_cache / GB:.2f} GB"
        )


def free_host_bytes() -> int:
    """Bytes this process may still take: what the kernel calls available, or the control group's limit if smaller."""
    available = _meminfo_available()
    limits = [_cgroup_headroom(Path("/sys/fs/cgroup"), "memory.max", "memory.current")]
    limits.append(_cgroup_headroom(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return min([available, *(limit for limit in limits if limit is not None)])


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("cannot read how much memory is free; set --memory-gb", field="memory_gb")


def _cgroup_headroom(folder: Path, limit_name: str, usage_name: str) -> int | None:
    limit_file, usage_file = folder / limit_name, folder / usage_name
    if not (limit_file.exists() and usage_file.exists()):
        return None
    limit = limit_file.read_text().strip()
    return None if limit == "max" else int(limit) - int(usage_file.read_text())
