"""Bytes to a request: every kind of broken body is an InvalidRequest, and names the field where there is one."""

from __future__ import annotations

import pytest

from phloem.core.errors import InvalidRequest
from phloem.serve.openai import chat, completions
from phloem.serve.openai.parse import parse_body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"  ", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"prompt": "x"', None),
        (b'{"prompt": "x"} x', None),
        (b'{"prompt": "\xff"}', None),
        (b"\xff\xfe", None),
        (b"{}", "prompt"),
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": [1.5]}', "prompt[0]"),
        (b'{"prompt": [[1, "a"]]}', "prompt[0][1]"),
        (b'{"prompt": [true]}', "prompt[0]"),
        (b'{"prompt": "x", "max_tokens": "5"}', "max_tokens"),
        (b'{"prompt": "x", "max_tokens": 5.5}', "max_tokens"),
        (b'{"prompt": "x", "n": true}', "n"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
        (b'{"prompt": "x", "temperature": -Infinity}', "temperature"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "x", "logit_bias": {"1": NaN}}', "logit_bias.1"),
        (b'{"prompt": "x", "logit_bias": {"1": "a"}}', "logit_bias"),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": ["a", "\\udfff"]}', "prompt[1]"),
        (b'{"prompt": "x", "\\udfff": 1}', None),
        (b'{"prompt": "x", "stop": [1]}', "stop[0]"),
        (b'{"prompt": "x", "zz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_broken_completion_body(body, field):
    """Red when a kind of broken body raises anything else, or the field is not named."""
    with pytest.raises(InvalidRequest) as caught:
        parse_body(body, completions.decoder)
    assert caught.value.field == field
    assert field is None or caught.value.message.startswith(field)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ('{"content": "x"}', "messages[0].role"),
        ('{"role": "wizard", "content": "x"}', "messages[0].role"),
        ('{"role": "user", "content": 5}', "messages[0].content"),
        ('{"role": "user", "content": "\\udc00"}', "messages[0].content"),
        ('{"role": "user", "content": [{"text": "x"}]}', "messages[0].content[0].type"),
        ('"x"', "messages[0]"),
    ],
)
def test_broken_message(message, field):
    """Red when the path of the broken part is lost."""
    with pytest.raises(InvalidRequest) as caught:
        parse_body(f'{{"messages": [{message}]}}'.encode(), chat.decoder)
    assert caught.value.field == field


def test_fields_that_clients_send_and_nobody_reads_are_accepted():
    """Red when unknown fields, nulls, or pairs of surrogates are refused."""
    body = b'{"prompt": "\\ud83d\\ude00", "metadata": {"a": [1]}, "store": true, "service_tier": "auto", "stop": null}'
    assert parse_body(body, completions.decoder).prompt == "😀"


def test_a_byte_that_is_not_utf8_is_found_where_it_is():
    """Red when the position is counted from the start of some string instead of the body."""
    with pytest.raises(InvalidRequest, match="at byte 12"):
        parse_body(b'{"prompt": "\xff"}', completions.decoder)
