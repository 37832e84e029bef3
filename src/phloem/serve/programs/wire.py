"""POST /v1/programs on the wire."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from phloem.lang.engine import Usage
from phloem.lang.ir import Program
from phloem.lang.limits import ProgramLimits


class ProgramRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program and its arguments. `limits` may only tighten the server's; `passes` None: all of them."""

    program: Program
    arguments: dict[str, Any] = {}
    model: str | None = None
    stream: bool = False
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    passes: tuple[str, ...] | None = None
    limits: ProgramLimits | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] = ""
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] = 0


class ProgramResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. `text` is None when the program names its outputs."""

    id: str
    object: str = "program.result"
    created: int
    model: str
    variables: dict[str, Any]
    text: str | None
    usage: Usage


decoder = msgspec.json.Decoder(ProgramRequest)
