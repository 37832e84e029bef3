"""Collectives by axis: the one owner of process groups.

    comm = Comm.meet(place, address="file:///run/x/store", device=torch.device("cpu"))
    comm.all_reduce(x, "tensor")

The processes of a mesh meet at a store, a file on one machine or a TCP address between several, and open one group for
each axis they share: gloo on a CPU, NCCL on GPUs. There is no default group. Every call has a time-out: a neighbour
that died or hangs becomes a RankLost within `timeout_s`, never a hang.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, FileStore, PrefixStore, ProcessGroupGloo, ReduceOp, TCPStore

from phloem.core.errors import EngineDead
from phloem.parallel.mesh import ALONE, Part, Place

STEP_TIMEOUT_S = 4.0
"""Ranks compute the same step at the same time: none is this late without having died."""
MAX_SENDING = 16
"""Activations on their way to the next stage; each is kept until it has left."""
MEET_TIMEOUT_S = 120.0
"""Until all have imported torch; then they load weights, each at its own speed, before the first step."""


class RankLost(EngineDead):
    """A neighbour did not answer in time: it died, hangs or computes something else. The whole group must go."""

    code = "rank_lost"


class Comm:
    """One process's groups. Tensors are contiguous; all ranks of an axis call the same things in the same order."""

    def __init__(self, place: Place, groups: Mapping[str, Any], *, on_host: bool) -> None:
        self.place = place
        self._groups = groups
        self._on_host = on_host
        self._sending: deque[tuple[Any, Tensor]] = deque()

    @staticmethod
    def meet(place: Place, *, address: str, device: torch.device, timeout_s: float = STEP_TIMEOUT_S) -> Comm:
        """Wait for the others at `address` and open the groups. RankLost when they do not come."""
        store = open_store(address, place)
        groups: dict[str, Any] = {}
        for axis, part in (("pipe", place.pipe), ("tensor", place.tensor)):
            if part.size > 1:
                shared = PrefixStore(f"{axis} of {place.neighbours(axis)}", store)
                groups[axis] = _guarded(partial(_open_group, shared, part, device, timeout_s))
        return Comm(place, groups, on_host=device.type == "cpu")

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """x, in place, as the sum over the axis; the same bits on every rank."""
        group = self._groups.get(axis)
        if group is not None and x.numel():
            _guarded(lambda: group.allreduce([x]).wait())
        return x

    def all_gather(self, x: Tensor, axis: str, widths: tuple[int, ...]) -> Tensor:
        """The columns of every rank side by side, `[rows, sum(widths)]`; `widths` may differ by rank."""
        group = self._groups.get(axis)
        if group is None or not x.numel():
            return x.new_empty(x.shape[0], sum(widths)) if group is not None else x
        widest = max(widths)
        mine = x if x.shape[1] == widest else torch.nn.functional.pad(x, (0, widest - x.shape[1]))
        parts = [torch.empty_like(mine) for _ in widths]
        _guarded(lambda: group.allgather([parts], [mine.contiguous()]).wait())
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1)

    def all_to_all(self, x: Tensor, send_counts: list[int], axis: str) -> tuple[Tensor, list[int]]:
        """The first `send_counts[0]` rows of x to the axis' first rank, the next to its second ...; the rows that came,
        in the order of the ranks, and how many from each."""
        group = self._groups.get(axis)
        if group is None:
            return x, send_counts
        sent, came = torch.tensor(send_counts), torch.empty(len(send_counts), dtype=torch.int64)
        _guarded(lambda: group.alltoall_base(came, sent, [], []).wait())
        counts: list[int] = came.tolist()
        out = x.new_empty(sum(counts), *x.shape[1:])
        _guarded(lambda: group.alltoall_base(out, x, counts, send_counts).wait())
        return out, counts

    def gather_rows(self, x: Tensor, counts: list[int], axis: str) -> Tensor:
        """The rows of every rank below each other; `counts` of each."""
        group = self._groups.get(axis)
        if group is None:
            return x
        padded = torch.nn.functional.pad(x, (0, 0, 0, max(counts) - x.shape[0]))
        parts = [torch.empty_like(padded) for _ in counts]
        _guarded(lambda: group.allgather([parts], [padded]).wait())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def size_and_index(self, axis: str) -> tuple[int, int]:
        """How many ranks the axis has, and which this one is."""
        part = self.place.pipe if axis == "pipe" else self.place.tensor
        return part.size, part.index

    def agree(self, value: int) -> int:
        """The least of all ranks' values, over every axis; each rank calls it once."""
        for group in self._groups.values():
            least = torch.tensor([value], device=None if self._on_host else "cuda")
            options = AllreduceOptions()
            options.reduceOp = ReduceOp.MIN  # type: ignore[assignment]  # the stub wants its wrapper
            _guarded(group.allreduce([least], options).wait)
            value = int(least.item())
        return value

    def receive(self, token_ids_T: Tensor, width: int, axis: str, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the stage before sent for these tokens: x `[T, width]` in `dtype`, residual `[T, width]` float32."""
        group, source = self._groups[axis], self.size_and_index(axis)[1] - 1
        x = torch.empty(token_ids_T.shape[0], width, dtype=dtype, device=token_ids_T.device)
        residual = torch.empty_like(x, dtype=torch.float32)
        _guarded(lambda: group.recv([x], source, 0).wait())
        _guarded(lambda: group.recv([residual], source, 0).wait())
        return x, residual

    def send(self, x: Tensor, residual: Tensor, axis: str) -> Tensor:
        """To the stage after, without waiting for it to take them: this stage goes on with the next micro-batch."""
        group, target = self._groups[axis], self.size_and_index(axis)[1] + 1
        while len(self._sending) >= MAX_SENDING:
            work, _ = self._sending.popleft()
            _guarded(work.wait)
        for part in (x.clone(), residual.clone()):  # the buffers are the next step's, too
            self._sending.append((_guarded(partial(group.send, [part], target, 0)), part))
        return residual

    def bound(self, activation: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        """The collective ops of a graph as functions of this process."""
        return {
            "all_reduce": self.all_reduce,
            "all_gather": self.all_gather,
            "receive": partial(self.receive, dtype=activation),
            "send": self.send,
        }

    def close(self) -> None:
        """Close the groups: in flight is nothing any more."""
        self._sending.clear()
        self._groups = {}


@dataclass(frozen=True)
class Company:
    """The other ranks of a replica: where this one stands, and how it finds them once it knows its device."""

    place: Place
    meet: Callable[[torch.device], Comm]


def alone(device: torch.device) -> Comm:
    """Of the only process of a replica: it reduces and gathers by itself."""
    return Comm(ALONE, {}, on_host=device.type == "cpu")


NOBODY = Company(ALONE, alone)


def open_store(address: str, place: Place) -> Any:
    """The store at file:///path or tcp://host:port, where rank 0 listens. RankLost when it cannot be reached."""
    url = urlsplit(address)
    if url.scheme == "file":
        return FileStore(url.path, place.mesh.size)
    return _guarded(
        lambda: TCPStore(
            url.hostname or "127.0.0.1",
            url.port or 0,
            place.mesh.size,
            place.rank == 0,
            timeout=timedelta(seconds=MEET_TIMEOUT_S),
        )
    )


def _open_group(store: Any, part: Part, device: torch.device, timeout_s: float) -> Any:
    store.set_timeout(timedelta(seconds=MEET_TIMEOUT_S))
    if device.type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        nccl = ProcessGroupNCCL.Options()
        nccl._timeout = timedelta(seconds=timeout_s)
        return ProcessGroupNCCL(store, part.index, part.size, nccl)
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # no stub has it
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [ProcessGroupGloo.create_default_device()]
    return ProcessGroupGloo(store, part.index, part.size, options)


def _guarded(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RuntimeError as error:  # torch raises DistStoreError, DistBackendError and plain ones alike
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0])  # gloo begins with its own file and line
        raise RankLost(f"another rank of this replica does not answer: {reason}") from error
