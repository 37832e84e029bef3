"""What was decided once is decided again: determinism, recording, replay."""

from __future__ import annotations

import io
import random
from pathlib import Path

import msgspec
import pytest

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS
from phloem.runtime.record import Admitted, Planned, Recorder, RecordingScheduler, describe, read_frames, replay

GOLDEN = Path(__file__).parent.parent / "golden" / "mixed.phloem"
SETTINGS = {"policy": "lpm", "num_pages": 26, "max_rows": 6, "max_step_tokens": 24}


def mixed_load(engine):
    """Everything at once: shared prefixes, choices, aborts, stops, preemptions, urgent requests, refusals."""
    chance = random.Random(7)
    for index in range(30):
        stem = [[3] * 45, [4] * 9, []][index % 3]
        prompt = [*stem, *chance.choices(range(5, 9), k=chance.randint(1, 12))]
        engine.submit(
            f"r{index}",
            prompt,
            priority=index % 2,
            n=1 + (index % 5 == 0),
            max_tokens=chance.randint(1, 30),
            prompt_logprobs=0 if index % 7 == 1 else None,
        )
        if index % 4 == 3:
            engine.turn(3)
        if index % 9 == 8:
            engine.abort(f"r{index - 1}")
            engine.stop(f"r{index - 2}")
    engine.submit("empty", [])
    engine.run()


def record(make_engine, *, depth):
    file = io.BytesIO()

    def wrap(scheduler):
        return RecordingScheduler(scheduler, Recorder(file, settings=engine_settings(make_engine)))

    engine = make_engine(depth=depth, wrap=wrap, **SETTINGS)
    mixed_load(engine)
    return file.getvalue()


def engine_settings(make_engine):
    return make_engine(**SETTINGS).settings


def test_same_trace_same_plans(make_engine, depth):
    """Red if a plan depends on a set's order, the machine's clock, or an address."""
    assert record(make_engine, depth=depth) == record(make_engine, depth=depth)


def test_replay_decides_the_same(make_engine, depth, tmp_path):
    """Red if a decision depends on something that is not on record."""
    path = tmp_path / "run.phloem"
    path.write_bytes(record(make_engine, depth=depth))
    assert replay(path) > 50


def test_recording_cut_off_by_a_crash_replays_to_its_end(make_engine, tmp_path):
    """Red if the last, broken frame is an error."""
    path = tmp_path / "run.phloem"
    path.write_bytes(record(make_engine, depth=0)[:-3])
    assert replay(path) > 50


def test_replay_notices_another_plan(make_engine, tmp_path):
    """Red if replay compares nothing."""
    recorded = record(make_engine, depth=0)
    frames = list(read_frames(io.BytesIO(recorded)))
    place = next(i for i, frame in enumerate(frames) if isinstance(frame, Planned) and frame.plan.new_pages)
    plan = msgspec.structs.replace(frames[place].plan, new_pages=())
    frames[place] = Planned(frames[place].now_s, plan)
    file = io.BytesIO()
    recorder = Recorder(file, settings=frames[0].settings)
    for frame in frames[1:]:
        recorder.write(frame)
    path = tmp_path / "other.phloem"
    path.write_bytes(file.getvalue())
    with pytest.raises(AssertionError, match=f"step {plan.step}: "):
        replay(path)


def test_golden_trace_replays_to_the_same_plans(make_engine):
    """Red when a change of the scheduler or ledger changes decisions. If that is intended, say why in the commit,
    delete the file, run this test once, and commit the new trace."""
    if not GOLDEN.exists():
        GOLDEN.write_bytes(record(make_engine, depth=1))
        pytest.fail(f"{GOLDEN.name} was missing and has been recorded anew: look at it, commit it, run again")
    assert replay(GOLDEN) > 50


def test_golden_trace_has_seen_everything():
    """Red if a new trace is so tame that replaying it proves little."""
    frames = list(read_frames(io.BytesIO(GOLDEN.read_bytes())))
    plans = [frame.plan for frame in frames if isinstance(frame, Planned)]
    assert any(plan.copies for plan in plans)
    assert {flag for plan in plans for flag in plan.logits} == {NO_LOGITS, LAST_LOGITS, ALL_LOGITS}
    started = [start.sequence_id for plan in plans for start in plan.starts]
    assert len(set(started)) < len(started), "no sequence was preempted and started again"
    assert {frame.command.__class__.__name__ for frame in frames if isinstance(frame, Admitted)} == {
        "Submit", "Abort", "Stop"
    }  # fmt: skip


def test_plans_are_described_in_words(make_engine):
    """Red if describe leaves out what a reader looks for."""
    engine = make_engine()
    engine.submit("a", list(range(10, 20)), max_tokens=2)
    engine.run()
    first, last = describe(engine.worker.plans[0]), describe(engine.worker.plans[-1])
    assert first == "step 0: 10 tokens in 1 rows, 0 of them one token each; sequence 0 starts in row 0, 0/10 cached"
    assert "rows 0 end" in last
