"""Prose to sentences, markers and the words in it that are code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import msgspec

MARKER = re.compile(r"\[(c[0-9]+(?:\s*[,，、]\s*c[0-9]+)*)\]")
SPAN = re.compile(r"`([^`]+)`")
FENCE = re.compile(r"```.*?```", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[。！？])|(?<=[.!?])\s+|\n+")
LEADING_MARKERS = re.compile(rf"(?:[ \t]*{MARKER.pattern})+")

# Words that are code though nobody put them between backticks.
LETTER = "A-Za-z0-9_"
BARE_WORD = re.compile(
    rf"(?<![{LETTER}/.-])(?:"
    r"--[a-z][a-z0-9-]+"
    rf"|[A-Za-z_][{LETTER}]*(?:\.[A-Za-z_][{LETTER}]+)+(?:\(\))?"
    rf"|[{LETTER}]*[A-Za-z0-9]_[{LETTER}]+(?:\(\))?"
    rf"|_[A-Za-z][{LETTER}]+(?:\(\))?"
    rf"|[A-Z](?=[{LETTER}]{{3}})[{LETTER}]*[a-z][A-Z][{LETTER}]*"
    rf"|[A-Za-z][{LETTER}]+\(\)"
    r")"
)
IDENTIFIER_CHAIN = re.compile(rf"[A-Za-z_][{LETTER}]*(?:\.[A-Za-z_][{LETTER}]*)*")
FLAG = re.compile(r"--[A-Za-z][A-Za-z0-9_-]*")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|cu|cuh|cpp|cc|h|hpp|rs|jinja|jinja2|yaml|yml|json|toml|md)")


class Words(msgspec.Struct):
    """The code in a piece of prose: dotted chains of identifiers, command-line flags, paths of files."""

    chains: list[str]
    flags: list[str]
    paths: list[str]

    @property
    def every(self) -> list[str]:
        return [*self.chains, *self.flags, *self.paths]

    def __bool__(self) -> bool:
        return bool(self.every)


def markers(text: str) -> list[str]:
    """The ids of the citations that a text points to, in order, repeated as they are."""
    return [part for match in MARKER.finditer(text) for part in re.split(r"\s*[,，、]\s*", match[1])]


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences, each with the markers that follow its full stop."""
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:  # code may hold full stops
        held.append(match[0])
        return f"\x00{len(held) - 1}\x00"

    plain = SPAN.sub(hold, FENCE.sub("", text))
    found: list[str] = []
    for part in SENTENCE_END.split(plain):
        leading = LEADING_MARKERS.match(part)
        if leading and found:  # markers after a full stop belong to what it ends
            found[-1] += leading[0]
            part = part[leading.end() :]
        if part.strip(" \t。.，,"):
            found.append(part)
    return [re.sub("\x00([0-9]+)\x00", lambda match: held[int(match[1])], part).strip() for part in found]


def code_words(text: str) -> Words:
    """Everything in a text that must exist somewhere: what stands between backticks, and what looks like code."""
    words = Words([], [], [])
    text = MARKER.sub(" ", text)
    for match in SPAN.finditer(text):
        _add_span(words, match[1].strip())
    plain = SPAN.sub(" ", text)
    for match in PATH.finditer(plain):
        words.paths.append(match[0])
    for match in BARE_WORD.finditer(PATH.sub(" ", plain)):
        word = match[0].removesuffix("()")
        (words.flags if word.startswith("--") else words.chains).append(word)
    return words


def _add_span(words: Words, code: str) -> None:
    flags = FLAG.findall(code) if code.startswith("--") or " --" in code else []
    if flags:
        words.flags += flags  # what follows a flag is its value
        return
    path, _, symbol = code.partition("::")
    path = re.sub(r":\d+(-\d+)?$", "", path)
    if PATH.fullmatch(path):
        words.paths.append(path)
        words.chains += [symbol] if symbol else []
        return
    words.chains += chains_of(code)


def chains_of(code: str) -> list[str]:
    """The identifiers of a piece of code, dotted where they are read from each other; no keywords, no literals."""
    for mode in ("eval", "exec"):
        try:
            tree = ast.parse(code, mode=mode)
        except (SyntaxError, ValueError, RecursionError):
            continue
        return [chain for chain in _chains_in_tree(tree) if chain.isascii()]  # Chinese is no identifier here
    bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", " ", code)
    return [chain for chain in IDENTIFIER_CHAIN.findall(bare) if not _is_keyword(chain)]


def _chains_in_tree(tree: ast.AST) -> Iterator[str]:
    """Outermost chains, and the identifiers inside whatever is called, indexed or passed on the way."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Attribute | ast.Name):
            parts: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                parts.append(inner.id)
            else:
                stack.append(inner)
            yield ".".join(reversed(parts)) if isinstance(inner, ast.Name) else "?." + ".".join(reversed(parts))
            continue
        if isinstance(node, ast.keyword | ast.arg) and node.arg:
            yield node.arg
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _is_keyword(word: str) -> bool:
    return word in {"if", "else", "for", "in", "and", "or", "not", "is", "while", "return", "def", "class", "lambda"}
