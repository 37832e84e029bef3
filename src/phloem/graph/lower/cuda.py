"""Lowering for a GPU: which function computes each op, the weights on the device, and the program made of both.

target = pick_target(step, dtype="auto", quantize="auto", page_size=32)   # what, or why not
weights = target.load(step, checkpoint)                                   # carry out the recipes
program = weights(caches=pool.layers)                                     # run(inputs, shape) -> logits

`reference_target` is the same thing on the ops' references, on any device: what tests compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from phloem.core.errors import ConfigError
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.ir import StepGraph, cache_name
from phloem.graph.lower.ask import call_of, type_name
from phloem.graph.lower.device import DeviceProgram, Function
from phloem.graph.lower.device_weights import load_parameters
from phloem.graph.ops.contract import Op
from phloem.graph.ops.vocabulary import LOWERED_OPS
from phloem.kernels.registry import Registry
from phloem.kernels.spec import Machine
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.implementations import NAME as TRITON
from phloem.kernels.triton.implementations import implementations
from phloem.kernels.vendor import implementations as vendor

REGISTRY = Registry((*implementations(), *vendor.implementations()))
"""Everything that can compute a lowered op on a GPU. The references are no candidates: they wait for the device."""

TYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16}


class DeviceCapture(Protocol):
    """A graph with its weights on the device, waiting for its caches."""

    def __call__(self, *, caches: Sequence[torch.Tensor]) -> DeviceProgram:
        """The program over one cache tensor a layer."""


@dataclass(frozen=True)
class CudaTarget:
    """One function an op, on one device."""

    activation: torch.dtype
    device: torch.device
    page_size: int
    functions: Mapping[str, Function]
    description: str

    def load(self, step: StepGraph, checkpoint: Checkpoint) -> DeviceCapture:
        """Every parameter on the device in the activation type."""
        parameters = load_parameters(step.recipes, checkpoint, dtype=self.activation, device=self.device)
        return partial(self._capture, step, parameters)

    def _capture(
        self, step: StepGraph, parameters: Mapping[str, torch.Tensor], *, caches: Sequence[torch.Tensor]
    ) -> DeviceProgram:
        views = {
            cache_name(index): cache.view(cache.shape[0], 2, self.page_size, layer.num_kv_heads, layer.head_dim)
            for index, (cache, layer) in enumerate(zip(caches, step.layers, strict=True))
        }
        return DeviceProgram(graph=step.graph, functions=self.functions, parameters=parameters, caches=views)


def pick_target(step: StepGraph, *, dtype: str, quantize: str, page_size: int) -> CudaTarget:
    """The kernels the registry chooses. ConfigError says what is missing, or which option they cannot serve."""
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu", field="device")
    if dtype not in TYPES:
        raise ConfigError(f"--dtype {dtype} is not served on a GPU; choose bfloat16", field="dtype")
    if quantize in ("int8", "int4"):
        raise ConfigError(f"--quantize {quantize} is not served on a GPU; choose auto or none", field="quantize")
    activation = TYPES[dtype]
    chosen = choose(
        step, machine=Machine(frozenset({"cuda"}) | vendor.capabilities()), activation=activation, page_size=page_size
    )
    name = torch.cuda.get_device_name()
    return CudaTarget(
        activation=activation,
        device=torch.device("cuda", torch.cuda.current_device()),
        page_size=page_size,
        functions=_functions(chosen),
        description=f"{' and '.join(sorted(set(chosen.values())))} kernels, {type_name(activation)} on {name}",
    )


def serves(*, dtype: str, quantize: str) -> bool:
    """Whether there is a GPU and it takes these options: what device "auto" asks."""
    return torch.cuda.is_available() and dtype in TYPES and quantize in ("auto", "none")


def reference_target(*, activation: torch.dtype, device: torch.device, page_size: int) -> CudaTarget:
    """Plain torch, op by op: needs no GPU, and waits for one at every attention."""
    functions: dict[str, Function] = {**LOWERED_OPS, "paged_attention": _reference_attention}
    return CudaTarget(activation, device, page_size, functions, f"torch references, {type_name(activation)}")


def choose(step: StepGraph, *, machine: Machine, activation: torch.dtype, page_size: int) -> Mapping[str, str]:
    """The implementation of every op of the graph, by op name. ConfigError in the registry's words."""
    chosen: dict[str, str] = {}
    for node in step.graph.nodes:
        if isinstance(node.target, Op):
            call = call_of(node, activation=activation, storage=type_name(activation), page_size=page_size)
            choice = REGISTRY.select(machine, call)
            if choice.chosen is None:
                raise ConfigError(f"this model cannot run on the GPU: {choice.explain()}", field="device")
            before = chosen.setdefault(node.target.name, choice.chosen.name)
            assert before == choice.chosen.name, f"two implementations of {node.target.name} in one graph"
    return chosen


def _functions(chosen: Mapping[str, str]) -> Mapping[str, Function]:
    """The functions behind the names. Imports triton, and what else was chosen."""
    from phloem.kernels.triton import table

    functions = {op: table.FUNCTIONS[op] for op, name in chosen.items() if name == TRITON}
    if len(functions) < len(chosen):
        from phloem.kernels.vendor import table as vendor_table

        functions |= {op: vendor_table.FUNCTIONS[op] for op in chosen if op not in functions}
    return functions


def _reference_attention(*arguments: Any, shape: AttentionShape) -> torch.Tensor:
    out: torch.Tensor = LOWERED_OPS["paged_attention"](*arguments)
    return out
