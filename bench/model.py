"""Which weights are measured: the GGUF, the folder converted from it, and the sizes that floors are computed from."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bench.peers.convert import DEFAULT_GGUF, cache_dir, converted_dir


class BenchModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model in both forms. `name` is what `phloem --model` takes; sizes are per token or per layer, in elements."""

    name: str
    gguf: Path
    folder: Path
    file_bytes: int
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    @property
    def linear_params(self) -> int:
        """Elements of the linears of all layers: what every token is multiplied with."""
        attention = self.hidden * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def head_params(self) -> int:
        """Elements of the LM head: what every sampled token is multiplied with."""
        return self.hidden * self.vocab

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values a token leaves in the cache, in 16 bits."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * 2


class _Config(msgspec.Struct):
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int | None = None


def find_model(name: str) -> BenchModel:
    """`default`, or the path of a GGUF. Raises SystemExit with the remedy when a file is missing."""
    gguf = (cache_dir() / "models" / DEFAULT_GGUF) if name == "default" else Path(name).expanduser().resolve()
    if not gguf.is_file():
        raise SystemExit(f"bench: no GGUF at {gguf}; `make install` fetches the default model")
    folder = converted_dir(gguf)
    if not (folder / "config.json").is_file():
        raise SystemExit(f"bench: {gguf.name} is not converted; run `PHLOEM_BENCH_MODEL={gguf} make bench-peers`")
    config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
    return BenchModel(
        name=name,
        gguf=gguf,
        folder=folder,
        file_bytes=os.stat(gguf).st_size,
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
    )
