"""Paged attention on a CUDA device: every head size and ratio, both types, long contexts, captured graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from phloem.kernels.vendor.implementations import capabilities
from tests.kernels.triton.attention_cases import Step, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.bfloat16, torch.float16]
CONTEXTS = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 800, 1023, 1025, 2049)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", range(1, 9))
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_heads(head_dim: int, ratio: int, dtype: torch.dtype) -> None:
    """Red if a head size or a ratio has its heads packed, padded or scaled wrongly, in decoding or in a prompt."""
    kind = {"heads": (3 * ratio, 3), "head_dim": head_dim, "dtype": dtype, "device": "cuda"}
    page_size = (16, 32, 64, 128)[(ratio + head_dim // 32) % 4]
    make_step(CONTEXTS, [1] * len(CONTEXTS), page_size=page_size, **kind).check()
    make_step([300, 40, 777, 129], [1, 1, 777, 70], page_size=page_size, **kind).check()


@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize("window", [1, 100, 1024])
def test_window(window: int, page_size: int) -> None:
    """Red if a key outside the window is used or read, whichever kernel does the row."""
    kind = {"dtype": torch.bfloat16, "device": "cuda", "window": window, "page_size": page_size}
    make_step(CONTEXTS, [1] * len(CONTEXTS), **kind).check()
    make_step([1500, 40, 777, 129], [1, 3, 5, 4], **kind).check()
    make_step([1500, 40, 1777, 129], [1, 1, 1777, 70], **kind).check()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 31, 32, 33, 127, 129, 256, 600])
def test_rows_around_every_boundary(num_rows: int, deterministic: bool) -> None:
    """Red if the shares of the work leave out or repeat a piece for some number of rows and mix of lengths."""
    generator = torch.Generator().manual_seed(num_rows)
    contexts = [int(x) for x in torch.randint(1, 1500, (num_rows,), generator=generator)]
    step = make_step(contexts, [1] * num_rows, heads=(16, 8), head_dim=128, dtype=torch.bfloat16, device="cuda")
    step.check(deterministic=deterministic)


@pytest.mark.parametrize("queries", [1, 4, 300])
def test_context_of_128k(queries: int) -> None:
    """Red if an offset overflows 32 bits or a sum over many blocks drifts."""
    kind = {"heads": (8, 2), "head_dim": 128, "dtype": torch.bfloat16, "device": "cuda"}
    make_step([131072, 700], [queries, 1], num_decode_rows=0, **kind).check()


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("ratio", [1, 5, 8])
def test_shared_prefixes(ratio: int, head_dim: int) -> None:
    """Red if a row of a group reads the prefix by its own table (NaN there) or its pieces are joined wrongly."""
    contexts = [1024 + 7 * row for row in range(70)] + [300] * 5
    groups = [(range(0, 66, 2), 60), (range(1, 66, 2), 33), ([70, 72, 73], 18)]
    kind = {"heads": (2 * ratio, 2), "head_dim": head_dim, "dtype": torch.bfloat16, "device": "cuda"}
    make_step(contexts, [1] * 75, groups=groups, **kind).check()
    make_step([*contexts, 900], [1] * 75 + [120], groups=groups, **kind).check(max_group_rows=33)


def _steps(*, grouped: bool) -> list[Step]:
    kind = {"heads": (16, 8), "head_dim": 128, "dtype": torch.bfloat16, "device": "cuda"}
    groups = [([0, 1, 2, 3], 16)] if grouped else []  # deterministic rows ignore groups and look for themselves
    return [
        make_step([300, 900, 1500, 333, 40], [1] * 5, **kind),
        make_step([300, 900, 1500, 333, 40], [1] * 5, groups=groups, **kind),
        make_step([300, 900, 1500, 333, 40], [1, 1, 1, 200, 40], **kind),
    ]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("index", range(3))
def test_captured_equals_eager(index: int, deterministic: bool) -> None:
    """Red if a launch reads a device value on the host, or a replay does not follow lengths that changed since."""
    step = _steps(grouped=not deterministic)[index]
    bounds = {"max_context_len": 8192, "deterministic": deterministic}
    step.run(**bounds)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run(**bounds)
    for shorter in (0, 1, 130):
        step.meta["context_len"][2] -= shorter
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, step.run(**bounds))
        step.check(**bounds)


def test_same_bits_alone_and_in_any_batch() -> None:
    """Red if, in deterministic mode, another row changes how a row's keys are split or summed."""
    generator = torch.Generator().manual_seed(5)
    contexts = [2500, *(int(x) for x in torch.randint(1, 3000, (63,), generator=generator))]
    step = make_step(contexts, [1] * 64, heads=(16, 8), head_dim=128, dtype=torch.bfloat16, device="cuda")
    first = None
    for num_rows in (64, 33, 7, 1):
        rows = {name: values[: num_rows + (name == "query_start")] for name, values in step.meta.items()}
        part = Step(step.q[:num_rows], step.kv_cache, rows, step.kv_cache, step.reference_table, None, step.shape)
        sizes = {"num_rows": num_rows, "num_tokens": num_rows, "num_decode_rows": num_rows}
        result = part.run(**sizes, deterministic=True)[0]
        assert first is None or torch.equal(result, first)
        first = result


@pytest.mark.skipif(not capabilities(), reason="needs FlashAttention-3")
@pytest.mark.parametrize("window", [None, 100])
def test_flash_attention3(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the library is told other rows, pages or windows than ours."""
    from phloem.kernels.triton import attention
    from phloem.kernels.vendor.flash_attention3 import paged_attention

    monkeypatch.setattr(attention, "paged_attention", paged_attention)
    kind = {"heads": (10, 2), "head_dim": 128, "dtype": torch.bfloat16, "device": "cuda", "window": window}
    for contexts, queries in (([1500, 40, 1777, 129, 300], [1, 1, 1777, 70, 1]), ([300, 129, 0], [300, 70, 0])):
        step = make_step(contexts, queries, spare_tokens=5, **kind)
        replace(step, kv_cache=step.reference_cache).check()  # it reads whole blocks, also before a window
