"""What bytes a vocabulary piece stands for: the two spellings that language models use.

Byte-level BPE (GPT-2, `encoder.py`) writes each byte as one printable character; SentencePiece writes a space as U+2581
and a byte that has no piece as `<0x0A>`. In both, the text of a token sequence is the concatenated bytes of its pieces,
so decoding can be done token by token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SPACE = "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")

PieceBytes = Callable[[str], bytes]


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the rest follows from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


BYTE_ALPHABET = byte_alphabet()


def byte_level(piece: str) -> bytes:
    """Bytes of a byte-level piece; a piece with other characters (an added token) is spelled in plain text."""
    try:
        return bytes(map(BYTE_ALPHABET.__getitem__, piece))
    except KeyError:
        return piece.encode()


def sentencepiece(piece: str) -> bytes:
    """Bytes of a SentencePiece piece."""
    byte = BYTE_PIECE.match(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def spelling_of(decoder: Mapping[str, Any] | None) -> tuple[PieceBytes, bool] | None:
    """(bytes of a piece, whether a text loses its first space) for the `decoder` entry of a tokenizer.json.

    None for a decoder that does not decode piece by piece (WordPiece, CTC).
    """
    steps = {step["type"]: step for step in _flatten(decoder)}
    if "ByteLevel" in steps:
        return byte_level, False
    if "Metaspace" in steps:
        scheme = steps["Metaspace"].get("prepend_scheme", "always")
        return sentencepiece, scheme != "never"
    if "ByteFallback" in steps or "Replace" in steps:
        return sentencepiece, "Strip" in steps
    return None


def _flatten(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _flatten(step)
    else:
        yield decoder
