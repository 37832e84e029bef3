"""Messages between the server process and the engine process, msgpack with types, tagged by `type`.

Every accepted `Submit` is answered by any number of `Tokens` and exactly one terminal event: `Finished` or `Failed`.
"""

from __future__ import annotations

import msgspec

from phloem.core.request import SamplingParams, TokenLogprob


class Lease(msgspec.Struct, frozen=True, array_like=True):
    """A claim on a prefix that outlives the request which computed it: from its end on, the first `num_tokens` of what
    it knows by then (None: all) stay leased under `name`, until a `Release`. A lease of one name only ever grows.
    Leases give way before a running request is preempted, and when one waits though nothing runs."""

    name: str
    num_tokens: int | None = None


class Submit(msgspec.Struct, frozen=True, tag="submit", tag_field="type"):
    """A new request. Higher `priority` goes first under the priority policy. Requests share cached prefixes only
    within one `namespace`. A request that fails or is aborted leaves no lease behind."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    namespace: str = ""
    leases: tuple[Lease, ...] = ()


class Stop(msgspec.Struct, frozen=True, tag="stop", tag_field="type"):
    """The front end found a stop string in one choice: finish that choice with reason "stop"."""

    request_id: str
    choice: int


class Abort(msgspec.Struct, frozen=True, tag="abort", tag_field="type"):
    """The caller went away: free the request now. Its terminal event is `Failed` with code "aborted"."""

    request_id: str


class Release(msgspec.Struct, frozen=True, tag="release", tag_field="type"):
    """Nobody needs these leases any more. Names that there are not (any more) are passed over."""

    leases: tuple[str, ...]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown", tag_field="type"):
    """Finish what runs, refuse what waits if `drain` is false, then exit."""

    drain: bool = True


Command = Submit | Stop | Abort | Release | Shutdown


class Tokens(msgspec.Struct, frozen=True, tag="tokens", tag_field="type"):
    """New tokens of one choice. `finish` is set on the choice's last event: "stop" (an end or stop token, which is the
    last of `token_ids` and named by `stop_token`, or a `Stop`) or "length"."""

    request_id: str
    choice: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    stop_token: int | None = None


class Finished(msgspec.Struct, frozen=True, tag="finished", tag_field="type"):
    """Terminal: every choice is finished. `num_cached_tokens` of the prompt were not computed again."""

    request_id: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="type"):
    """Terminal: aborted, rejected or failed. `code` is that of an error class in core.errors."""

    request_id: str
    code: str
    message: str


class Stats(msgspec.Struct, frozen=True, tag="stats", tag_field="type"):
    """Counters since start and gauges of now, sent at most a few times a second and at idle. `is_warm`: as in Ready."""

    time_s: float
    num_running: int
    num_waiting: int
    pages_total: int
    pages_free: int
    pages_cached: int
    num_steps: int
    num_preemptions: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    last_step_s: float
    last_step_tokens: int
    is_warm: bool = True


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="type"):
    """The engine serves. `stages` are (name, seconds) of its start-up; `memory` is the pool's arithmetic in words.

    `is_warm` is false while steps are slower than they will be, because what recurs is not captured yet.
    """

    model: str
    max_model_len: int
    max_prompt_len: int
    vocab_size: int
    stages: tuple[tuple[str, float], ...] = ()
    memory: str = ""
    is_warm: bool = True


class Dead(msgspec.Struct, frozen=True, tag="dead", tag_field="type"):
    """The engine could not start, or cannot go on. `code` is that of an error class in core.errors."""

    code: str
    message: str
    field: str | None = None


Event = Tokens | Finished | Failed | Stats | Ready | Dead

encode = msgspec.msgpack.Encoder().encode
decode_commands = msgspec.msgpack.Decoder(list[Command]).decode
decode_events = msgspec.msgpack.Decoder(list[Event]).decode
