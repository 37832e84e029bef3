"""The published JSON schema of the IR: generated from ir.py, kept in docs/, compared by a test."""

from __future__ import annotations

from typing import Any

import msgspec

from phloem.lang.ir import VERSION, Program


def program_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a program."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Phloem program, version {VERSION}",
        **msgspec.json.schema(Program),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema))
    return plain
