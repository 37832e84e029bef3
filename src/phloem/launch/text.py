"""The tokenizer of a model. Dummies get one made here: a byte is a token, the rest of the vocabulary are fillers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from phloem.launch.models import ModelLocation
from phloem.models.dummy import dummy_checkpoint
from phloem.serve.text.load import TextModel, load_text, load_tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_PRINTABLE = 94
"""The first ids are the printable ASCII characters."""
BYTE_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
END_ID = BYTE_VOCAB_SIZE - 1

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_text_of(location: ModelLocation, *, chat_template: str | None = None) -> TextModel:
    """Tokenizer and chat template of a model on this machine. ModelError when it brings no usable tokenizer."""
    if location.path is not None:
        return load_text(location.path, chat_template=chat_template)
    with tempfile.TemporaryDirectory(prefix="phloem-dummy-") as folder:
        write_byte_tokenizer(Path(folder), vocab_size=dummy_vocab_size(location.name))
        return load_text(Path(folder), chat_template=chat_template)


def tokenizer_json_of(source: Path | str) -> str:
    """The tokenizer.json of the model at a path, or of dummy:<name>."""
    if isinstance(source, Path):
        return load_tokenizer(source).to_json()
    return load_text_of(ModelLocation(name=source, kind="dummy")).tokenizer.to_json()


def dummy_vocab_size(name: str) -> int:
    """How many tokens a dummy's logits are about."""
    if name == "dummy:null":
        return BYTE_VOCAB_SIZE
    vocab_size: int = dummy_checkpoint(name.removeprefix("dummy:")).config["vocab_size"]
    return vocab_size


def write_byte_tokenizer(folder: Path, *, vocab_size: int) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level tokenizer whose ids fill `vocab_size`."""
    symbols = [*_byte_symbols().values(), *SPECIAL_TOKENS]
    symbols += [f" <{number}>" for number in range(len(symbols), vocab_size)]
    vocab = {symbol: number for number, symbol in enumerate(symbols[: max(vocab_size, BYTE_VOCAB_SIZE)])}
    added = [
        {"id": vocab[token], "content": token, "special": True, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False}
        for token in SPECIAL_TOKENS
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    config = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in symbols]
    return symbols | {byte: chr(256 + index) for index, byte in enumerate(others)}
