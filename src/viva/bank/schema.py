"""The form of a bank: `bank.yaml` is one `BankFile`, each file of `questions/` one `Question`.

The published form is docs/bank.schema.json, made from these structs by `published_schema`.

Markers: `[c1]` or `[c1, c2]` in a text points to the question's citations. A sentence that says something about code
carries one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

SCHEMA = "viva-bank/1"

Level = Literal[2, 3, 4, 5]
Module = Literal["execution", "graph-ir", "kv-cache", "parallelism", "system"]
Kind = Literal["ordinary", "false-premise"]
Role = Literal["subject", "comparison"]

LEVELS: dict[int, str] = {2: "源码理解", 3: "实现细节+调度/内存", 4: "架构&性能优化", 5: "对比+重构+演进"}
MODULES: dict[str, str] = {
    "execution": "执行与调度层",
    "graph-ir": "图与 IR 层",
    "kv-cache": "KV Cache/内存管理",
    "parallelism": "并行与扩展性",
    "system": "系统工程细节",
}

Text = Annotated[str, Meta(min_length=1)]
Slug = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
LineNumber = Annotated[int, Meta(ge=1)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A frozen record; an unknown key is an error."""


class Source(Struct, frozen=True, kw_only=True):
    """One pinned source. Exactly one of `package` (with `version`), `tree` and `repository` (with `commit`) is given.

    A tree is a folder relative to bank.yaml. A repository is not fetched: its citations are consistent or not
    (`checked` is false for it), and the report counts them apart."""

    id: Slug
    role: Role
    package: str | None = None
    version: str | None = None
    tree: str | None = None
    repository: str | None = None
    commit: str | None = None
    checked: bool = True


class BankFile(Struct, frozen=True, kw_only=True):
    """bank.yaml. `terms` are names of products and ideas that are no identifiers: FlashInfer, RadixAttention, ..."""

    schema: Literal["viva-bank/1"]
    title: Text
    language: Literal["zh", "en"] = "zh"
    sources: tuple[Source, ...]
    terms: tuple[str, ...] = ()


class Citation(Struct, frozen=True, kw_only=True):
    """Lines `lines[0]`..`lines[1]` (from 1, inclusive) of `file` in a source. `quote` is those lines, verbatim, joined
    by line feeds without a last one; `sha256` is the hash of its UTF-8 bytes. `viva cite` fills both. `commit` is for
    repositories whose files are pinned one by one."""

    id: Annotated[str, Meta(pattern=r"^c[0-9]+$")]
    source: Slug
    file: Text
    lines: tuple[LineNumber, LineNumber]
    commit: str | None = None
    sha256: str = ""
    quote: str = ""


class Dispatch(Struct, frozen=True, kw_only=True):
    """A call that no static call graph shows: `caller` reaches `callee` through the expression `via` in its body."""

    caller: Text
    callee: Text
    via: Text
    reason: Text


class Pseudocode(Struct, frozen=True, kw_only=True):
    """Python syntax. A def (or a method in a class) has the name of the source function it abridges; a comment
    `# file: path` above settles which one where a name is defined twice. Each call must be a call of that function, in
    an order that its source allows. Names must be its own, or be declared: `locals` are invented here, `foreign` maps
    a name to the source it belongs to."""

    text: Text
    locals: tuple[str, ...] = ()
    foreign: dict[str, str] = {}
    dynamic: tuple[Dispatch, ...] = ()


class Field(Struct, frozen=True, kw_only=True):
    """A field of a class of the source. `type` and `default` are compared where given; `source` is the subject."""

    owner: Text
    name: Text
    type: str | None = None
    default: str | None = None
    source: str | None = None


class Signature(Struct, frozen=True, kw_only=True):
    """`signature` is all of it: `(self, reqs: List[Req], pad: int = 0) -> None`."""

    symbol: Text
    signature: Text
    source: str | None = None


class Comparison(Struct, frozen=True, kw_only=True):
    """How another system does it; `system` is the id of a source, into which the text has a marker."""

    system: Slug
    text: Text


class Premise(Struct, frozen=True, kw_only=True):
    """What is widely written (`claim`), and the identifiers or files (`absent`) that the pinned source has not."""

    claim: Text
    absent: Annotated[tuple[str, ...], Meta(min_length=1)]


class Answer(Struct, frozen=True, kw_only=True):
    """The seven sections. `proposed` are names that the evolution section invents."""

    overview: Text
    pseudocode: Pseudocode
    flow: tuple[Text, ...]
    layout: Text
    comparison: tuple[Comparison, ...]
    tradeoffs: Text
    evolution: tuple[Text, ...]
    fields: tuple[Field, ...] = ()
    signatures: tuple[Signature, ...] = ()
    proposed: tuple[str, ...] = ()


class RubricPoint(Struct, frozen=True, kw_only=True):
    """One gradable point of a candidate's answer."""

    id: Annotated[str, Meta(pattern=r"^r[0-9]+$")]
    point: Text
    weight: Annotated[int, Meta(ge=1, le=10)] = 1
    citations: tuple[str, ...] = ()


class Question(Struct, frozen=True, kw_only=True):
    """One file of `questions/`. `terms` adds to the bank's."""

    id: Slug
    level: Level
    module: Module
    kind: Kind = "ordinary"
    title: Text
    premise: Premise | None = None
    citations: tuple[Citation, ...]
    answer: Answer
    rubric: Annotated[tuple[RubricPoint, ...], Meta(min_length=3, max_length=6)]
    terms: tuple[str, ...] = ()


def published_schema() -> dict[str, Any]:
    """The JSON schema of both files."""
    _, definitions = msgspec.json.schema_components([BankFile, Question], ref_template="#/$defs/{name}")
    definitions = msgspec.json.decode(msgspec.json.encode(definitions))  # tuples of defaults become lists
    _sort_enums(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        "description": "bank.yaml is a BankFile, each file of questions/ a Question",
        "oneOf": [{"$ref": "#/$defs/BankFile"}, {"$ref": "#/$defs/Question"}],
        "$defs": definitions,
    }


def _sort_enums(value: Any) -> None:
    """msgspec lists the values of a Literal in no fixed order."""
    if isinstance(value, dict):
        if "enum" in value:
            value["enum"].sort()
        for item in value.values():
            _sort_enums(item)
    elif isinstance(value, list):
        for item in value:
            _sort_enums(item)
