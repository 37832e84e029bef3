"""Loads the native library, or says why it cannot be used; owns the thread pool.

found = library.load()
if found.library is None: print(found.reason)      # the engine then lowers to torch ops
pool = found.library.pool(num_threads=2)
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phloem.kernels.spec import Machine

HERE = Path(__file__).resolve().parent
ABI_VERSION = 3 << 16 | 152  # version, and the size of an instruction in bytes: native/capability.cpp agrees
MISSING_CAPABILITY = {
    1: "the processor has no AVX-512 (F, BW, VL, DQ)",
    2: "the processor has no AVX-512 BF16 with VNNI",
}
AMX_STATES = {
    0: "AMX in use",
    1: "no AMX",
    2: "AMX refused by the kernel",
    3: "AMX off: its trial gave other numbers",
    4: "AMX off: its trial crashed",
}


@dataclass(frozen=True)
class Found:
    """The library, or None; and what was found, or the reason."""

    library: Library | None
    reason: str

    def machine(self) -> Machine:
        """The capabilities that the registry's requirements ask about."""
        if self.library is None:
            return Machine()
        return Machine(frozenset({"native-library", "amx_bf16"} if self.library.uses_amx else {"native-library"}))


class Library:
    """The native functions, typed: pointers are integers. `uses_amx` says whether tapes multiply bfloat16 on AMX."""

    def __init__(self, native: ctypes.CDLL, *, uses_amx: bool) -> None:
        self.uses_amx = uses_amx
        address, size = ctypes.c_void_p, ctypes.c_int64
        self.create_pool = _function(native, "phloem_pool_create", [ctypes.c_int], address)
        self.destroy_pool = _function(native, "phloem_pool_destroy", [address], None)
        self.create_plan = _function(native, "phloem_plan_create", [], address)
        self.destroy_plan = _function(native, "phloem_plan_destroy", [address], None)
        self.run = _function(native, "phloem_run", [address, address, size, address], None)
        self.pack = _function(native, "phloem_pack", [address, size, address, size, size, size, size, address], None)

    def pool(self, num_threads: int) -> Pool:
        """A new pool; ValueError for fewer than one thread."""
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, not {num_threads}")
        return Pool(self, num_threads)


class Pool:
    """A thread pool of `num_threads` threads, the caller's included. Runs one tape at a time."""

    def __init__(self, library: Library, num_threads: int) -> None:
        self._library = library
        self.num_threads = num_threads
        self.address: int = library.create_pool(num_threads) or 0
        if not self.address:
            raise MemoryError("the native thread pool could not be created")

    def close(self) -> None:
        """Ends the threads; the pool must be idle."""
        if self.address:
            self._library.destroy_pool(self.address)
            self.address = 0

    def __del__(self) -> None:
        self.close()


def _function(native: ctypes.CDLL, name: str, arguments: list[Any], result: Any) -> Callable[..., Any]:
    function = native[name]
    function.argtypes = arguments
    function.restype = result
    return function


def candidates() -> list[Path]:
    """Where the library may lie: built by setuptools (with the interpreter's suffix) or by build.py."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    return [HERE / f"_native{suffix}", HERE / "_native.abi3.so", HERE / "_native.so"]


def load(path: Path | None = None, *, allow_amx: bool = True) -> Found:
    """Opens the library and asks whether this processor can run it. Never raises for a missing or unfit library.

    AMX is used if the processor has it and a trial in a child process agrees with the AVX-512 kernels.
    """
    places = [path] if path else [place for place in candidates() if place.exists()]
    if not places:
        return Found(None, "the native library was not built (python -m phloem.kernels.cpu.build needs a C++ compiler)")
    try:
        native = ctypes.CDLL(str(places[0].resolve()))
        version = native.phloem_abi_version()
    except (OSError, AttributeError) as error:
        return Found(None, f"the native library does not load: {error}")
    if version != ABI_VERSION:
        return Found(None, f"{places[0].name} was built from other sources; build it again")
    missing = MISSING_CAPABILITY.get(native.phloem_missing_capability())
    if missing:
        return Found(None, missing)
    state = native.phloem_try_amx() if allow_amx else 1
    return Found(Library(native, uses_amx=state == 0), f"{places[0].name}, AVX-512 BF16 and VNNI, {AMX_STATES[state]}")
