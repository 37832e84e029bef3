"""A mesh: the processes of one replica on named axes, and where one of them stands.

    Mesh(pipe=2, tensor=2)          rank = pipe index x 2 + tensor index

         tensor 0   tensor 1
    pipe 0   0          1           a row shares a stage: all-reduce along "tensor"
    pipe 1   2          3           a column shares a shard: send and receive along "pipe"

Tensor is the innermost axis: its ranks talk twice a layer and belong on one machine.
"""

from __future__ import annotations

import msgspec


class Part(msgspec.Struct, frozen=True):
    """Index `index` of the `size` places on an axis."""

    axis: str
    size: int = 1
    index: int = 0

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.size - 1


class Mesh(msgspec.Struct, frozen=True):
    """How many processes stand on each axis."""

    pipe: int = 1
    tensor: int = 1
    whole_experts: bool = False  # the tensor axis carries whole experts, not parts of each

    @property
    def size(self) -> int:
        """Processes of one replica."""
        return self.pipe * self.tensor

    def place(self, rank: int) -> Place:
        """Where process `rank` stands."""
        assert 0 <= rank < self.size, f"rank {rank} of {self.size}"
        pipe, tensor = divmod(rank, self.tensor)
        return Place(
            mesh=self,
            rank=rank,
            pipe=Part("pipe", self.pipe, pipe),
            tensor=Part("tensor", self.tensor, tensor),
        )


class Place(msgspec.Struct, frozen=True):
    """One process of a mesh: its rank, and its part of each axis."""

    mesh: Mesh
    rank: int
    pipe: Part
    tensor: Part

    def neighbours(self, axis: str) -> tuple[int, ...]:
        """The ranks along `axis` through this place, in the axis' order, this one included."""
        if axis == "tensor":
            first = self.pipe.index * self.mesh.tensor
            return tuple(range(first, first + self.mesh.tensor))
        return tuple(range(self.tensor.index, self.mesh.size, self.mesh.tensor))


ALONE = Mesh().place(0)
"""The only process of a replica: every axis has size 1."""
