"""`phloem models` and `phloem graph`: what there is to see without an engine."""

from __future__ import annotations

import textwrap
import time

from phloem.core.errors import ModelError
from phloem.launch import models
from phloem.models.dummy import CONFIGS


def list_models() -> int:
    """Print the models known by name and the files in the cache folder."""
    default = models.DEFAULT
    cached = {path.name: path for path in models.cached_models()}
    state = "here" if default.file in cached else "not fetched yet: phloem models fetch default"
    print(f"default  {default.name}, {default.num_bytes / 1e6:.0f} MB, {default.license} ({state})")
    print("\nalso a .gguf file, a Hugging Face folder, or a hub id such as Qwen/Qwen3-0.6B")
    print("\nrandom weights in the shapes of a named model, for benchmarks (dummy:null computes nothing):")
    print(
        textwrap.fill(
            " ".join(f"dummy:{name}" for name in ["null", *CONFIGS]),
            width=100,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
    )
    print(f"\nin {models.cache_folder()}:")
    for path in cached.values():
        print(f"  {path.name}  {path.stat().st_size / 1e6:.0f} MB")
    if not cached:
        print("  nothing")
    return 0


def fetch(model: str) -> int:
    """Bring a model onto this machine and print where it is."""
    started_s = time.monotonic()
    location = models.locate(model)
    if location.path is None:
        raise ModelError(f"{model} is made of random numbers: there is nothing to fetch", field="name")
    print(f"{location.name}: {location.path} ({time.monotonic() - started_s:.1f} s)")
    return 0


def graph(model: str, *, only: str | None, full: bool) -> int:
    """Print the model's graph, before and after each pass or after the pass `only`; with `full` every node."""
    from phloem.graph.checkpoint.open import open_checkpoint
    from phloem.graph.compile import compile_graph
    from phloem.graph.show import show
    from phloem.models.catalog import define_dummy, define_model

    location = models.locate(model)
    definition = define_dummy(location.name) if location.path is None else define_model(open_checkpoint(location.path))
    print(show(compile_graph(definition), definition.checkpoint, only=only, full=full))
    return 0
