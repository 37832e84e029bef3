"""Two vocabularies: one of bytes, made in no time, and the default model's."""

from __future__ import annotations

import json

import pytest

from phloem.core.request import Constraint
from phloem.launch.text import BYTE_VOCAB_SIZE, END_ID, tokenizer_json_of
from phloem.runtime.grammar.compile import Compiler
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.grammar.vocabulary import Vocabulary

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema(value) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """A byte is a token; the end token is END_ID."""
    return Vocabulary(tokenizer_json_of("dummy:null"), BYTE_VOCAB_SIZE, (END_ID,))


@pytest.fixture(scope="session")
def grammars(vocabulary) -> Grammars:
    return Grammars(lambda: vocabulary)


@pytest.fixture(scope="session")
def default_vocabulary(default_model) -> Vocabulary:
    return Vocabulary(tokenizer_json_of(default_model), 49152, (2,))


@pytest.fixture(scope="session")
def default_compiler(default_vocabulary) -> Compiler:
    return Compiler(default_vocabulary)


@pytest.fixture(scope="session")
def default_grammars(default_vocabulary) -> Grammars:
    return Grammars(lambda: default_vocabulary)
