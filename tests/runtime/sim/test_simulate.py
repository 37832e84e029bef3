"""The simulator against what can be computed by hand, and against the engine that it stands for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from phloem.core.clock import ManualClock
from phloem.core.errors import ConfigError
from phloem.core.request import SamplingParams
from phloem.core.wire import Submit
from phloem.launch.cli import main
from phloem.parallel.replicas import Routing, make_policy
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox
from phloem.runtime.record import Recorder, RecordingScheduler
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler
from phloem.runtime.sim.cost import Sample, StepCost, StepShape, fit
from phloem.runtime.sim.fleet import Fleet, Machine
from phloem.runtime.sim.hardware import CARDS, MODELS, num_kv_tokens, stage_cost
from phloem.runtime.sim.report import summarise
from phloem.runtime.sim.trace import Arrival, read_recording, read_trace
from phloem.runtime.sim.worker import SimulatedWorker

SETTINGS = SchedulerSettings(num_pages=400, page_size=16, max_rows=8, max_step_tokens=64, max_model_len=2048)
STEADY = StepCost(fixed_s=0.01)


def simulated(arrivals: list[Arrival], *, policy: str = "round-robin", num_replicas: int = 1, **machine: object):
    machines = [Machine(**{"settings": SETTINGS, "cost": STEADY, **machine})] * num_replicas
    return Fleet(machines, Routing(make_policy(policy))).run(arrivals)


def test_steps_last_as_long_as_the_cost_says() -> None:
    """Red if a prompt is not chunked as the scheduler does (130 tokens in budgets of 64: three steps), if a token
    takes anything but a step, or a clock runs beside the plans."""
    (outcome,) = simulated([Arrival(1.0, 130, 4, 0)])
    assert outcome.token_s == pytest.approx([1.03, 1.04, 1.05, 1.06])
    assert outcome.ttft_s == pytest.approx(0.03)


def test_a_pipeline_has_the_latency_of_its_stages_and_the_throughput_of_one() -> None:
    """Red if stages do not work at the same time, or one request is faster than all its stages."""
    few = simulated([Arrival(0, 10, 40, 0)], settings=_piped(), num_stages=2)
    many = simulated([Arrival(0, 10, 40, serial) for serial in range(2)], settings=_piped(), num_stages=2)
    assert few[0].token_s[1] - few[0].token_s[0] == pytest.approx(0.02)
    assert many[-1].token_s[-1] < 1.2 * few[0].token_s[-1]


def _piped() -> SchedulerSettings:
    return SchedulerSettings(
        num_pages=400, page_size=16, max_rows=8, max_step_tokens=64, max_model_len=2048, num_micro_batches=2
    )


def test_cache_aware_routing_hits_what_round_robin_misses() -> None:
    """Red if the router's real policy is not what decides, or replicas share one cache. Three groups, so that four
    replicas in turn never see a group twice in a row."""
    arrivals = [Arrival(0.3 * n, 96, 2, n, blocks=(n % 3,), block_tokens=80) for n in range(48)]
    rates = {
        policy: summarise(simulated(arrivals, policy=policy, num_replicas=4)).hit_rate
        for policy in ("round-robin", "cache-aware")
    }
    assert rates["cache-aware"] > rates["round-robin"] + 0.1


def test_coefficients_are_found_again() -> None:
    """Red if a column is mixed up with another."""
    cost = StepCost(fixed_s=3e-3, token_s=2e-4, row_s=1e-4, context_s=1e-7, attended_s=2e-8)
    shapes = [StepShape(n, 1 + n % 7, 50 * (n % 11) + n, 31 * n * (1 + n % 5)) for n in range(1, 80)]
    found = fit([Sample(shape, cost.step_s(shape)) for shape in shapes])
    assert [found.step_s(shape) for shape in shapes] == pytest.approx([cost.step_s(shape) for shape in shapes], 1e-6)
    with pytest.raises(ValueError, match="too few"):
        fit([])


def test_a_recording_gives_back_arrivals_and_step_times(tmp_path: Path) -> None:
    """Red if a prompt, an answer's length or the time of a step is lost between the recorder and the simulator: what
    was recorded is simulated again and ends at the same times."""
    path, clock, inbox = tmp_path / "run.phloem", ManualClock(), Mailbox()
    cost = StepCost(fixed_s=0.01, token_s=1e-3)
    with path.open("wb") as file:
        scheduler = RecordingScheduler(make_scheduler(SETTINGS), Recorder(file, settings=SETTINGS))
        worker = SimulatedWorker(cost=cost, clock=clock)
        loop = Loop(scheduler=scheduler, worker=worker, inbox=inbox, outbox=Mailbox(), clock=clock)
        for n in range(6):
            prompt = tuple(range(100 * n, 100 * n + 70 + n))
            inbox.send([Submit(str(n), prompt, SamplingParams(max_tokens=5 + n, ignore_eos=True))])
        while loop.turn():
            pass
    recorded = read_recording(path)
    assert [(each.num_prompt, each.num_output) for each in recorded.arrivals] == [(70 + n, 5 + n) for n in range(6)]
    again = Fleet([Machine(settings=SETTINGS, cost=fit(recorded.samples))], Routing(make_policy("round-robin")))
    assert again.run(recorded.arrivals)[-1].token_s[-1] == pytest.approx(clock.now_s(), rel=0.02)


def test_traces_are_read_and_wrong_ones_are_named(tmp_path: Path) -> None:
    """Red if shared blocks do not become shared tokens, or a wrong file is a traceback."""
    trace = tmp_path / "a.jsonl"
    line = {"timestamp": 500, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}
    other = {**line, "timestamp": 1500, "hash_ids": [7, 9]}
    trace.write_text(f"{json.dumps(line)}\n{json.dumps(other)}\n")
    first, second = read_trace(trace, limit=9, rate=2)
    assert (first.at_s, second.at_s) == (0.25, 0.75)
    assert first.prompt()[:512] == second.prompt()[:512]
    assert first.prompt()[512] != second.prompt()[512]
    trace.write_text("{}\n")
    with pytest.raises(ConfigError, match="Mooncake"):
        read_trace(trace, limit=1)
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "b.csv", limit=1)


def test_more_cards_make_a_step_shorter_until_the_collectives_eat_it() -> None:
    """Red if a share is forgotten or counted twice, or collectives are free."""
    model, card, decode = MODELS["qwen3-32b"], CARDS["h200"], StepShape(1, 1, 1024, 1024)
    seconds = {tp: stage_cost(model, card, tp=tp, pp=1).step_s(decode) for tp in (1, 2, 4, 8, 64)}
    assert 1.3 < seconds[1] / seconds[2] < 2
    assert seconds[64] > seconds[1] / 64 + 2 * model.num_layers * card.collective_s
    assert num_kv_tokens(model, card, tp=2, pp=1) > 2 * num_kv_tokens(model, card, tp=1, pp=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to simulate"),
        (("--gpus", "3", "--tp", "2"), "no multiple"),
        (("--gpu-model", "x"), "--gpu-model x"),
        (("--fit", "/nowhere"), "/nowhere"),
        (("--rate", "0"), "--rate"),
    ],
)
def test_bad_options_are_named(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red if one of them is a traceback or simulates something else."""
    trace = tmp_path / "a.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,48,10\n")
    assert main(["simulate", *([] if not arguments else [str(trace)]), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_simulating_loads_no_torch() -> None:
    """Red when something on the way imports torch: a second of start and a machine that needs it."""
    code = "import phloem.launch.simulate, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
