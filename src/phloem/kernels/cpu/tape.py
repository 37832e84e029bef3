"""The tape: a step as a flat array of instructions that one native call executes.

    tape = Tape(library, pool)
    tape.embed(token_ids, embedding, residual)         # one method per lowered op, in order; buffers are torch tensors
    ...
    tape.run(Dims(num_tokens=7, num_logit_rows=1, num_rows=1, num_groups=0))

Buffers are static: between steps only their contents and the dims change. The tape keeps references to everything an
instruction points at. Shapes and types are checked here, once, when the tape is built.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from enum import IntEnum

import torch

from phloem.kernels.cpu.int8_rows import Int8Rows
from phloem.kernels.cpu.kv_layout import page_elements
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import PackedWeight


class Op(IntEnum):
    """Numbered as native/ops.h does."""

    EMBED = 0
    RMS_NORM = 1
    ADD_RMS_NORM = 2
    LINEAR = 3
    ROPE_TABLE = 4
    ROPE_KV_WRITE = 5
    ATTENTION_PLAN = 6
    ATTENTION = 7
    ATTENTION_MERGE = 8
    SILU_MUL = 9
    SELECT_ROWS = 10
    ARGMAX = 11
    QUANTIZE = 12


class Rows(IntEnum):
    """Which of the step's sizes an instruction runs over."""

    TOKENS = 0
    LOGITS = 1
    ONE = 2


@dataclass(frozen=True)
class Dims:
    """What a step sets: T tokens, L logit rows, R rows, shared groups."""

    num_tokens: int
    num_logit_rows: int
    num_rows: int
    num_groups: int = 0


@dataclass(frozen=True)
class AttentionMeta:
    """The step's attention inputs, all int32: query_start [R+1], context_len [R], block_table [R, max_pages],
    shared_start [G+1], shared_rows [.], shared_pages [G] (see the contract of paged_attention)."""

    query_start: torch.Tensor
    context_len: torch.Tensor
    block_table: torch.Tensor
    shared_start: torch.Tensor
    shared_rows: torch.Tensor
    shared_pages: torch.Tensor


@dataclass(frozen=True)
class CacheShape:
    """One layer's cache: kv heads K, head dimension d, page size S."""

    num_kv_heads: int
    head_dim: int
    page_size: int


class Instruction(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("args", ctypes.c_int64 * 16),
        ("reals", ctypes.c_float * 4),
    )


class NativeDims(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("logit_rows", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("groups", ctypes.c_int64),
    )


class Product(IntEnum):
    """How a linear multiplies, numbered as native/ops.h does."""

    PLAIN = 0
    AMX = 1
    INT8 = 2


ACTIVATION_TYPES = {torch.bfloat16: 0, torch.float32: 1}
MAX_HEAD_DIM = 256
MAX_GROUP = 96  # query heads of one kv head


class Tape:
    """Builds and runs one step's instructions."""

    def __init__(self, library: Library, pool: Pool) -> None:
        self._library = library
        self._pool = pool
        self._instructions: list[Instruction] = []
        self._kept: list[object] = []
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._rope_tables: dict[tuple[int, int], torch.Tensor] = {}
        self._sealed: ctypes.Array[Instruction] | None = None
        self._dims = NativeDims()

    def __len__(self) -> int:
        return len(self._instructions)

    # ---- ops

    def embed(self, token_ids: torch.Tensor, weight: PackedWeight, out: torch.Tensor) -> None:
        """out [T, D] float32 = rows of weight [V, D]; token_ids [T] int32."""
        _check("token_ids", token_ids, torch.int32)
        _check("out", out, torch.float32, columns=weight.num_columns)
        self._add(Op.EMBED, Rows.TOKENS, [token_ids, weight, out, weight.num_columns, weight.storage_code])

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor | Int8Rows,
        *,
        eps: float,
        rows: Rows = Rows.TOKENS,
    ) -> None:
        """out [., D] = x * rsqrt(mean(x^2) + eps) * weight; x and weight float32."""
        columns = weight.shape[0]
        _check("x", x, torch.float32, columns=columns)
        _check("weight", weight, torch.float32)
        self._add(Op.RMS_NORM, rows, [x, weight, out, columns, _out("out", out, columns)], [eps])

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor | Int8Rows,
        *,
        eps: float,
        new_residual: torch.Tensor | None = None,
        rows: Rows = Rows.TOKENS,
    ) -> None:
        """new_residual (default: in place) = residual + x; out = rms_norm(new_residual) * weight."""
        columns = weight.shape[0]
        total = residual if new_residual is None else new_residual
        for name, tensor in (("residual", residual), ("new_residual", total)):
            _check(name, tensor, torch.float32, columns=columns)
        _check("weight", weight, torch.float32)
        sizes = [columns, _act("x", x, columns), _out("out", out, columns)]
        self._add(Op.ADD_RMS_NORM, rows, [x, residual, weight, out, total, *sizes], [eps])

    def linear(
        self,
        x: torch.Tensor | Int8Rows,
        weight: PackedWeight,
        out: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        rows: Rows = Rows.TOKENS,
    ) -> None:
        """out [., N] = x [., K] weight^T + bias; out in x's type or float32 (of Int8Rows: any); bias float32 [N]."""
        out_act = _act("out", out, weight.num_rows)
        if bias is not None:
            _check("bias", bias, torch.float32, columns=weight.num_rows)
        product = self._product(x, weight)
        act = x.type_code if isinstance(x, Int8Rows) else _act("x", x, weight.num_columns)
        sizes = [weight.num_columns, weight.num_rows, weight.storage_code, act, out_act, int(product)]
        self._add(Op.LINEAR, rows, [x, out, weight, bias, *sizes])

    def quantize(self, x: torch.Tensor, out: Int8Rows, *, rows: Rows = Rows.TOKENS) -> None:
        """out = x [., K] bfloat16 as int8 levels with a scale for each 32 columns."""
        _check("x", x, torch.bfloat16, columns=out.num_columns)
        self._add(Op.QUANTIZE, rows, [x, out, out.num_columns, int(out.is_even_odd)])

    def rope_kv_write(
        self,
        qkv: torch.Tensor,
        q: torch.Tensor,
        cache: torch.Tensor,
        *,
        shape: CacheShape,
        positions: torch.Tensor,
        slots: torch.Tensor,
        inv_freq: torch.Tensor,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """Rotates q of qkv [T, (H+2K)d] into q [T, H, d] (or [T, H*d]) and writes k, v to cache at slots [T] int32.

        A negative slot writes nothing. The first rope op of a tape over (positions, inv_freq) also emits their table.
        """
        dim, kv_heads = shape.head_dim, shape.num_kv_heads
        heads = qkv.shape[1] // dim - 2 * kv_heads
        act = _act("qkv", qkv, (heads + 2 * kv_heads) * dim)
        _check("q", q, qkv.dtype)
        self._check_cache(cache, qkv.dtype, shape)
        for norm in (q_norm, k_norm):
            if norm is not None:
                _check("norm", norm, torch.float32, columns=dim)
        table = self._rope_table(positions, inv_freq)
        sizes = [heads, kv_heads, dim, shape.page_size, act]
        self._add(Op.ROPE_KV_WRITE, Rows.TOKENS, [qkv, q, table, slots, cache, q_norm, k_norm, *sizes], [eps])

    def paged_attention(
        self,
        q: torch.Tensor,
        cache: torch.Tensor,
        out: torch.Tensor,
        *,
        meta: AttentionMeta,
        shape: CacheShape,
        num_heads: int,
        scale: float,
        window: int | None = None,
    ) -> None:
        """out [T, H*d] = causal attention of q [T, H, d] over each row's pages; with `window`, a query at position p
        sees keys p - window + 1 .. p. The first use of a meta and window also emits the plan that all layers share."""
        if num_heads % shape.num_kv_heads or num_heads // shape.num_kv_heads > MAX_GROUP:
            raise ValueError(f"{num_heads} query heads do not group over {shape.num_kv_heads} kv heads")
        if shape.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim is at most {MAX_HEAD_DIM}, not {shape.head_dim}")
        _check("q", q, out.dtype)
        act = _act("out", out, num_heads * shape.head_dim)
        self._check_cache(cache, q.dtype, shape)
        plan = self._plan(meta, shape, num_heads, window or 0)
        sizes = [meta.block_table.stride(0), num_heads, shape.num_kv_heads, shape.head_dim, shape.page_size]
        amx = int(self._library.uses_amx and q.dtype == torch.bfloat16)
        tail = [window or 0, act, meta.shared_start, meta.shared_rows, amx]
        arguments = [plan, q, cache, out, meta.block_table, *sizes, *tail]
        self._add(Op.ATTENTION, Rows.TOKENS, arguments, [scale])
        self._add(Op.ATTENTION_MERGE, Rows.TOKENS, arguments, [scale])

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor | Int8Rows, *, rows: Rows = Rows.TOKENS) -> None:
        """out [T, F] = silu(gate) * up for gate_up [T, 2F], gate first; out in gate_up's type, or int8 of bfloat16."""
        columns = gate_up.shape[1] // 2
        if isinstance(out, Int8Rows):
            _check("gate_up", gate_up, torch.bfloat16)
        else:
            _check("out", out, gate_up.dtype)
        act, out_act = _act("gate_up", gate_up, 2 * columns), _out("out", out, columns)
        self._add(Op.SILU_MUL, rows, [gate_up, out, columns, act, out_act])

    def select_rows(self, x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
        """out [L, D] = x [T, D] at index [L] int32."""
        _check("index", index, torch.int32)
        _check("x", x, x.dtype, columns=out.shape[1])
        _check("out", out, x.dtype)
        self._add(Op.SELECT_ROWS, Rows.LOGITS, [x, index, out, out.shape[1] * out.element_size()])

    def argmax(self, logits: torch.Tensor, token_ids: torch.Tensor, values: torch.Tensor) -> None:
        """The first largest of each row of logits [L, V] float32: token_ids [L] int32, values [L] float32."""
        _check("logits", logits, torch.float32, columns=logits.shape[1])
        _check("token_ids", token_ids, torch.int32)
        _check("values", values, torch.float32)
        self._add(Op.ARGMAX, Rows.LOGITS, [logits, token_ids, values, logits.shape[1]])

    # ---- running

    def run(self, dims: Dims, part: slice | None = None) -> None:
        """Executes every instruction for a step of these sizes; returns when the last is done. Releases the GIL."""
        sealed = self._seal(dims)
        start, stop = (0, len(sealed)) if part is None else (part.start, part.stop)
        first = ctypes.byref(sealed, start * ctypes.sizeof(Instruction))
        self._library.run(self._pool.address, first, stop - start, ctypes.byref(self._dims))

    def profile(self, dims: Dims) -> list[float]:
        """The same, instruction by instruction; seconds of each."""
        sealed, times = self._seal(dims), []
        for index in range(len(sealed)):
            began_s = time.perf_counter()
            self._library.run(self._pool.address, ctypes.byref(sealed[index]), 1, ctypes.byref(self._dims))
            times.append(time.perf_counter() - began_s)
        return times

    # ---- parts

    def _seal(self, dims: Dims) -> ctypes.Array[Instruction]:
        if self._sealed is None:
            self._sealed = (Instruction * len(self._instructions))(*self._instructions)
        native = self._dims
        native.tokens, native.logit_rows = dims.num_tokens, dims.num_logit_rows
        native.rows, native.groups = dims.num_rows, dims.num_groups
        return self._sealed

    def _add(self, op: Op, rows: Rows, arguments: list[object], reals: list[float] | None = None) -> None:
        values = [_address(argument) for argument in arguments]
        self._kept.extend(argument for argument in arguments if not isinstance(argument, int | None))
        instruction = Instruction(op=op, rows=rows)
        instruction.args[: len(values)] = values
        instruction.reals[: len(reals or [])] = reals or []
        self._instructions.append(instruction)
        self._sealed = None

    def _product(self, x: torch.Tensor | Int8Rows, weight: PackedWeight) -> Product:
        if isinstance(x, Int8Rows):
            if not x.serves(weight):
                raise ValueError(f"int8 rows of {x.num_columns} columns were made for another storage or width")
            return Product.INT8
        if x.dtype == torch.bfloat16 and weight.storage == "f32":
            raise ValueError("float32 weights need float32 activations: pack them as bf16")
        return Product.AMX if self._library.uses_amx and x.dtype == torch.bfloat16 else Product.PLAIN

    def _check_cache(self, cache: torch.Tensor, dtype: torch.dtype, shape: CacheShape) -> None:
        elements = page_elements(shape.num_kv_heads, shape.head_dim, shape.page_size)
        _check("cache", cache, dtype, columns=elements)

    def _rope_table(self, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
        key = (positions.data_ptr(), inv_freq.data_ptr())
        if key not in self._rope_tables:
            _check("positions", positions, torch.int32)
            _check("inv_freq", inv_freq, torch.float32)
            half = inv_freq.shape[0]
            table = torch.empty(positions.shape[0], 2 * half, dtype=torch.float32)
            self._rope_tables[key] = table
            self._add(Op.ROPE_TABLE, Rows.TOKENS, [positions, inv_freq, table, half])
        return self._rope_tables[key]

    def _plan(self, meta: AttentionMeta, shape: CacheShape, num_heads: int, window: int) -> Plan:
        arrays = [meta.query_start, meta.context_len, meta.shared_start, meta.shared_rows, meta.shared_pages]
        for array in (*arrays, meta.block_table):
            _check("attention meta", array, torch.int32)
        sizes = [shape.page_size, num_heads, shape.num_kv_heads, shape.head_dim, window]
        key = (*(array.data_ptr() for array in arrays), *sizes)
        if key not in self._plans:
            plan = Plan(self._library)
            self._plans[key] = plan
            self._add(Op.ATTENTION_PLAN, Rows.ONE, [plan, *arrays, *sizes])
        return self._plans[key]


class Plan:
    """A native attention plan, freed with its owner."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.address: int = library.create_plan()

    def __del__(self) -> None:
        self._library.destroy_plan(self.address)


def _address(argument: object) -> int:
    if argument is None:
        return 0
    if isinstance(argument, int):
        return argument
    if isinstance(argument, PackedWeight | Int8Rows):
        return argument.data.data_ptr()
    if isinstance(argument, Plan):
        return argument.address
    assert isinstance(argument, torch.Tensor)
    return argument.data_ptr()


def _check(name: str, tensor: torch.Tensor, dtype: torch.dtype, *, columns: int | None = None) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{name} must be contiguous {dtype} on the CPU, not {tensor.dtype} {tuple(tensor.shape)}")
    if columns is not None and tensor.shape[-1] != columns:
        raise ValueError(f"{name} must have {columns} columns, not shape {tuple(tensor.shape)}")


def _act(name: str, tensor: torch.Tensor, columns: int) -> int:
    _check(name, tensor, tensor.dtype, columns=columns)
    if tensor.dtype not in ACTIVATION_TYPES:
        raise ValueError(f"{name} must be bfloat16 or float32, not {tensor.dtype}")
    return ACTIVATION_TYPES[tensor.dtype]


def _out(name: str, out: torch.Tensor | Int8Rows, columns: int) -> int:
    """The type of a row-wise op's output."""
    if not isinstance(out, Int8Rows):
        return _act(name, out, columns)
    if out.num_columns != columns:
        raise ValueError(f"{name} must have {columns} columns, not {out.num_columns}")
    return out.type_code
