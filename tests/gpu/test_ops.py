"""What only a GPU can show of the kernels besides attention: captured equals eager, nothing waits, sizes past 2^31.

Everything in tests/kernels/triton runs on the GPU too where there is one.
"""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from phloem.core.request import SamplingParams
from phloem.graph.ops.model import frequencies
from phloem.kernels.triton.activation import silu_mul
from phloem.kernels.triton.gather import embed, select_rows
from phloem.kernels.triton.linear import linear
from phloem.kernels.triton.norm import add_rms_norm
from phloem.kernels.triton.rope import rope_kv_write
from phloem.kernels.triton.sample import sample
from phloem.runtime.exec.sampling.draw import uniform
from tests.kernels.triton.test_sample import NUM_KNOWN, NUM_PROMPT, RULES, is_right, store_of

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
VOCAB_SIZE = 151_936


@pytest.mark.parametrize("num_tokens", [len(RULES), 257])
def test_captured_equals_eager_and_nothing_waits(num_tokens: int) -> None:
    """Bit for bit; red when a launcher reads a device tensor or chooses by what it finds there."""
    torch.manual_seed(num_tokens)
    hidden, heads, head_dim = 1024, 32, 128
    x, weight = torch.randn(2, num_tokens, hidden, device=DEVICE).bfloat16()
    tokens = torch.randint(0, 900, (num_tokens,), device=DEVICE, dtype=torch.int32)
    table = torch.randn(900, hidden, device=DEVICE).bfloat16()
    qkv = torch.randn(num_tokens, heads * head_dim, device=DEVICE).bfloat16()
    cache = torch.zeros(num_tokens, 2, 16, 8, head_dim, device=DEVICE, dtype=torch.bfloat16)
    freq, slots = frequencies(head_dim).to(DEVICE), torch.randperm(16 * num_tokens, device=DEVICE)[:num_tokens].int()
    rows = torch.arange(len(RULES), dtype=torch.int32, device=DEVICE)
    store = store_of(RULES, list(range(len(RULES))), DEVICE)

    def run() -> list[torch.Tensor]:
        y, residual = add_rms_norm(x, embed(tokens, table), weight[0], 1e-6)
        q = rope_kv_write(qkv, weight[0, :head_dim], weight[1, :head_dim], 1e-6, tokens, slots, freq, cache)
        logits = linear(select_rows(silu_mul(qkv), tokens[: len(RULES)] % num_tokens), table.view(-1, 2048), None, True)
        return [y, residual, q, cache, logits, sample(logits, rows, store, append=False)]

    eager = run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    run()
    torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    kept = [each.clone() for each in eager]
    with torch.cuda.graph(graph):
        captured = run()
    for each in captured:
        each.fill_(7)
    cache.zero_()
    graph.replay()
    for ours, theirs in zip(captured, kept, strict=True):
        assert torch.equal(ours, theirs)


def test_slots_past_two_to_the_31() -> None:
    """A cache of more than 2^31 numbers: red when an offset into it is 32 bits wide."""
    num_pages, shape = 5000, (2, 64, 8, 512)
    assert num_pages * 2 * 64 * 8 * 512 > 1 << 31
    cache = torch.zeros(num_pages, *shape, device=DEVICE, dtype=torch.bfloat16)
    qkv = torch.randn(1, 17 * 512, device=DEVICE).bfloat16()
    position, slot = (torch.tensor([x], device=DEVICE, dtype=torch.int32) for x in (0, num_pages * 64 - 1))
    rope_kv_write(qkv, None, None, 1e-6, position, slot, frequencies(512).to(DEVICE), cache)
    assert torch.equal(cache[-1, :, -1].flatten(), qkv[0, 512:])
    assert not cache[0].any()


def test_sampling_at_full_size() -> None:
    """256 lines of a real vocabulary under every rule: the host's tokens, in a batch and alone, from run to run."""
    torch.manual_seed(5)
    num_lines = 256
    logits = torch.randn(num_lines, VOCAB_SIZE, device=DEVICE) * 2.5
    logits[1::2, ::5000] += 12  # every other line as peaked as a model's
    params = [RULES[line % len(RULES)] for line in range(num_lines)]
    store = store_of(params, list(range(num_lines)), DEVICE)
    rows = torch.arange(num_lines, dtype=torch.int32, device=DEVICE)
    token_ids = sample(logits, rows, store, append=False)
    assert torch.equal(sample(logits, rows, store, append=False), token_ids)
    assert torch.equal(sample(logits.flip(0), rows.flip(0), store, append=False), token_ids.flip(0))
    for line in range(2 * len(RULES)):
        number = uniform(seed=line, num_generated=NUM_KNOWN + line - NUM_PROMPT)
        assert is_right(logits[line], params[line], number, int(token_ids[line])), (line, params[line])


def test_sampled_tokens_follow_the_distribution() -> None:
    """4,096 seeds over 8 tokens: each is drawn as often as its probability says, within five standard deviations."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.25, -3.0, 1.5], device=DEVICE)
    store = store_of([SamplingParams()] * 4096, list(range(4096)), DEVICE)
    rows = torch.arange(4096, dtype=torch.int32, device=DEVICE)
    token_ids = sample(logits.expand(4096, 8).contiguous(), rows, store, truncates=False)
    share = token_ids.bincount(minlength=8) / 4096
    expected = logits.softmax(0)
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 4096).sqrt()).all()
