"""Lowering for the CPU: what runs the graph, how each parameter is stored, and the program made of both.

target = pick_target(step, dtype="auto", quantize="auto", page_size=32)     # what, and why not otherwise
weights = target.load(step, checkpoint, num_threads=2)                      # carry out the recipes
program = target.program(step, weights, caches=pool.layers, inputs=inputs)  # capture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from phloem.core.errors import ConfigError
from phloem.graph.capture.inputs import StepInputs
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.ir import StepGraph, cache_name
from phloem.graph.lower.ask import call_of, type_name
from phloem.graph.lower.between import is_between, read_between
from phloem.graph.lower.native import Parameter, TapeProgram
from phloem.graph.lower.program import Capture, Collectives, StepProgram
from phloem.graph.lower.reference import ReferenceProgram
from phloem.graph.ops.contract import Op
from phloem.graph.ops.vocabulary import LOWERED_OPS
from phloem.graph.weights import load_raw, to_torch
from phloem.kernels.cpu import library
from phloem.kernels.cpu.implementations import NAME as NATIVE
from phloem.kernels.cpu.implementations import implementations
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import Packer, natural_storage
from phloem.kernels.registry import Registry
from phloem.kernels.spec import Implementation, Machine, RawWeight

QUANTIZED_STORAGE = {"int8": "q8", "int4": "q4"}
REFERENCE = "reference"
REGISTRY = Registry((*implementations(), *(Implementation(op, REFERENCE) for op in LOWERED_OPS)))
"""Everything that can compute a lowered op on a CPU; the reference always can."""


@dataclass(frozen=True)
class NativeTarget:
    """The native kernels: weights packed in the storage nearest to the checkpoint's encoding, one tape a step.

    With `int8_products`, linears over quantized weights round their input to int8 with a scale for each 32 columns.
    """

    activation: torch.dtype
    int8_products: bool
    quantize: str
    page_size: int
    pool: Pool
    library: Library

    @property
    def description(self) -> str:
        weights = "as the checkpoint stores them" if self.quantize == "auto" else self.quantize
        has_amx = self.library.uses_amx and self.activation == torch.bfloat16
        kind = f"{type_name(self.activation)} on {'AMX' if has_amx else 'AVX-512'}"
        if self.int8_products:
            kind += ", int8 x quantized weights"
        return f"native tape, {self.pool.num_threads} threads, {kind}, weights {weights}"

    def load(self, step: StepGraph, checkpoint: Checkpoint, collectives: Collectives = MappingProxyType({})) -> Capture:
        """Matrices packed for the kernels, those of experts as torch multiplies them, vectors in float32."""
        packer = Packer(self.library, self.pool)
        plain = read_between(step.graph)
        parameters: dict[str, Parameter] = {}
        for name, recipe in step.recipes.items():
            raw = load_raw(recipe, checkpoint)
            if name in plain:
                parameters[name] = to_torch(raw, self.activation)
            elif len(raw.shape) == 2:
                parameters[name] = packer.pack(raw, storage=self._storage(raw))
            else:
                parameters[name] = to_torch(raw, torch.float32)
        return partial(self._capture, step, parameters, collectives)

    def _capture(
        self,
        step: StepGraph,
        parameters: Mapping[str, Parameter],
        collectives: Collectives,
        *,
        caches: Sequence[torch.Tensor],
        inputs: StepInputs,
    ) -> StepProgram:
        return TapeProgram(
            graph=step.graph,
            parameters=parameters,
            caches={cache_name(index): cache for index, cache in enumerate(caches)},
            inputs=inputs,
            page_size=self.page_size,
            activation=self.activation,
            int8_products=self.int8_products,
            library=self.library,
            pool=self.pool,
            collectives=collectives,
        )

    def _storage(self, raw: RawWeight) -> str:
        natural = natural_storage(raw.encoding, dtype=self.activation, num_columns=raw.num_columns)
        is_wide = natural in ("bf16", "f32")
        if self.quantize == "none":
            return "bf16" if self.activation == torch.bfloat16 else "f32"
        if self.quantize == "auto" or not is_wide or raw.num_columns % 32:
            return natural
        return QUANTIZED_STORAGE[self.quantize]


@dataclass(frozen=True)
class ReferenceTarget:
    """Plain torch, op by op; `reason` says why the native kernels do not serve."""

    activation: torch.dtype
    page_size: int
    reason: str

    @property
    def description(self) -> str:
        return f"torch references, {type_name(self.activation)} (slow: {self.reason})"

    def load(self, step: StepGraph, checkpoint: Checkpoint, collectives: Collectives = MappingProxyType({})) -> Capture:
        """Every parameter as a tensor of the activation type; frequencies stay float32."""
        parameters = {
            name: to_torch(load_raw(recipe, checkpoint), torch.float32 if name == "inv_freq" else self.activation)
            for name, recipe in step.recipes.items()
        }
        return partial(self._capture, step, parameters, collectives)

    def _capture(
        self,
        step: StepGraph,
        parameters: Mapping[str, torch.Tensor],
        collectives: Collectives,
        *,
        caches: Sequence[torch.Tensor],
        inputs: StepInputs,
    ) -> StepProgram:
        views = {
            cache_name(index): cache.view(cache.shape[0], 2, self.page_size, layer.num_kv_heads, layer.head_dim)
            for index, (cache, layer) in enumerate(zip(caches, step.layers, strict=True))
        }
        return ReferenceProgram(
            graph=step.graph, parameters=parameters, caches=views, inputs=inputs, collectives=collectives
        )


Target = NativeTarget | ReferenceTarget


def pick_target(step: StepGraph, *, dtype: str, quantize: str, page_size: int, num_threads: int) -> Target:
    """The native kernels where the registry chooses them for every op, the references elsewhere.

    `dtype` "auto" is bfloat16 on the native kernels (the residual stream stays float32), with int8 products for
    quantized weights where there is no AMX (docs/decisions/0003), and float32 on the references.
    ConfigError when an option asks for what a CPU, or the references, cannot do.
    """
    if dtype == "float16":
        raise ConfigError("--dtype float16 is served on a GPU only; choose bfloat16 or float32", field="dtype")
    if quantize == "fp8":
        raise ConfigError("--quantize fp8 is served on a GPU only; choose int8 or int4", field="quantize")
    found = library.load()
    native_type = torch.float32 if dtype == "float32" else torch.bfloat16
    reason = refusal(step, machine=found.machine(), activation=native_type, page_size=page_size)
    if found.library is not None and reason is None:
        return NativeTarget(
            activation=native_type,
            int8_products=dtype == "auto" and not found.library.uses_amx,
            quantize=quantize,
            page_size=page_size,
            pool=found.library.pool(num_threads),
            library=found.library,
        )
    why = reason if found.library is not None and reason is not None else found.reason
    if quantize in QUANTIZED_STORAGE:
        raise ConfigError(f"--quantize {quantize} needs the native kernels: {why}", field="quantize")
    activation = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    return ReferenceTarget(activation=activation, page_size=page_size, reason=why)


def refusal(step: StepGraph, *, machine: Machine, activation: torch.dtype, page_size: int) -> str | None:
    """Why some op of the graph has no native implementation here, in the registry's words; None if all have."""
    for node in step.graph.nodes:
        if isinstance(node.target, Op) and not is_between(node):
            # packing finds every weight a storage, so any will do here
            call = call_of(node, activation=activation, storage="bf16", page_size=page_size)
            choice = REGISTRY.select(machine, call)
            if choice.chosen is None or choice.chosen.name != NATIVE:
                return choice.explain()
    return None
