"""A checkpoint opened for reading: its configuration and its tensors, none of them read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from phloem.core.errors import ModelError
from phloem.kernels.spec import RawWeight


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk.

    `config` is the Hugging Face config.json, or the GGUF metadata without its big arrays; `generation_config` is the
    folder's generation_config.json (empty for a GGUF file). A tensor is a view of the memory map, made when asked for.
    """

    path: Path
    kind: Literal["gguf", "hf"]
    config: dict[str, Any]
    tensors: LazyTensors
    generation_config: dict[str, Any] = field(default_factory=dict)


class Entry(NamedTuple):
    """A tensor that has not been read: how it is stored, and the function that makes it.

    `pattern`, for made-up tensors, makes the run of numbers that the tensor repeats from its start: a device fills its
    copy from that alone.
    """

    encoding: str
    num_bytes: int
    make: Callable[[], RawWeight]
    pattern: Callable[[], RawWeight] | None = None


class LazyTensors(Mapping[str, RawWeight]):
    """Tensors by name, each made at every look-up: nothing is kept, a memory map caches for us."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> RawWeight:
        return self.entries[name].make()

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def broken(path: Path, problem: str, remedy: str = "download or convert it again") -> ModelError:
    """The error for a model file or folder that cannot be used: names it, says what is wrong and what to do."""
    return ModelError(f"{path}: {problem}; {remedy}", field=str(path))
