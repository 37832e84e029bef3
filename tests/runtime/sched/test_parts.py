"""The scheduler's parts, each alone: policies, the estimate, seeds, groups."""

from __future__ import annotations

import pytest

from phloem.core.plan import SharedPrefix
from phloem.runtime.sched.estimate import OutputEstimate
from phloem.runtime.sched.groups import MIN_SHARED_PAGES, SharedPrefixes
from phloem.runtime.sched.policy import Candidate, FirstComeFirstServed, LongestPrefix, Priority, make_policy
from phloem.runtime.sched.seeds import mix, sequence_seed


def ordered(policy, *candidates):
    return [candidate.serial for candidate in sorted(candidates, key=policy.rank)]


def test_fcfs_goes_by_arrival():
    """Red if anything else counts."""
    policy = FirstComeFirstServed()
    assert ordered(policy, Candidate(2, 9, 0.0, 999), Candidate(1, 0, 5.0)) == [1, 2]
    assert not policy.may_displace(Candidate(1, 9, 0.0), Candidate(2, 0, 0.0))


def test_priority_goes_by_priority_then_arrival():
    """Red if a lower priority goes first, or equals displace each other."""
    policy = Priority()
    assert ordered(policy, Candidate(1, 0, 0.0), Candidate(3, 5, 0.0), Candidate(2, 5, 0.0)) == [2, 3, 1]
    assert policy.may_displace(Candidate(9, 1, 0.0), Candidate(1, 0, 0.0))
    assert not policy.may_displace(Candidate(1, 1, 0.0), Candidate(9, 1, 0.0))


def test_lpm_goes_by_cached_tokens_and_age():
    """Red without ageing: waiting for a second is worth 1,000 cached tokens."""
    policy = LongestPrefix(ageing_tokens_per_s=1000)
    assert ordered(policy, Candidate(1, 0, 0.0), Candidate(2, 0, 0.1, 500)) == [2, 1]
    assert ordered(policy, Candidate(1, 0, 0.0), Candidate(2, 0, 0.6, 500)) == [1, 2]
    assert ordered(policy, Candidate(2, 0, 0.0, 7), Candidate(1, 0, 0.0, 7)) == [1, 2]


@pytest.mark.parametrize(
    ("name", "kind"), [("fcfs", FirstComeFirstServed), ("lpm", LongestPrefix), ("priority", Priority)]
)
def test_policies_have_names(name, kind):
    """Red if an option's value makes another policy."""
    assert type(make_policy(name)) is kind


def test_estimate_follows_what_it_sees():
    """Red if the share does not adapt, in either direction."""
    estimate = OutputEstimate()
    for _ in range(60):
        estimate.observe_finish(num_generated=10, max_tokens=100)
    assert estimate.remaining(num_generated=0, max_tokens=1000) <= 200
    for _ in range(60):
        estimate.observe_finish(num_generated=100, max_tokens=100)
    assert estimate.remaining(num_generated=0, max_tokens=1000) == 1000


def test_estimate_is_more_careful_after_preemptions():
    """Red if running out of pages teaches nothing."""
    estimate = OutputEstimate()
    before = estimate.remaining(num_generated=0, max_tokens=100)
    estimate.observe_preemption()
    assert estimate.remaining(num_generated=0, max_tokens=100) > before
    for _ in range(20):
        estimate.observe_preemption()
    assert estimate.remaining(num_generated=0, max_tokens=100) == 100


def test_estimate_never_says_less_than_one_or_more_than_allowed():
    """Red if a sequence past its estimate counts as done."""
    estimate = OutputEstimate()
    assert estimate.remaining(num_generated=99, max_tokens=100) == 1
    assert estimate.remaining(num_generated=1000, max_tokens=1000) == 1


def test_mix_is_the_documented_hash():
    """Red if the hash changes: seeds of recorded runs and of users would no longer give their tokens. The first output
    of splitmix64 from state 0 is 0xE220A8397B1DCDAF."""
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert mix(1, 2) != mix(2, 1)
    assert all(0 <= mix(value) < 2**63 for value in (-1, 2**64, 12345))


def test_seeds_of_choices_differ_and_a_request_seed_is_all_that_counts():
    """Red if the order of arrival changes what a seeded request samples."""

    def seed(request_seed, serial, choice):
        return sequence_seed(request_seed=request_seed, engine_seed=3, request_serial=serial, choice=choice)

    assert seed(7, 0, 0) == seed(7, 99, 0) != seed(7, 0, 1)
    assert len({seed(None, serial, choice) for serial in range(20) for choice in range(20)}) == 400


def table(*pages, tail=()):
    return [*range(MIN_SHARED_PAGES), *pages, *tail]


def test_rows_below_the_threshold_are_not_grouped():
    """Red if a row alone, or a short prefix, makes a group."""
    shared = SharedPrefixes()
    shared.join(0, table(100))
    assert shared.groups([0]) == ()
    shared.join(1, [*range(MIN_SHARED_PAGES - 1), 77, 78])
    assert shared.groups([0, 1]) == ()


def test_rows_with_the_same_pages_are_one_group():
    """Red if the common length is that of one pair only."""
    shared = SharedPrefixes()
    for row, pages in enumerate([table(50, 51, 60), table(50, 51, 61), table(50, 51, 62, 63)]):
        shared.join(row, pages)
    assert shared.groups([0, 1, 2]) == (SharedPrefix((0, 1, 2), MIN_SHARED_PAGES + 2),)


def test_branches_win_when_they_save_more():
    """Red if a short prefix of all hides long ones of some. Together 3 * 8 = 24 reads are saved, in branches 2 * 18."""
    shared = SharedPrefixes()
    for row, branch in enumerate([100, 200, 100, 200]):
        shared.join(row, table(*range(branch, branch + 10), tail=[300 + row]))
    size = MIN_SHARED_PAGES + 10
    assert shared.groups([0, 1, 2, 3]) == (SharedPrefix((0, 2), size), SharedPrefix((1, 3), size))


def test_groups_follow_rows_that_leave_or_sit_out_a_step():
    """Red if a group names a row that is not in the step."""
    shared = SharedPrefixes()
    for row in range(3):
        shared.join(row, table(tail=[50 + row]))
    assert shared.groups([2, 0]) == (SharedPrefix((0, 2), MIN_SHARED_PAGES),)
    assert shared.groups([1]) == ()
    shared.leave(0)
    assert shared.groups([1, 2]) == (SharedPrefix((1, 2), MIN_SHARED_PAGES),)
    shared.leave(2)
    shared.leave(9)
    assert shared.groups([1]) == ()


def test_rows_that_meet_again_after_a_twin_are_not_grouped_across_it():
    """Red if the same page in place 8 is taken as proof of the same pages before it."""
    shared = SharedPrefixes()
    shared.join(0, table(50, 51))
    shared.join(1, [900, *table(50, 51)[1:]])
    assert shared.groups([0, 1]) == ()
