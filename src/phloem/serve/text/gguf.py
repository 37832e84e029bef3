"""The tokenizer a GGUF file describes in its metadata (`tokenizer.ggml.*`), rebuilt without any other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from phloem.core.errors import ModelError
from phloem.serve.text.pieces import BYTE_PIECE, SPACE
from phloem.serve.text.pretokenize import PRE_TOKENIZERS
from phloem.serve.text.tokenizer import Tokenizer

DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"
END_TEXTS = frozenset(  # control tokens that end a turn or a document in some family, whatever the file declares
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>",
     "_<EOT>", "[EOT]", "<end_of_utterance>", DEEPSEEK_END)
)  # fmt: skip
REMEDY = "download or convert the file again, or serve a Hugging Face folder with a tokenizer.json"


class TokenType(IntEnum):
    """ggml's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class GgufTokenizerMetadata:
    """The tokenizer entries of the file at `path`. ModelError, naming the file and the remedy, when they are missing,
    corrupt or of a kind that is not known.
    """

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata = metadata
        self._path = path
        self.model = self._get("model", str, "")
        if self.model not in ("gpt2", "llama"):
            problem = f"its tokenizer is of kind '{self.model}'" if self.model else "it holds no tokenizer"
            raise self._broken(f"{problem}; gpt2 (byte-level BPE) and llama (SentencePiece BPE) are known")
        self.tokens = self._token_list()
        self.types = self._numbers("token_type", default=TokenType.NORMAL)
        self.ids = self._index()

    def tokenizer(self) -> Tokenizer:
        """Everything put together."""
        backend, add_bos = self._byte_level() if self.model == "gpt2" else self._sentencepiece()
        control = self._of_type(TokenType.CONTROL, TokenType.UNKNOWN)
        backend.add_special_tokens([AddedToken(self.tokens[id], special=True, normalized=False) for id in control])
        plain = self._of_type(TokenType.USER_DEFINED)
        backend.add_tokens([AddedToken(self.tokens[id], special=False, normalized=False) for id in plain])
        bos, eos = self._declared("bos"), self._declared("eos")
        add_eos = self._get("add_eos_token", bool, False)
        around = [bos if self._get("add_bos_token", bool, add_bos) else None, eos if add_eos else None]
        backend.post_processor = surround(*(None if id is None else (self.tokens[id], id) for id in around))
        return Tokenizer(backend, bos_id=bos, eos_ids=self._ends(control), source=str(self._path))

    def named_tokens(self) -> dict[str, str]:
        """Texts of the tokens that have names, such as `bos_token`: what chat templates see."""
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: self._declared(key) for name, key in names.items()}
        return {name: self.tokens[id] for name, id in ids.items() if id is not None}

    def templates(self) -> dict[str, str]:
        """Chat templates by name; `default` is the usual one."""
        prefix = "tokenizer.chat_template"
        found = {
            key: value for key, value in self._metadata.items() if key.startswith(prefix) and isinstance(value, str)
        }
        return {key.removeprefix(prefix).lstrip(".") or "default": value for key, value in found.items()}

    def _byte_level(self) -> tuple[tokenizers.Tokenizer, bool]:
        name = self._get("pre", str, "default")
        pre = PRE_TOKENIZERS.get(name)
        if pre is None:
            raise self._broken(
                f"its pre-tokenizer '{name}' is not known; known are {', '.join(sorted(PRE_TOKENIZERS))}"
            )
        backend = self._bpe(self._merge_list(), ignore_merges=pre.whole_words)
        backend.pre_tokenizer = pre.build()
        backend.decoder = decoders.ByteLevel()
        return backend, pre.add_bos

    def _sentencepiece(self) -> tuple[tokenizers.Tokenizer, bool]:
        unknown = self._of_type(TokenType.UNKNOWN)
        backend = self._bpe(
            self._implied_merges(),
            unk_token=self.tokens[unknown[0]] if unknown else None,
            fuse_unk=True,
            byte_fallback=any(map(BYTE_PIECE.match, self.tokens)),
        )
        prefix = self._get("add_space_prefix", bool, True)
        spaces = normalizers.Replace(" ", SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return backend, True

    def _bpe(self, merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
        try:
            return tokenizers.Tokenizer(models.BPE(self.ids, merges, **options))
        except Exception as error:  # the library raises nothing more precise
            raise self._broken(f"its vocabulary and merges do not fit together ({error})") from error

    def _token_list(self) -> list[str]:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise self._broken("its vocabulary (tokenizer.ggml.tokens) is missing or not a list of strings")
        return [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]

    def _index(self) -> dict[str, int]:
        ids = {token: id for id, token in enumerate(self.tokens)}
        if len(ids) < len(self.tokens):
            id, token = next((id, token) for id, token in enumerate(self.tokens) if ids[token] != id)
            raise self._broken(f"tokens {id} and {ids[token]} of its vocabulary are both {token!r}")
        return ids

    def _merge_list(self) -> list[tuple[str, str]]:
        lines = self._metadata.get("tokenizer.ggml.merges")
        if not isinstance(lines, list):
            raise self._broken("its merges (tokenizer.ggml.merges) are missing")
        merges = []
        for index, line in enumerate(lines):
            cut = line.find(" ", 1) if isinstance(line, str) else -1
            if cut < 0:
                raise self._broken(f"merge {index} is not two pieces: {line!r}")
            merges.append((line[:cut], line[cut + 1 :]))
        return merges

    def _implied_merges(self) -> list[tuple[str, str]]:
        """SentencePiece joins the neighbours whose union scores best, so its merges are all cuts of all pieces, best
        score first (Kudo and Richardson, 2018, section 3.1). Control tokens are never joined from pieces.
        """
        scores, ids, types = self._numbers("scores", default=0), self.ids, self.types
        joinable = {TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED}
        ranked = []
        for id, token in enumerate(self.tokens):
            if types[id] not in joinable:
                continue
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in ids and right in ids:
                    ranked.append((-scores[id], id, ids[left], left, right))
        ranked.sort()
        return [(left, right) for *_, left, right in ranked]

    def _numbers(self, key: str, *, default: float) -> list[Any]:
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            return [default] * len(self.tokens)
        if not isinstance(values, list) or len(values) != len(self.tokens):
            raise self._broken(f"tokenizer.ggml.{key} does not have one entry for each of {len(self.tokens)} tokens")
        return values

    def _of_type(self, *types: TokenType) -> list[int]:
        return [id for id, type in enumerate(self.types) if type in types]

    def _declared(self, name: str) -> int | None:
        id: int | None = self._get(f"{name}_token_id", int, None)
        if id is not None and not 0 <= id < len(self.tokens):
            raise self._broken(f"its {name} token {id} is outside the vocabulary of {len(self.tokens)} tokens")
        return id

    def _ends(self, control: Sequence[int]) -> set[int]:
        """Declared ends, and control tokens known to be ends unless the file declares them to mean "unknown"."""
        declared = {self._declared(name) for name in ("eos", "eot", "eom")} - {None}
        known = {id for id in control if self.tokens[id] in END_TEXTS} - {self._declared("unknown")}
        return {id for id in declared | known if id is not None}

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if value is not None and not isinstance(value, kind):
            raise self._broken(f"tokenizer.ggml.{key} is {value!r}, not a {kind.__name__}")
        return value

    def _broken(self, problem: str) -> ModelError:
        return ModelError(f"{self._path}: {problem}; {REMEDY}", field=str(self._path))


def surround(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.PostProcessor:
    """Puts (token, id) before and after every text."""
    before, after = ([token[0]] if token else [] for token in (bos, eos))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=None, special_tokens=[token for token in (bos, eos) if token]
    )
