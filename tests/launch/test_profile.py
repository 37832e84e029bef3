"""`phloem bench --profile`: every op is timed, once a layer, and its cost is the cost model's."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from phloem.graph.compile import compile_graph
from phloem.graph.cost import StepLoad, total_cost
from phloem.kernels.cpu import library
from phloem.launch.cli import main
from phloem.launch.profile import Line, steps
from phloem.models.catalog import define_dummy

MODEL = "dummy:qwen2-tiny"


def profile(path: Path, *options: str) -> list[Line]:
    command = ["bench", MODEL, "--profile", "--memory-gb", "0.2", "--json", str(path), *options]
    assert main(command) == 0
    return msgspec.json.decode(path.read_bytes(), type=list[Line])


@pytest.mark.parametrize("has_library", [True, False])
def test_every_op_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_library: bool) -> None:
    """Red if an op is left out or counted twice, or if a backend's times are given to other ops."""
    if not has_library:
        monkeypatch.setattr(library, "load", lambda: library.Found(None, "hidden by a test"))
    lines = profile(tmp_path / "profile.json")
    graph = compile_graph(define_dummy(MODEL)).graph
    loads = (
        StepLoad(num_tokens=1, context=301),
        StepLoad(num_tokens=32, num_logits=32, num_rows=32, context=301),
        StepLoad(num_tokens=510, context=510),
    )
    for step, load in zip(steps(max_model_len=512), loads, strict=True):
        mine = [line for line in lines if line.step == step.title]
        assert all(line.seconds > 0 for line in mine)
        flops = sum(line.flops_per_s * line.seconds for line in mine if line.flops_per_s is not None)
        assert flops == pytest.approx(total_cost(graph, load, lambda name: 0).flops)
    num_layers = len(define_dummy(MODEL).layers)
    assert {line.op: line.num_calls for line in lines if line.op.startswith(("linear attention", "paged"))} == {
        "linear attention.q_k_v": num_layers,
        "linear attention.o": num_layers,
        "paged_attention": num_layers,
    }


def test_a_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red if a step loses its table."""
    profile(tmp_path / "profile.json")
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("decode, 1 row of 300", "decode, 32 rows of 300", "prompt of 510"))
    assert "linear mlp.down" in printed
