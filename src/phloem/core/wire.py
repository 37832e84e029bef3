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
    kv_from: str | None = None  # host:port of a replica that computes the prompt; the scheduler never sees it
    sends_pages: bool = False  # report its pages as they are computed (`Computed`), and keep them until `Sent`


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


class Reserve(msgspec.Struct, frozen=True, tag="reserve", tag_field="type"):
    """Lease pages for the whole pages of `tokens` that are not cached, to be filled from outside. Answered by
    `Reserved`, ended by `Received`."""

    name: str
    tokens: tuple[int, ...]
    namespace: str = ""


class Received(msgspec.Struct, frozen=True, tag="received", tag_field="type"):
    """The first `num_pages` of the pages reserved under `name` are filled: they are a cached prefix now, leased under
    `name` until a `Release`; the others are free again."""

    name: str
    num_pages: int


class Sent(msgspec.Struct, frozen=True, tag="sent", tag_field="type"):
    """The pages of a request with `sends_pages` need not be kept any longer."""

    request_id: str


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown", tag_field="type"):
    """Finish what runs, refuse what waits if `drain` is false, then exit."""

    drain: bool = True


class WatchCache(msgspec.Struct, frozen=True, tag="watch_cache", tag_field="type"):
    """Answer with a snapshot of the prefix index, and with every change from then on; or, `on` false, no more."""

    on: bool = True


Command = Submit | Stop | Abort | Release | WatchCache | Reserve | Received | Sent | Shutdown


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


class CacheChange(msgspec.Struct, frozen=True, tag="cache_change", tag_field="type"):
    """Whole pages (core.digest) that the prefix index gained and lost. `sequence` counts up by one from a snapshot:
    everything there is, in the place of what was known before. After a gap, ask for a snapshot."""

    sequence: int
    page_size: int
    inserted: tuple[int, ...] = ()
    evicted: tuple[int, ...] = ()
    is_snapshot: bool = False


class Reserved(msgspec.Struct, frozen=True, tag="reserved", tag_field="type"):
    """The answer to `Reserve`: `first_page` pages of the prompt are cached, `pages` are to be filled with those after
    them. None: there is nothing to fill, or no room."""

    name: str
    first_page: int
    pages: tuple[int, ...]


class Computed(msgspec.Struct, frozen=True, tag="computed", tag_field="type"):
    """The pages of a request with `sends_pages` whose tokens are computed by now, from the prompt's first page on."""

    request_id: str
    pages: tuple[int, ...]


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
    role: str = "mixed"
    kv_address: str | None = None  # host:port where a prefill replica computes prompts for others
    kv_fingerprint: str = ""  # what replicas that hand pages over have in common


class Dead(msgspec.Struct, frozen=True, tag="dead", tag_field="type"):
    """The engine could not start, or cannot go on. `code` is that of an error class in core.errors."""

    code: str
    message: str
    field: str | None = None


Event = Tokens | Finished | Failed | CacheChange | Reserved | Computed | Stats | Ready | Dead

encode = msgspec.msgpack.Encoder().encode
decode_commands = msgspec.msgpack.Decoder(list[Command]).decode
decode_events = msgspec.msgpack.Decoder(list[Event]).decode
