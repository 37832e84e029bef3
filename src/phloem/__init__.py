"""Phloem serves large language models.

    from phloem import LLM, SamplingParams

    with LLM() as llm:
        for output in llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=8)):
            print(output.text)

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
    from phloem.core.request import SamplingParams, TokenLogprob
    from phloem.launch.offline import LLM
    from phloem.launch.outputs import CompletionOutput, RequestOutput

_HOMES = {
    "LLM": "phloem.launch.offline",
    "CompletionOutput": "phloem.launch.outputs",
    "RequestOutput": "phloem.launch.outputs",
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
    "EngineDead",
    "InvalidRequest",
    "ModelError",
    "PhloemError",
    "RequestFailed",
    "RequestOutput",
    "SamplingParams",
    "TokenLogprob",
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
