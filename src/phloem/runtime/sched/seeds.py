"""Seeds: every choice samples from its own stream, fixed by the request alone when it brings a seed."""

from __future__ import annotations

_MASK_64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix(*values: int) -> int:
    """Hash integers to [0, 2**63): each is added to the state, which takes one splitmix64 step (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16). The order of the values matters."""
    state = 0
    for value in values:
        state = (state + value + _GOLDEN_GAMMA) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state >> 1


def sequence_seed(*, request_seed: int | None, engine_seed: int, request_serial: int, choice: int) -> int:
    """A request's own seed and the choice; without one, the engine's seed, the order of arrival and the choice."""
    if request_seed is not None:
        return mix(request_seed, choice)
    return mix(engine_seed, request_serial, choice)
