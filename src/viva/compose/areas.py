"""Which files belong to which of the five modules, told from their paths."""

from __future__ import annotations

from viva.bank.schema import MODULES
from viva.errors import VivaError
from viva.evidence.fact import is_test

# The most telling first: a file belongs to the first module of which its path has a word.
WORDS: dict[str, tuple[str, ...]] = {
    "parallelism": ("parallel", "distributed", "disagg", "eplb", "pipeline", "replica", "cluster"),
    "kv-cache": ("mem_cache", "kv_cache", "kvcache", "memory", "cache", "ledger", "block_pool"),
    "graph-ir": ("graph", "compil", "/lang/", "/ir", "passes", "kernels", "/ops"),
    "system": ("entrypoints", "config", "metrics", "observ", "server", "http", "serve", "args", "tracing"),
    "execution": ("sched", "engine", "executor", "worker", "runner", "batch", "runtime", "manager"),
}
ASIDE = (
    *("hardware_backend", "multimodal", "npu", "bench", "/test", "example", "third_party", "vendor", "models/"),
    *("model_loader", "tilelang", "/layers/", "warmup", "spec_decode", "speech", "realtime", "transcription"),
)
CORE = ("/core/", "/v1/engine/", "/v1/executor/", "/managers/", "/mem_cache/", "/sched/", "model_runner")


def module_of(path: str) -> str | None:
    """The module of a file; None for tests and whatever else is no core of a serving engine."""
    lower = f"/{path.lower()}"
    if not path.endswith(".py") or is_test(path) or any(word in lower for word in ASIDE):
        return None
    return next((module for module, words in WORDS.items() if any(word in lower for word in words)), None)


def is_core(path: str) -> bool:
    """Where engines keep what every request passes through."""
    return any(word in f"/{path}" for word in CORE)


def parsed_topics(topics: list[str]) -> dict[str, str]:
    """`kv-cache` or `kv-cache:radix` -> module and the word its files or functions must have; all modules if none."""
    chosen: dict[str, str] = {}
    for topic in topics or list(MODULES):
        module, _, word = topic.partition(":")
        if module not in MODULES:
            raise VivaError(f"--topics {topic}: give MODULE or MODULE:WORD of {', '.join(MODULES)}", field="--topics")
        chosen[module] = word.lower()
    return chosen
