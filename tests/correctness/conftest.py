"""The default model in both activation types, prompts of many lengths, and transformers as the oracle."""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem import LLM
from phloem.serve.text.load import load_tokenizer

NUM_PROMPTS = 32
TEXT = "\n\n".join(inspect.getdoc(thing) or "" for thing in (json, textwrap, inspect.cleandoc, os.walk, json.dumps))


@pytest.fixture(scope="session")
def prompts(default_model: Path) -> list[list[int]]:
    """32 prompts of 1 to about 500 tokens, each cut from another place of the text."""
    ids = load_tokenizer(default_model).encode(TEXT * 2)
    lengths = [1, 2, 3, 31, 32, 33, 63, 64, 65, 255, 256, 257] + [5 + 17 * index for index in range(NUM_PROMPTS - 12)]
    return [ids[11 * index : 11 * index + length] for index, length in enumerate(lengths)]


@pytest.fixture(scope="session")
def float32_llm(default_model: Path) -> Iterator[LLM]:
    with LLM(str(default_model), dtype="float32", memory_gb=2, max_model_len=2048) as llm:
        yield llm


@pytest.fixture(scope="session")
def fast_llm(default_model: Path) -> Iterator[LLM]:
    """As users run it: whatever measures fastest."""
    with LLM(str(default_model), memory_gb=1, max_model_len=2048) as llm:
        yield llm
