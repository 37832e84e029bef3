"""The device row store against the host's (runtime/exec/rows.py, runtime/exec/inputs.py): same plans, same inputs.

Red when a kernel reads the packed plan otherwise than packed.py writes it, forgets to pad a bucket, or counts tokens
otherwise than the host's row store.
"""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np
import pytest
import torch

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS, RowStart, SharedPrefix, StepPlan
from phloem.core.request import SamplingParams
from phloem.graph.capture.inputs import StepInputs, StepLimits
from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.kernels.triton.rows import apply_plan, fill_inputs
from phloem.runtime.exec.inputs import fill_inputs as fill_on_host
from phloem.runtime.exec.inputs import logit_rows
from phloem.runtime.exec.rows import RowStore

PAGE_SIZE, MAX_ROWS, MAX_LEN = 16, 12, 1500
MAX_PAGES = -(-MAX_LEN // PAGE_SIZE) + 1
POISON = -77


class Twin:
    """A host row store and a device one, driven by the same plans."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = RowStore(
            max_rows=MAX_ROWS, max_model_len=MAX_LEN, page_size=PAGE_SIZE, vocab_size=50, end_token_ids=()
        )
        self.store = RowTensors.empty(max_rows=MAX_ROWS, max_model_len=MAX_LEN, max_pages=MAX_PAGES, device=device)

    def step(self, plan: StepPlan, size: BucketSize) -> None:
        """Apply and fill on both sides, compare inputs and counts."""
        additions = [
            (row, int(self.host.num_pages[row]) + index, page)
            for row, pages in plan.new_pages
            for index, page in enumerate(pages)
        ]
        additions += [(start.row, index, page) for start in plan.starts for index, page in enumerate(start.pages)]
        self.host.apply(plan)
        inputs = StepInputs(StepLimits(max_tokens=2048, max_rows=MAX_ROWS, max_pages_per_row=MAX_PAGES))
        dims = fill_on_host(plan=plan, rows=self.host, inputs=inputs)
        self.host.advance(np.asarray(plan.rows, dtype=np.int64), np.asarray(plan.num_tokens, dtype=np.int32))

        step = _poisoned(size, self.device)
        words, line_rows = _pack(plan, additions, inputs, dims.num_shared)
        device_plan = torch.from_numpy(words).to(self.device)
        for start in plan.starts:
            tokens = torch.tensor(start.token_ids, dtype=torch.int32, device=self.device)
            self.store.tokens[start.row, : len(start.token_ids)] = tokens
        apply_plan(device_plan, self.store)
        fill_inputs(device_plan, self.store, step, size, page_size=PAGE_SIZE)

        used = {name: value.to(self.device) for name, value in inputs.in_use(dims).items()}
        num_rows, num_tokens, num_logits, groups = dims.num_rows, dims.num_tokens, dims.num_logits, dims.num_shared
        for name in ("token_ids", "positions", "slots"):
            padding = -1 if name == "slots" else 0
            expected = torch.full((size.num_tokens,), padding, dtype=torch.int32, device=self.device)
            expected[:num_tokens] = used[name]
            assert torch.equal(getattr(step, name), expected), name
        flat = torch.full((size.num_rows - num_rows,), num_tokens, dtype=torch.int32, device=self.device)
        assert torch.equal(step.query_start, torch.cat([used["query_start"], flat]))
        assert torch.equal(step.context_len, torch.cat([used["context_len"], flat * 0]))
        for index, length in enumerate(used["context_len"].tolist()):
            pages = -(-length // PAGE_SIZE)
            assert torch.equal(step.block_table[index, :pages], used["block_table"][index, :pages])
        assert torch.equal(step.logit_rows[:num_logits], used["logit_rows"])
        assert not step.logit_rows[num_logits : size.num_logits].any()
        assert step.line_rows.tolist() == [*line_rows, *[-1] * (size.num_logits - num_logits)]
        assert torch.equal(step.shared_start[: groups + 1], used["shared_start"])
        assert (step.shared_start[groups : size.num_shared + 1] == len(used["shared_rows"])).all()
        assert torch.equal(step.shared_rows[: len(used["shared_rows"])], used["shared_rows"])
        assert torch.equal(step.shared_pages[:groups], used["shared_pages"])
        self.same_counts()

    def append(self, rows: list[int], token_ids: list[int]) -> None:
        """What the sampler does to both: a token becomes known."""
        for row, token in zip(rows, token_ids, strict=True):
            self.store.tokens[row, int(self.store.known[row])] = token
            self.store.known[row] += 1
            self.host.append(row, token)

    def same_counts(self) -> None:
        assert self.store.known.tolist() == self.host.known.tolist()
        assert self.store.computed.tolist() == self.host.computed.tolist()
        for row, count in enumerate(self.host.known):
            assert self.store.tokens[row, :count].tolist() == self.host.tokens[row, :count].tolist()


def _poisoned(size: BucketSize, device: torch.device) -> StepTensors:
    lengths = dict.fromkeys(("token_ids", "positions", "slots"), size.num_tokens)
    lengths |= {"query_start": size.num_rows + 1, "shared_start": size.num_rows + 1}
    lengths |= {"logit_rows": size.num_logits, "line_rows": size.num_logits}
    shapes = {field.name: (lengths.get(field.name, size.num_rows),) for field in fields(StepTensors)}
    shapes["block_table"] = (size.num_rows, MAX_PAGES)
    return StepTensors(**{name: torch.full(s, POISON, dtype=torch.int32, device=device) for name, s in shapes.items()})


def _pack(
    plan: StepPlan, additions: list[tuple[int, int, int]], inputs: StepInputs, num_shared: int
) -> tuple[packed.IntArray, list[int]]:
    start = np.concatenate([[0], np.cumsum(plan.num_tokens)]).astype(np.int32)
    lines = logit_rows(plan.logits, start)
    row_of_token = np.repeat(plan.rows, plan.num_tokens)
    ends = {int(stop) - 1 for stop in start[1:]}
    line_rows = [int(row_of_token[token]) if int(token) in ends else -1 for token in lines]
    starts = [
        packed.start_words(
            row=each.row,
            num_known=len(each.token_ids),
            num_computed=each.num_computed,
            num_prompt=each.num_prompt_tokens,
            sampling=packed.sampling_words(temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, seed=each.seed),
        )
        for each in plan.starts
    ]
    shared_start = inputs.array("shared_start")[: num_shared + 1]
    step = packed.PackedStep(
        batch_rows=np.asarray(plan.rows, dtype=np.int32),
        query_start=start,
        line_tokens=lines.astype(np.int32),
        line_rows=np.asarray(line_rows, dtype=np.int32),
        shared_start=shared_start,
        shared_rows=inputs.array("shared_rows")[: shared_start[-1]],
        shared_pages=inputs.array("shared_pages")[:num_shared],
        starts=np.asarray(starts, dtype=np.int32).reshape(-1, packed.START_WORDS),
        pages=np.asarray(additions, dtype=np.int32).reshape(-1, packed.PAGE_WORDS),
    )
    words = np.full(packed.max_words(max_rows=MAX_ROWS, max_logits=2048, max_pages=600), POISON, dtype=np.int32)
    used = packed.pack(step, words)
    assert used <= len(words)
    assert (words[used:] == POISON).all()
    return words, line_rows


def _start(row: int, num_tokens: int, num_computed: int, first_page: int, seed: int = 3) -> RowStart:
    rng = random.Random(row + num_tokens)
    pages = tuple(range(first_page, first_page + num_tokens // PAGE_SIZE + 1))
    tokens = tuple(rng.randrange(50) for _ in range(num_tokens))
    return RowStart(row, row + 100, tokens, num_tokens - 1, num_computed, pages, SamplingParams(), seed)


def test_a_sequence_of_steps_matches_the_host(device: torch.device) -> None:
    """A start with a cached prefix, a chunked prompt, decode beside prefill, page additions, a row reused."""
    twin = Twin(device)
    size = BucketSize(num_rows=8, num_tokens=1400, num_logits=20, num_shared=4)
    starts = (_start(5, 1300, 0, 0), _start(2, 33, 32, 100), _start(7, 16, 0, 300))
    plan = StepPlan(step=0, starts=starts, rows=(5, 2, 7), num_tokens=(1025, 1, 16), logits=(NO_LOGITS, 1, 2))
    twin.step(plan, size)
    twin.append([2], [41])
    twin.append([7], [4])
    decode = BucketSize(num_rows=4, num_tokens=4, num_logits=4, num_shared=2)
    shared = (SharedPrefix(rows=(7, 2), num_pages=1),)
    plan = StepPlan(step=1, new_pages=((7, (301, 309)),), rows=(2, 7), num_tokens=(1, 1), logits=(1, 1), shared=shared)
    twin.step(plan, decode)
    twin.append([2, 7], [1, 2])
    plan = StepPlan(
        step=2, ends=(2,), starts=(_start(2, 17, 3, 400),), rows=(7, 5, 2), num_tokens=(1, 275, 14), logits=(1, 1, 1)
    )
    twin.step(plan, size)


@pytest.mark.parametrize("num_rows", [1, 2, 11, 12])
def test_full_and_nearly_empty_buckets(device: torch.device, num_rows: int) -> None:
    """Every row of the bucket in use, and one; several token counts around a page's edge."""
    twin = Twin(device)
    starts = tuple(_start(row, 15 + row % 3, 0, 10 * row) for row in range(num_rows))
    counts = tuple(15 + row % 3 for row in range(num_rows))
    flags = tuple((LAST_LOGITS, ALL_LOGITS, NO_LOGITS)[row % 3] for row in range(num_rows))
    order = tuple(reversed(range(num_rows)))
    plan = StepPlan(step=0, starts=starts, rows=order, num_tokens=counts[::-1], logits=flags[::-1])
    twin.step(plan, BucketSize(num_rows=12, num_tokens=12 * 17, num_logits=200, num_shared=0))


def test_many_pages_and_starts(device: torch.device) -> None:
    """More additions and starts than one program of apply_plan takes at a time, and sampling words arrive."""
    twin = Twin(device)
    starts = tuple(_start(row, 700, 690, 50 * row, seed=(1 << 63) + row) for row in range(MAX_ROWS))
    plan = StepPlan(
        step=0, starts=starts, rows=tuple(range(MAX_ROWS)), num_tokens=(10,) * MAX_ROWS, logits=(1,) * MAX_ROWS
    )
    twin.step(plan, BucketSize(num_rows=12, num_tokens=120, num_logits=12))
    sampling = twin.store.sampling.cpu().numpy()
    assert sampling[:, :3].view(np.float32).tolist() == [[0.5, 0.25, 0.125]] * MAX_ROWS
    assert sampling[:, packed.TOP_K].tolist() == [7] * MAX_ROWS
    halves = np.ascontiguousarray(sampling[:, [packed.SEED_LOW, packed.SEED_HIGH]])
    assert halves.view(np.uint64)[:, 0].tolist() == [(1 << 63) + row for row in range(MAX_ROWS)]
