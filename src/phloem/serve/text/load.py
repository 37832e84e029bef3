"""From a model's path to its tokenizer and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phloem.core.errors import ConfigError, ModelError
from phloem.graph.checkpoint.gguf import read_header
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.gguf import GgufTokenizerMetadata
from phloem.serve.text.hf import HfTokenizerFiles
from phloem.serve.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextModel:
    """What the server needs to turn requests into ids and ids into text."""

    tokenizer: Tokenizer
    chat: ChatTemplate


def load_text(path: Path, *, chat_template: str | None = None) -> TextModel:
    """Tokenizer and chat template of the GGUF file or Hugging Face folder at `path`.

    `chat_template`, a Jinja file or a template itself, replaces the model's own. ModelError, naming the file and the
    remedy, for a missing or corrupt tokenizer; ConfigError for a bad `chat_template`.
    """
    source = _source(path)
    tokenizer, names = source.tokenizer(), source.named_tokens()
    if chat_template is None:
        return TextModel(tokenizer, ChatTemplate(tokenizer, source.templates(), named_tokens=names))
    chat = ChatTemplate(tokenizer, {"default": _given_template(chat_template)}, named_tokens=names)
    chat.check()
    return TextModel(tokenizer, chat)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the GGUF file or Hugging Face folder at `path`. ModelError as for `load_text`."""
    return _source(path).tokenizer()


def _source(path: Path) -> GgufTokenizerMetadata | HfTokenizerFiles:
    if path.is_dir():
        return HfTokenizerFiles(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist; name a .gguf file or a Hugging Face folder", field=str(path))
    return GgufTokenizerMetadata(read_header(path).metadata, path)


def _given_template(given: str) -> str:
    if "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the chat template {given} cannot be read ({error})", field="chat_template") from error
