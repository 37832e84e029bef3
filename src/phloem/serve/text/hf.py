"""The tokenizer of a Hugging Face folder: tokenizer.json, with what the configuration files beside it add."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import tokenizers
from tokenizers import AddedToken

from phloem.core.errors import ModelError
from phloem.serve.text.gguf import surround
from phloem.serve.text.tokenizer import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
File = TypeVar("File", bound=msgspec.Struct)


class TokenEntry(msgspec.Struct):
    """An added token as the files describe it."""

    content: str
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class NamedTemplate(msgspec.Struct):
    """One of several chat templates."""

    name: str
    template: str


Token = str | TokenEntry | None


class TokenizerConfig(msgspec.Struct):
    """What tokenizer_config.json, special_tokens_map.json and chat_template.json say that matters here."""

    bos_token: Token = None
    eos_token: Token = None
    unk_token: Token = None
    pad_token: Token = None
    sep_token: Token = None
    cls_token: Token = None
    mask_token: Token = None
    additional_special_tokens: list[str | TokenEntry] | None = None
    extra_special_tokens: list[str | TokenEntry] | dict[str, str | TokenEntry] | None = None
    added_tokens_decoder: dict[str, TokenEntry] = {}
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    chat_template: str | list[NamedTemplate] | None = None

    def named_tokens(self) -> dict[str, str]:
        """Name -> text."""
        found = zip(NAMED_TOKENS, msgspec.structs.astuple(self))
        return {name: _text(token) for name, token in found if token is not None}

    def extra_tokens(self) -> list[str]:
        """Texts of special tokens without a name of their own."""
        extra = self.extra_special_tokens or []
        listed = list(extra.values()) if isinstance(extra, dict) else extra
        return [_text(token) for token in [*(self.additional_special_tokens or []), *listed]]

    def templates(self) -> dict[str, str]:
        """Chat templates by name."""
        if isinstance(self.chat_template, list):
            return {entry.name: entry.template for entry in self.chat_template}
        return {} if self.chat_template is None else {"default": self.chat_template}


class ModelFile(msgspec.Struct):
    """What generation_config.json and config.json say that matters here."""

    eos_token_id: int | list[int] | None = None


class HfTokenizerFiles:
    """The tokenizer files of one folder. ModelError, naming the file, when one is missing or corrupt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = _decode(folder / "tokenizer_config.json", TokenizerConfig)
        self._special_map = _decode(folder / "special_tokens_map.json", TokenizerConfig)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer as the configuration wants it."""
        backend = self._backend()
        self._add_tokens(backend)
        bos, eos = (self._named(backend, name) for name in ("bos_token", "eos_token"))
        add_bos, add_eos = self._config.add_bos_token, self._config.add_eos_token
        if backend.post_processor is None or add_bos is not None or add_eos is not None:
            backend.post_processor = surround(bos if add_bos else None, eos if add_eos else None)
        ends = {*self._declared_ends(), *([eos[1]] if eos else [])}
        return Tokenizer(backend, bos_id=bos[1] if bos else None, eos_ids=ends, source=str(self._folder))

    def named_tokens(self) -> dict[str, str]:
        """Texts of the tokens that have names, such as `bos_token`: what chat templates see."""
        return self._special_map.named_tokens() | self._config.named_tokens()

    def templates(self) -> dict[str, str]:
        """Chat templates by name; `default` is the usual one."""
        beside = _decode(self._folder / "chat_template.json", TokenizerConfig)
        found = beside.templates() | self._config.templates()
        for path in sorted(self._folder.glob("additional_chat_templates/*.jinja")):
            found[path.stem] = _read(path)
        if (path := self._folder / "chat_template.jinja").is_file():
            found["default"] = _read(path)
        return found

    def _backend(self) -> tokenizers.Tokenizer:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{path} is missing: save the folder with a fast tokenizer (AutoTokenizer.save_pretrained writes the "
                "file), or serve a GGUF file, which brings its own",
                field=str(path),
            )
        text = _read(path)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise ModelError(f"{path} is corrupt ({error}); download it again", field=str(path)) from error
        vocabulary = backend.get_vocab()
        if len(set(vocabulary.values())) < len(vocabulary):
            raise ModelError(f"{path} gives two tokens the same id; download it again", field=str(path))
        backend.no_truncation()
        backend.no_padding()
        return backend

    def _add_tokens(self, backend: tokenizers.Tokenizer) -> None:
        """Tokens that the configuration declares and tokenizer.json does not, and names that make a token special."""
        special = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
        for entry in self._config.added_tokens_decoder.values():
            if entry.content not in special:
                backend.add_tokens([AddedToken(**msgspec.structs.asdict(entry))])
                special[entry.content] = entry.special
        wanted = [*self.named_tokens().values(), *self._config.extra_tokens(), *self._special_map.extra_tokens()]
        missing = [text for text in dict.fromkeys(wanted) if not special.get(text, False)]
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])

    def _named(self, backend: tokenizers.Tokenizer, name: str) -> tuple[str, int] | None:
        text = self.named_tokens().get(name)
        id = None if text is None else backend.token_to_id(text)
        return None if text is None or id is None else (text, id)

    def _declared_ends(self) -> Iterator[int]:
        for name in ("generation_config.json", "config.json"):
            ids = _decode(self._folder / name, ModelFile).eos_token_id
            yield from [ids] if isinstance(ids, int) else ids or []


def _text(token: str | TokenEntry) -> str:
    return token if isinstance(token, str) else token.content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); download it again", field=str(path)) from error


def _decode(path: Path, kind: type[File]) -> File:
    """The file at `path` as a `kind`; an empty one when there is no such file."""
    if not path.is_file():
        return kind()
    try:
        return msgspec.json.decode(_read(path), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{path} is corrupt ({error}); download it again", field=str(path)) from error
