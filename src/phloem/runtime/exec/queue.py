"""The order in which a device works, and the two ways across: small copies there, small copies back, nobody waits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int32]


class Fetched(Protocol):
    """Numbers on their way to the host."""

    def wait(self) -> IntArray:
        """Block until they are here."""


class Queue(Protocol):
    """One device's work in order."""

    def on(self) -> AbstractContextManager[object]:
        """Within it, everything that torch and kernels launch joins this queue."""

    def staging(self, num_words: int) -> torch.Tensor:
        """Host memory [num_words] int32 to fill and upload; free again when its copy is done."""

    def upload(self, staged: torch.Tensor) -> torch.Tensor:
        """A copy on the device, under way."""

    def fetch(self, values: torch.Tensor) -> Fetched:
        """A copy of an int32 tensor on the host, under way."""

    def synchronize(self) -> None:
        """Wait for everything."""


class CudaQueue:
    """A stream of its own. Pinned memory comes from torch's pool, which hands nothing out twice while a copy is under
    way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return context

    def staging(self, num_words: int) -> torch.Tensor:
        return torch.empty(num_words, dtype=torch.int32, pin_memory=True)

    def upload(self, staged: torch.Tensor) -> torch.Tensor:
        return staged.to(self._device, non_blocking=True)

    def fetch(self, values: torch.Tensor) -> Fetched:
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaFetched(host, event)

    def synchronize(self) -> None:
        self._stream.synchronize()


class HostQueue:
    """The host as its own device: everything is done when it is asked for."""

    def on(self) -> AbstractContextManager[object]:
        return nullcontext()

    def staging(self, num_words: int) -> torch.Tensor:
        return torch.empty(num_words, dtype=torch.int32)

    def upload(self, staged: torch.Tensor) -> torch.Tensor:
        return staged

    def fetch(self, values: torch.Tensor) -> Fetched:
        return _HostFetched(values.clone())

    def synchronize(self) -> None:
        """Nothing is ever under way."""


class _CudaFetched:
    def __init__(self, host: torch.Tensor, event: torch.cuda.Event) -> None:
        self._host, self._event = host, event

    def wait(self) -> IntArray:
        self._event.synchronize()
        values: IntArray = self._host.numpy()
        return values


class _HostFetched:
    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def wait(self) -> IntArray:
        values: IntArray = self._values.numpy()
        return values
