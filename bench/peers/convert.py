"""Turn a GGUF into a Hugging Face folder in bfloat16, so that vllm and transformers run the same weights as we do.

Runs in the transformers peer's venv: `.peers/transformers/bin/python bench/peers/convert.py [--gguf FILE] [--out DIR]`.
Dequantized Q4_1 values are rounded once, to bfloat16; the folder is written beside its name and renamed when complete.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

DEFAULT_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """Phloem's cache folder (XDG)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phloem"


def converted_dir(gguf: Path) -> Path:
    """Where the converted form of `gguf` lives."""
    return cache_dir() / "bench" / f"{gguf.stem}-hf-bf16"


def convert(gguf: Path, out: Path) -> None:
    """Write config, safetensors, tokenizer and chat template of `gguf` to `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=unpacked)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def main() -> int:
    """Convert unless the folder is there and newer than the GGUF."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, default=cache_dir() / "models" / DEFAULT_GGUF)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gguf: Path = options.gguf.resolve()
    out: Path = options.out or converted_dir(gguf)
    if not gguf.is_file():
        print(f"convert: no GGUF at {gguf}; `make install` fetches the default model", file=sys.stderr)
        return 2
    if (out / "config.json").is_file() and out.stat().st_mtime >= gguf.stat().st_mtime:
        print(f"convert: {out} is up to date")
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    started_s = time.perf_counter()
    convert(gguf, out)
    print(f"convert: {gguf.name} -> {out} in {time.perf_counter() - started_s:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
