"""Lowering for a GPU: which function computes each op, the weights on the device, and the program made of both.

choices = DeviceChoices(dtype="auto", quantize="auto", kv_cache_dtype="auto", deterministic=False, page_size=32)
step = compile_graph(definition, passes(choices))     # what a step computes
target = pick_target(step, choices)                   # with what, or why not
weights = target.load(step, checkpoint)               # carry out the recipes
program = weights(caches=pool.layers)                 # run(inputs, shape) -> logits

`reference_target` is the same thing on the ops' references, on any device: what tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch

from phloem.core.errors import ConfigError
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.compile import PASSES
from phloem.graph.ir import Pass, StepGraph, cache_name
from phloem.graph.lower import small
from phloem.graph.lower.ask import TOUCH_A_CACHE, call_of, type_name
from phloem.graph.lower.device import DeviceProgram, Function, Tape
from phloem.graph.lower.device_weights import load_parameters
from phloem.graph.ops.contract import Op
from phloem.graph.ops.fp8 import FP8
from phloem.graph.ops.vocabulary import FUSED_OPS, LOWERED_OPS, QUANTIZED_OPS
from phloem.graph.passes.quantize_fp8 import quantize_fp8
from phloem.kernels.registry import Choice, Registry
from phloem.kernels.spec import Machine
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.implementations import INVARIANT, implementations
from phloem.kernels.triton.implementations import NAME as TRITON
from phloem.kernels.vendor import implementations as vendor

REGISTRY = Registry((*implementations(), *vendor.implementations()))
"""Everything that can compute a lowered op on a GPU. The references are no candidates: they wait for the device."""

TYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZE: Mapping[str, tuple[Pass, ...]] = MappingProxyType({"auto": (), "none": (), "fp8": (quantize_fp8,)})
"""The passes behind each way to store weights."""


@dataclass(frozen=True, kw_only=True)
class DeviceChoices:
    """The options that decide how a GPU computes; what they mean stands in core/config.py."""

    dtype: str
    quantize: str
    kv_cache_dtype: str
    deterministic: bool
    page_size: int

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What rewrites the graph, in order. ConfigError when no GPU kernel takes weights stored so."""
        if self.quantize not in QUANTIZE:
            raise ConfigError(
                f"--quantize {self.quantize} is not served on a GPU; choose {', '.join(QUANTIZE)}", field="quantize"
            )
        return (*PASSES, *QUANTIZE[self.quantize])


class DeviceCapture(Protocol):
    """A graph with its weights on the device, waiting for its caches."""

    def __call__(self, *, caches: Sequence[torch.Tensor]) -> DeviceProgram:
        """The program over one cache tensor a layer."""


@dataclass(frozen=True)
class CudaTarget:
    """One function an op, on one device. `kv_type` None: keys and values are kept in the activation type."""

    activation: torch.dtype
    device: torch.device
    page_size: int
    functions: Mapping[str, Function]
    description: str
    kv_type: torch.dtype | None = None
    is_deterministic: bool = False

    @property
    def cache_type(self) -> torch.dtype:
        """What keys and values are kept in."""
        return self.kv_type or self.activation

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
        make = partial(Tape, functions=self.functions, parameters=parameters, caches=views)
        fused = self.fused(step)
        return DeviceProgram(
            make(step.graph),
            small=make(fused.graph) if fused else None,
            is_small=partial(small.is_small, max_rows=small.max_rows(step)),
        )

    def fused(self, step: StepGraph) -> StepGraph | None:
        """What small steps run (graph/lower/small.py), if there are functions for it."""
        fused = small.fuse(step)
        names = {node.target.name for node in fused.graph.nodes if isinstance(node.target, Op)}
        return fused if names <= self.functions.keys() else None


def pick_target(step: StepGraph, choices: DeviceChoices) -> CudaTarget:
    """The kernels the registry chooses. ConfigError says what is missing, or which option they cannot serve."""
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu", field="device")
    if choices.dtype not in TYPES:
        raise ConfigError(f"--dtype {choices.dtype} is not served on a GPU; choose bfloat16 or float16", field="dtype")
    activation = TYPES[choices.dtype]
    kv_type = FP8 if choices.kv_cache_dtype == "fp8" else activation
    chosen = choose(
        step,
        machine=Machine(frozenset({"cuda"}) | vendor.capabilities()),
        activation=activation,
        kv_type=kv_type,
        page_size=choices.page_size,
        deterministic=choices.deterministic,
    )
    device = torch.device("cuda", torch.cuda.current_device())
    return CudaTarget(
        activation=activation,
        device=device,
        page_size=choices.page_size,
        functions=_functions(chosen, device),
        description=_describe(chosen, choices, activation),
        kv_type=kv_type,
        is_deterministic=choices.deterministic,
    )


def _describe(chosen: Mapping[str, str], choices: DeviceChoices, activation: torch.dtype) -> str:
    words = [f"{' and '.join(sorted(set(chosen.values())))} kernels", type_name(activation)]
    words += ["weights in fp8"] if choices.quantize == "fp8" else []
    words += ["KV cache in fp8"] if choices.kv_cache_dtype == "fp8" else []
    words += ["deterministic"] if choices.deterministic else []
    return f"{', '.join(words)} on {torch.cuda.get_device_name()}"


def serves(*, dtype: str, quantize: str) -> bool:
    """Whether there is a GPU and it takes these options: what device "auto" asks."""
    return torch.cuda.is_available() and dtype in TYPES and quantize in QUANTIZE


def reference_target(
    *, activation: torch.dtype, device: torch.device, page_size: int, kv_type: torch.dtype | None = None
) -> CudaTarget:
    """Plain torch, op by op: needs no GPU, and waits for one at every attention."""
    functions: dict[str, Function] = {**LOWERED_OPS, **QUANTIZED_OPS, "paged_attention": _reference_attention}
    words = f"torch references, {type_name(activation)}"
    return CudaTarget(activation, device, page_size, functions, words, kv_type)


def choose(
    step: StepGraph,
    *,
    machine: Machine,
    activation: torch.dtype,
    kv_type: torch.dtype,
    page_size: int,
    deterministic: bool,
) -> Mapping[str, str]:
    """The implementation of every op of the graph, by op name, and of its fused form's where all have one.

    ConfigError in the registry's words.
    """
    ask = partial(
        _ask,
        machine=machine,
        activation=activation,
        kv_type=kv_type,
        page_size=page_size,
        deterministic=deterministic,
    )
    chosen: dict[str, str] = {}
    for choice in ask(step):
        if choice.chosen is None:
            raise ConfigError(f"this model cannot run on the GPU: {choice.explain()}", field="device")
        before = chosen.setdefault(choice.call.op, choice.chosen.name)
        assert before == choice.chosen.name, f"two implementations of {choice.call.op} in one graph"
    fused = {choice.call.op: choice.chosen for choice in ask(small.fuse(step))}
    if all(fused.values()):
        chosen |= {op: choice.name for op, choice in fused.items() if choice and op in FUSED_OPS}
    return chosen


def _ask(
    step: StepGraph,
    *,
    machine: Machine,
    activation: torch.dtype,
    kv_type: torch.dtype,
    page_size: int,
    deterministic: bool,
) -> Iterator[Choice]:
    """What the registry says about each call of a graph."""
    for node in step.graph.nodes:
        if isinstance(node.target, Op):
            storage = kv_type if node.target.name in TOUCH_A_CACHE else activation
            call = call_of(
                node,
                activation=activation,
                storage=type_name(storage),
                page_size=page_size,
                batch_invariant=deterministic,
            )
            yield REGISTRY.select(machine, call)


def _functions(chosen: Mapping[str, str], device: torch.device) -> Mapping[str, Function]:
    """The functions behind the names. Imports triton, and what else was chosen."""
    from phloem.kernels.triton import table

    ours = table.functions_on(device)
    functions = {op: ours[op] for op, name in chosen.items() if name == TRITON}
    functions |= {op: table.INVARIANT[op] for op, name in chosen.items() if name == INVARIANT}
    if len(functions) < len(chosen):
        from phloem.kernels.vendor import table as vendor_table

        functions |= {op: vendor_table.FUNCTIONS[op] for op in chosen if op not in functions}
    return functions


def _reference_attention(*arguments: Any, shape: AttentionShape) -> torch.Tensor:
    out: torch.Tensor = LOWERED_OPS["paged_attention"](*arguments)
    return out
