"""What must be the same on every rank of a replica, as one word to compare."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

import torch

from phloem.graph.checkpoint.checkpoint import Checkpoint

NUM_SAMPLES, SAMPLE_BYTES = 8, 1 << 16


def fingerprint(checkpoint: Checkpoint, *, options: str) -> str:
    """Hex digest over versions, `options`, the model's configuration, the names and sizes of its tensors and the first
    bytes of some: other weights of the same model differ in those."""
    digest = hashlib.sha256()
    entries = checkpoint.tensors.entries
    described = [(name, entry.encoding, entry.num_bytes) for name, entry in sorted(entries.items())]
    values = [version("phloem"), torch.__version__.split("+")[0], options, checkpoint.config, described]
    digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    names = sorted(entries)
    for name in names[:: max(1, len(names) // NUM_SAMPLES)]:
        digest.update(checkpoint.tensors[name].data.reshape(-1)[:SAMPLE_BYTES].tobytes())
    return digest.hexdigest()
