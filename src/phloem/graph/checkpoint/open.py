"""Which kind of checkpoint is this path?"""

from __future__ import annotations

from pathlib import Path

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.checkpoint.gguf import open_gguf
from phloem.graph.checkpoint.hf import open_folder


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file or a Hugging Face folder; ModelError names the file and the remedy where that fails.

    Every byte range the headers promise is checked against the size of its file here, so that reading a tensor later
    cannot run past the end of a map.
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return open_gguf(path)
    raise ModelError(
        f"{path}: no such file or folder; give a .gguf file, or a folder with config.json and *.safetensors",
        field=str(path),
    )
