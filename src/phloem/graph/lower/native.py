"""Lowering to the native CPU kernels: every node becomes instructions of one tape over static buffers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from phloem.graph.capture.inputs import StepDims, StepInputs
from phloem.graph.cost import StepLoad
from phloem.graph.ir import ATTENTION_META, spec_of
from phloem.graph.lower.between import Between, function_of, is_between, makes_logits
from phloem.graph.lower.buffers import place_buffers, resolve
from phloem.graph.lower.program import Collectives, OpTime, op_time
from phloem.graph.ops.contract import Op
from phloem.kernels.cpu.int8_rows import Int8Rows
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import PackedWeight
from phloem.kernels.cpu.tape import AttentionMeta, CacheShape, Dims, Rows, Tape

Parameter = PackedWeight | torch.Tensor


class TapeProgram:
    """A lowered graph captured as a tape: one native call a step, the most likely tokens included.

    Where the graph is one rank's part, the tape is cut at every op that needs the other ranks.
    """

    def __init__(
        self,
        *,
        graph: fx.Graph,
        parameters: Mapping[str, Parameter],
        caches: Mapping[str, torch.Tensor],
        inputs: StepInputs,
        page_size: int,
        activation: torch.dtype,
        int8_products: bool,
        library: Library,
        pool: Pool,
        collectives: Collectives = MappingProxyType({}),
    ) -> None:
        self.inputs = inputs
        self._pool = pool
        self._tape = Tape(library, pool)
        max_tokens = inputs.limits.max_tokens
        emitter = _Emitter(
            tape=self._tape,
            buffers=place_buffers(graph, max_tokens=max_tokens, activation=activation),
            parameters=parameters,
            caches=caches,
            inputs=inputs,
            page_size=page_size,
            int8_products=int8_products,
            collectives=collectives,
        )
        self._logits = emitter.emit(graph)
        self._betweens = emitter.betweens
        self._spans = emitter.spans
        self._parameters = parameters
        self._best_ids = torch.empty(max_tokens, dtype=torch.int32)
        self._best_values = torch.empty(max_tokens, dtype=torch.float32)
        if makes_logits(graph):
            self._tape.argmax(self._logits, self._best_ids, self._best_values)

    def run(self, dims: StepDims) -> torch.Tensor:
        """Logits `[num_logits, vocabulary]` float32, valid until the next run."""
        sizes = Dims(dims.num_tokens, dims.num_logits, dims.num_rows, dims.num_shared)
        start = 0
        for stop, between in self._betweens:
            self._tape.run(sizes, slice(start, stop))
            between.run(dims)
            start = stop
        self._tape.run(sizes, slice(start, len(self._tape)))
        return self._logits[: dims.num_logits]

    def argmax(self, dims: StepDims) -> Sequence[int] | None:
        """The most likely token of each row of the last run's logits; the lowest id of ties."""
        ids: list[int] = self._best_ids[: dims.num_logits].tolist()
        return ids

    def profile(self, dims: StepDims, load: StepLoad) -> list[OpTime]:
        """Every op alone, all threads on it."""
        times = self._tape.profile(Dims(dims.num_tokens, dims.num_logits, dims.num_rows, dims.num_shared))
        return [op_time(node, sum(times[span]), load=load, stored=self._stored) for node, span in self._spans]

    def _stored(self, name: str) -> int:
        parameter = self._parameters[name]
        return parameter.num_bytes if isinstance(parameter, PackedWeight) else parameter.nbytes

    def close(self) -> None:
        """End the threads."""
        self._pool.close()


@dataclass(frozen=True)
class _Emitter:
    """Walks a lowered graph and writes one op after the other to the tape."""

    tape: Tape
    buffers: Mapping[fx.Node, tuple[torch.Tensor, ...]]
    parameters: Mapping[str, Parameter]
    caches: Mapping[str, torch.Tensor]
    inputs: StepInputs
    page_size: int
    int8_products: bool
    int8_buffers: list[Int8Rows] = field(default_factory=list)
    quantized: dict[fx.Node, Int8Rows] = field(default_factory=dict)
    spans: list[tuple[fx.Node, slice]] = field(default_factory=list)  # the instructions of each op
    collectives: Collectives = field(default_factory=dict)
    betweens: list[tuple[int, Between]] = field(default_factory=list)  # the instruction that each comes before

    def emit(self, graph: fx.Graph) -> torch.Tensor:
        """Emit every node; returns the buffer of the logits."""
        rules: dict[str, Callable[[fx.Node], None]] = {
            "embed": self._embed,
            "rms_norm": self._rms_norm,
            "add_rms_norm": self._add_rms_norm,
            "linear": self._linear,
            "rope_kv_write": self._rope_kv_write,
            "paged_attention": self._paged_attention,
            "silu_mul": self._silu_mul,
            "select_rows": self._select_rows,
        }
        for node in graph.nodes:
            if is_between(node):
                self._between(node)
            elif isinstance(node.target, Op):
                first = len(self.tape)
                rules[node.target.name](node)
                self.spans.append((node, slice(first, len(self.tape))))
            elif node.op == "output":
                return self._value(node.args[0])
            else:
                assert node.op != "call_function" or node.target is operator.getitem, f"{node} is not lowered"
        raise AssertionError("the graph has no output")

    def _between(self, node: fx.Node) -> None:
        arguments = [self._value(arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
        counts_logits = _rows(node) is Rows.LOGITS
        is_buffer = [isinstance(arg, fx.Node) and arg.op != "get_attr" for arg in node.args]
        call = Between(
            function=function_of(node, self.collectives),
            arguments=arguments,
            is_buffer=is_buffer,
            outs=self.buffers[node],
            counts_logits=counts_logits,
        )
        self.betweens.append((len(self.tape), call))

    def _embed(self, node: fx.Node) -> None:
        token_ids, weight = node.args
        self.tape.embed(self._value(token_ids), self._matrix(weight), self._out(node))

    def _rms_norm(self, node: fx.Node) -> None:
        x, weight, eps = node.args
        out = self._row_output(node, self._out(node))
        self.tape.rms_norm(self._value(x), self._value(weight), out, eps=_real(eps), rows=_rows(node))

    def _add_rms_norm(self, node: fx.Node) -> None:
        x, residual, weight, eps = node.args
        out, new_residual = self.buffers[node]
        self.tape.add_rms_norm(
            self._value(x),
            self._value(residual),
            self._value(weight),
            self._row_output(node, out),
            eps=_real(eps),
            new_residual=new_residual,
            rows=_rows(node),
        )

    def _linear(self, node: fx.Node) -> None:
        x, weight, bias, _ = node.args
        bias_N = None if bias is None else self._value(bias)
        packed = self._matrix(weight)
        self.tape.linear(self._input(x, packed, _rows(node)), packed, self._out(node), bias=bias_N, rows=_rows(node))

    def _rope_kv_write(self, node: fx.Node) -> None:
        qkv, q_norm, k_norm, eps, positions, slots, inv_freq, cache = node.args
        self.tape.rope_kv_write(
            self._value(qkv),
            self._out(node),
            self._value(cache),
            shape=self._cache_shape(cache),
            positions=self._value(positions),
            slots=self._value(slots),
            inv_freq=self._value(inv_freq),
            q_norm=None if q_norm is None else self._value(q_norm),
            k_norm=None if k_norm is None else self._value(k_norm),
            eps=_real(eps),
        )

    def _paged_attention(self, node: fx.Node) -> None:
        q, cache, *_, scale, window = node.args
        assert isinstance(q, fx.Node)
        num_heads = spec_of(q).shape[1]
        assert isinstance(num_heads, int)
        assert window is None or isinstance(window, int)
        self.tape.paged_attention(
            self._value(q),
            self._value(cache),
            self._out(node),
            meta=AttentionMeta(*(self.inputs.tensor(name) for name in ATTENTION_META)),
            shape=self._cache_shape(cache),
            num_heads=num_heads,
            scale=_real(scale),
            window=window,
        )

    def _silu_mul(self, node: fx.Node) -> None:
        out = self._row_output(node, self._out(node))
        self.tape.silu_mul(self._value(node.args[0]), out, rows=_rows(node))

    def _select_rows(self, node: fx.Node) -> None:
        x, index = node.args
        self.tape.select_rows(self._value(x), self._value(index), self._out(node))

    def _row_output(self, node: fx.Node, plain: torch.Tensor) -> torch.Tensor | Int8Rows:
        """Where a row-wise op writes: int8 rows if the next op is the only one to read them, a linear on int8."""
        reader = _only_reader(node)
        if reader is None:
            return plain
        x, weight, *_ = reader.args
        rows = self._int8_rows(self._matrix(weight), plain.shape[0])
        if rows is None:
            return plain
        assert isinstance(x, fx.Node)
        self.quantized[x] = rows
        return rows

    def _input(self, x: Any, weight: PackedWeight, rows: Rows) -> torch.Tensor | Int8Rows:
        """What a linear reads: x as it is, or as int8 rows, which may have been written so."""
        if x in self.quantized:
            return self.quantized[x]
        plain = self._value(x)
        int8 = self._int8_rows(weight, plain.shape[0])
        if int8 is None:
            return plain
        self.tape.quantize(plain, int8, rows=rows)
        return int8

    def _int8_rows(self, weight: PackedWeight, max_rows: int) -> Int8Rows | None:
        """The buffer that all linears of one width and order share: each is written just before it is read."""
        if not self.int8_products or not weight.is_quantized:
            return None
        fitting = [rows for rows in self.int8_buffers if rows.serves(weight) and rows.data.shape[0] >= max_rows]
        if not fitting:
            self.int8_buffers.append(Int8Rows.for_weight(weight, max_rows=max_rows))
        return fitting[0] if fitting else self.int8_buffers[-1]

    def _out(self, node: fx.Node) -> torch.Tensor:
        (buffer,) = self.buffers[node]
        return buffer

    def _value(self, argument: Any) -> torch.Tensor:
        """The memory behind an argument: a step input, a cache, a vector parameter or an earlier result."""
        assert isinstance(argument, fx.Node)
        if argument.op == "placeholder":
            name = str(argument.target)
            return self.caches[name] if name in self.caches else self.inputs.tensor(name)
        if argument.op == "get_attr":
            parameter = self.parameters[str(argument.target)]
            assert isinstance(parameter, torch.Tensor), f"{argument.target} is a matrix"
            return parameter
        owner, index = resolve(argument)
        return self.buffers[owner][index]

    def _matrix(self, argument: Any) -> PackedWeight:
        assert isinstance(argument, fx.Node)
        parameter = self.parameters[str(argument.target)]
        assert isinstance(parameter, PackedWeight), f"{argument.target} is not packed"
        return parameter

    def _cache_shape(self, argument: Any) -> CacheShape:
        assert isinstance(argument, fx.Node)
        *_, num_kv_heads, head_dim = spec_of(argument).shape
        assert isinstance(num_kv_heads, int)
        assert isinstance(head_dim, int)
        return CacheShape(num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=self.page_size)


def _real(argument: Any) -> float:
    assert isinstance(argument, int | float)
    return float(argument)


def _rows(node: fx.Node) -> Rows:
    """Which of the step's sizes a node's result has."""
    spec = node.meta["spec"]
    first = spec[0] if isinstance(spec, tuple) else spec
    return Rows.LOGITS if first.shape[0] == "L" else Rows.TOKENS


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The linear that alone reads a row-wise op's rows, if it is the next op."""
    spec = node.meta["spec"]
    following = node
    value = node
    while not isinstance(following.next.target, Op):
        following = following.next
        if following.op == "output":
            return None
        if isinstance(spec, tuple) and following.target is operator.getitem and following.args == (node, 0):
            value = following
    following = following.next
    is_linear = isinstance(following.target, Op) and following.target.name == "linear"
    reads_it = is_linear and following.args[0] is value and list(value.users) == [following]
    return following if reads_it else None
