"""From a constraint to a compiled grammar: how each kind is spelled for llguidance."""

from __future__ import annotations

import json
import re

import llguidance
import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.runtime.grammar.vocabulary import Vocabulary

MAX_MESSAGE_CHARS, MAX_WORD_CHARS = 600, 80
NESTED = re.compile(r'(?<=: )%grammar ("(?:[^"\\]|\\.)*")$', re.MULTILINE)
"""A grammar of the caller's inside one that a format's spec wrote."""
NO_TEXT = "no text satisfies it"


class Compiler:
    """Compiles constraints for one model. Making one takes as long as reading its vocabulary: 0.3 s for 50,000 tokens.

    ValueError when the tokenizer is none that grammars can be applied to.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.end_ids:
            raise ValueError("the model has no end token, so a constrained text could not end")
        num_tokens = _num_tokens(vocabulary.tokenizer_json)
        self.end_ids = vocabulary.end_ids
        self.mask_size = max(vocabulary.vocab_size, num_tokens)  # bits
        self._tokenizer = LLTokenizer(
            vocabulary.tokenizer_json, n_vocab=self.mask_size, eos_token=list(vocabulary.end_ids)
        )
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, constraint: Constraint) -> LLMatcher:
        """A matcher at the first token, to be copied for each text. InvalidRequest says what cannot be served."""
        matcher = LLMatcher(self._tokenizer, spelled(constraint), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise InvalidRequest(in_short(matcher.get_error()))
        return matcher

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as the model would most likely write it."""
        ids: list[int] = self._tokenizer.tokenize_str(text)
        return ids


def spelled(constraint: Constraint) -> str:
    """The constraint as llguidance reads it. InvalidRequest when it is malformed on its face."""
    try:
        match constraint.kind:
            case "json_schema":
                return _from_schema(constraint.text)
            case "json_object":
                return _from_schema('{"type": "object"}')
            case "regex":
                return str(LLMatcher.grammar_from_regex(constraint.text))
            case "choice":
                choices = msgspec.json.decode(constraint.text, type=list[str])
                return str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices))))
            case "grammar":
                return str(LLMatcher.grammar_from_lark(_lark(constraint.text)))
            case "structural":
                return str(LLMatcher.grammar_from_lark(NESTED.sub(_nested, constraint.text)))
    except (ValueError, TypeError, RecursionError, IndexError) as error:
        raise InvalidRequest(in_short(str(error))) from error


def _lark(grammar: str) -> str:
    """A grammar in either syntax as Lark."""
    if not grammar.strip():
        raise InvalidRequest("an empty grammar")
    return str(any_to_lark(grammar))


def _nested(match: re.Match[str]) -> str:
    lines = _lark(json.loads(match[1])).splitlines()
    body = "\n".join(line for line in lines if not line.startswith("%llguidance"))
    return f"%lark {{\n{body}\n}}"


def version() -> str:
    """Which llguidance compiles."""
    return str(llguidance.get_version())


def _from_schema(text: str) -> str:
    """JSON as Python's `json.dumps` writes it: where no choice of white space is left, more tokens are forced."""
    return str(
        LLMatcher.grammar_from_json_schema(
            text, overrides={"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
        )
    )


def _num_tokens(tokenizer_json: str) -> int:
    """One more than the highest id."""
    tokenizer = msgspec.json.decode(tokenizer_json, type=_TokenizerFile)
    return 1 + max([*tokenizer.model.vocab.values(), *(token.id for token in tokenizer.added_tokens)])


def in_short(message: str) -> str:
    """Without the library's notes on where inside it something went wrong, and without long quotations."""
    words = message.replace("<non-verbose/>", "").split("<state>")[0].split()
    text = " ".join(word if len(word) <= MAX_WORD_CHARS else word[: MAX_WORD_CHARS // 2] + "..." for word in words)
    if text.startswith("NoExtension"):
        return NO_TEXT
    return text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + " ..."


class _Added(msgspec.Struct):
    id: int


class _Model(msgspec.Struct):
    vocab: dict[str, int]


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
