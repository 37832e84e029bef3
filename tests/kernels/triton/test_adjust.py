"""Adjusted logits and reports on the device against the host's (runtime/exec/sampling).

Red when a penalty counts the prompt where it may not or misses a token, a bias or mask reaches another token, an end
token escapes min_tokens, or rank and alternatives follow another order.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phloem.core.request import SamplingParams
from phloem.kernels.triton import packed
from phloem.kernels.triton.adjust import CHUNK, TOKENS_BLOCK, adjust
from phloem.kernels.triton.report import report
from phloem.kernels.triton.row_tensors import RowTensors
from phloem.runtime.exec.sampling.adjust import adjusted
from phloem.runtime.exec.sampling.logprobs import token_logprob
from phloem.runtime.exec.sampling.state import SamplingState

VOCAB_SIZE = 2 * CHUNK + 37
END_IDS = (3, CHUNK, VOCAB_SIZE - 1)
NUM_PROMPT, NUM_GENERATED = TOKENS_BLOCK + 9, 40

PARAMS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(presence_penalty=0.7),
    SamplingParams(frequency_penalty=-0.3, repetition_penalty=0.8),
    SamplingParams(logit_bias={0: 5.0, CHUNK: -3.0, VOCAB_SIZE - 1: 1.0}),
    SamplingParams(min_tokens=NUM_GENERATED + 1, max_tokens=99),
    SamplingParams(min_tokens=NUM_GENERATED, max_tokens=99),
    SamplingParams(
        min_tokens=99, max_tokens=99, stop_token_ids=(8,), logit_bias={token: 0.01 * token for token in range(900)},
        repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1,
    ),
]  # fmt: skip


def words_of(params: SamplingParams, *, num_ends: int, has_mask: bool) -> list[int]:
    return packed.sampling_words(
        temperature=params.temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        seed=0,
        penalties=(params.repetition_penalty, params.presence_penalty, params.frequency_penalty),
        min_tokens=params.min_tokens,
        num_biases=len(params.logit_bias),
        num_ends=num_ends,
        has_mask=has_mask,
    )


@pytest.mark.parametrize("has_mask", [False, True])
def test_logits_are_adjusted_as_on_the_host(device: torch.device, has_mask: bool) -> None:
    generator = np.random.default_rng(5)
    raw = generator.standard_normal((len(PARAMS) + 1, VOCAB_SIZE), dtype=np.float32) * 3
    store = RowTensors.empty(
        max_rows=len(PARAMS), max_model_len=2000, max_pages=1, device=device, vocab_size=VOCAB_SIZE
    )
    wanted = raw.copy()
    for row, params in enumerate(PARAMS):
        tokens = generator.integers(0, VOCAB_SIZE, NUM_PROMPT + NUM_GENERATED)
        tokens[-9:], tokens[-12:-10] = tokens[3], tokens[-20]
        state = SamplingState(
            params=params, seed=0, prompt=tokens[:NUM_PROMPT].tolist(), generated=tokens[NUM_PROMPT:].tolist(),
            vocab_size=VOCAB_SIZE, end_token_ids=END_IDS,
        )  # fmt: skip
        allowed = generator.random(VOCAB_SIZE) < 0.4
        row_logits = np.where(allowed, raw[row], -np.inf).astype(np.float32) if has_mask else raw[row]
        wanted[row] = adjusted(row_logits, state)
        bits = np.zeros(store.masks.shape[1] * 32, dtype=np.bool_)
        bits[:VOCAB_SIZE] = allowed
        store.masks[row] = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))
        store.tokens[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int32))
        store.tokens[row, len(tokens) :] = 11  # not known: must not count
        store.num_prompt[row], store.known[row] = NUM_PROMPT, len(tokens)
        listed = packed.listed_words(state.end_ids, state.bias_ids, state.bias_values)
        store.listed[row] = torch.from_numpy(listed)
        store.sampling[row] = torch.tensor(words_of(params, num_ends=len(state.end_ids), has_mask=has_mask))
    logits = torch.from_numpy(raw).to(device)
    line_rows = torch.tensor([*range(len(PARAMS) - 1, -1, -1), -1], dtype=torch.int32, device=device)
    logits[: len(PARAMS)] = logits[: len(PARAMS)].flip(0)
    adjust(logits, line_rows, store)
    assert not store.counts.any(), "all counts are taken back"
    ours = logits.cpu().numpy()
    assert np.array_equal(ours[-1], raw[-1]), "a line without row stays as it is"
    for line, row in enumerate(line_rows.tolist()[:-1]):
        np.testing.assert_allclose(ours[line], wanted[row], rtol=1e-6, atol=1e-6, err_msg=str(PARAMS[row]))
        assert np.array_equal(np.isneginf(ours[line]), np.isneginf(wanted[row]))


@pytest.mark.parametrize("vocab_size", [7, 100, 2 * CHUNK + 37])
def test_reports_are_the_hosts(device: torch.device, vocab_size: int) -> None:
    generator = np.random.default_rng(vocab_size)
    logits = (generator.standard_normal((5, vocab_size)) * 2).round(1).astype(np.float32)  # with ties, and zeros
    logits[1, generator.random(vocab_size) < 0.5] *= -0.0
    logits[2, 3:] = -np.inf
    store = RowTensors.empty(max_rows=5, max_model_len=1, max_pages=1, device=device)
    num_tops = (0, 20, 5, None, 1)
    for row, num_top in enumerate(num_tops):
        store.sampling[row, packed.REPORTS] = 0 if num_top is None else num_top + 1
    drawn = [vocab_size - 1, vocab_size // 2, 1, 0, 5]
    words = report(
        torch.from_numpy(logits).to(device),
        torch.tensor(drawn, dtype=torch.int32, device=device),
        torch.arange(5, dtype=torch.int32, device=device),
        store,
    )
    for row, num_top in enumerate(num_tops):
        if num_top is None:
            continue
        wanted = token_logprob(logits[row], drawn[row], num_top)
        ours = words[row].cpu().numpy()
        count = min(num_top, vocab_size)
        assert ours[packed.REPORT_RANK] == wanted.rank
        assert ours.view(np.float32)[packed.REPORT_LOGPROB] == pytest.approx(wanted.logprob, abs=1e-5)
        ids = ours[packed.REPORT_IDS : packed.REPORT_IDS + count].tolist()
        values = ours.view(np.float32)[packed.REPORT_VALUES : packed.REPORT_VALUES + count]
        assert ids == [token for token, _ in wanted.top]
        assert np.maximum(values, -9999.0).tolist() == pytest.approx([value for _, value in wanted.top], abs=1e-5)
