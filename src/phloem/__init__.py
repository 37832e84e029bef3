"""Phloem serves large language models.

    from phloem import LLM, SamplingParams

    with LLM() as llm:
        for output in llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=8)):
            print(output.text)

Structured generation: `@program` functions, run by `LLM.run` (docs/lang.md).

`LLM(model)` takes what `phloem serve --model` takes; its options are the fields of `Config`. Every error is a
`PhloemError`: a `CallerError` is yours to fix, a `RequestFailed` concerns one request, an `EngineDead` all of them.
Names are imported when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phloem.core.config import Config
    from phloem.core.errors import (
        CallerError,
        ConfigError,
        EngineDead,
        InvalidRequest,
        ModelError,
        PhloemError,
        RequestFailed,
    )
    from phloem.core.request import Constraint, SamplingParams, TokenLogprob
    from phloem.lang.api import assistant, commutable, gen, image, program, select, system, user
    from phloem.lang.endpoint import EndpointEngine
    from phloem.lang.errors import LimitExceeded, ProgramError, TraceError
    from phloem.lang.events import Delta, ProgramResult, Value
    from phloem.lang.limits import ProgramLimits
    from phloem.lang.prepare import RunOptions, run_on
    from phloem.lang.trace import part
    from phloem.launch.offline import LLM
    from phloem.launch.outputs import CompletionOutput, RequestOutput

_HOMES = {
    "program": "phloem.lang.api",
    "part": "phloem.lang.trace",
    "gen": "phloem.lang.api",
    "select": "phloem.lang.api",
    "commutable": "phloem.lang.api",
    "system": "phloem.lang.api",
    "user": "phloem.lang.api",
    "assistant": "phloem.lang.api",
    "image": "phloem.lang.api",
    "RunOptions": "phloem.lang.prepare",
    "run_on": "phloem.lang.prepare",
    "ProgramLimits": "phloem.lang.limits",
    "ProgramResult": "phloem.lang.events",
    "Delta": "phloem.lang.events",
    "Value": "phloem.lang.events",
    "EndpointEngine": "phloem.lang.endpoint",
    "ProgramError": "phloem.lang.errors",
    "TraceError": "phloem.lang.errors",
    "LimitExceeded": "phloem.lang.errors",
    "LLM": "phloem.launch.offline",
    "CompletionOutput": "phloem.launch.outputs",
    "RequestOutput": "phloem.launch.outputs",
    "Constraint": "phloem.core.request",
    "SamplingParams": "phloem.core.request",
    "TokenLogprob": "phloem.core.request",
    "Config": "phloem.core.config",
    "CallerError": "phloem.core.errors",
    "ConfigError": "phloem.core.errors",
    "EngineDead": "phloem.core.errors",
    "InvalidRequest": "phloem.core.errors",
    "ModelError": "phloem.core.errors",
    "PhloemError": "phloem.core.errors",
    "RequestFailed": "phloem.core.errors",
}

__all__ = [
    "LLM",
    "CallerError",
    "CompletionOutput",
    "Config",
    "ConfigError",
    "Constraint",
    "Delta",
    "EndpointEngine",
    "EngineDead",
    "InvalidRequest",
    "LimitExceeded",
    "ModelError",
    "PhloemError",
    "ProgramError",
    "ProgramLimits",
    "ProgramResult",
    "RequestFailed",
    "RequestOutput",
    "RunOptions",
    "SamplingParams",
    "TokenLogprob",
    "TraceError",
    "Value",
    "assistant",
    "commutable",
    "gen",
    "image",
    "part",
    "program",
    "run_on",
    "select",
    "system",
    "user",
]


def __getattr__(name: str) -> Any:
    """Import an exported name from its home, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'phloem' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
