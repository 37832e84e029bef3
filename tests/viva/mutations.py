"""Ways to spoil a question. Each yields (what was done, the spoiled question); a verifier must notice every one."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from viva.bank.cite import quote_hash
from viva.bank.schema import Question
from viva.verify.prose import SPAN, markers

Mutation = tuple[str, Question]
Plain = dict[str, Any]

GONE = "_gone"
PROSE = ("overview", "layout", "tradeoffs")


def all_mutations(question: Question) -> Iterator[Mutation]:
    for mutate in MUTATORS:
        yield from mutate(question)


def changed(question: Question, change: Callable[[Plain], object]) -> Question:
    """The question after a change of its plain form."""
    plain = msgspec.json.decode(msgspec.json.encode(question))
    change(plain)
    return msgspec.convert(plain, Question, strict=False)


# --- pseudo-code ---


def renamed_in_code(question: Question) -> Iterator[Mutation]:
    """Every name of the pseudo-code, one occurrence at a time."""
    text = question.answer.pseudocode.text
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.NAME or keyword.iskeyword(token.string) or token.string == "_":
            continue
        row, column = token.start
        line = lines[row - 1]
        spoiled = line[: token.end[1]] + GONE + line[token.end[1] :]
        code = "\n".join([*lines[: row - 1], spoiled, *lines[row:]])
        yield f"code line {row}, column {column}: {token.string} renamed", _with_code(question, code)


def reordered_calls(question: Question) -> Iterator[Mutation]:
    """Neighbouring statements of a block that both call something, exchanged."""
    tree = ast.parse(question.answer.pseudocode.text)
    count = sum(1 for _ in _swaps(tree))
    for number in range(count):
        spoiled = ast.parse(question.answer.pseudocode.text)
        block, index = list(_swaps(spoiled))[number]
        what = f"{ast.unparse(block[index])[:30]!r} and {ast.unparse(block[index + 1])[:30]!r} exchanged"
        block[index], block[index + 1] = block[index + 1], block[index]
        yield what, _with_code(question, _unparsed(spoiled, question))


def _swaps(tree: ast.AST) -> Iterator[tuple[list[ast.stmt], int]]:
    for node in ast.walk(tree):
        for block in (node.__dict__.get("body"), node.__dict__.get("orelse")):
            if isinstance(block, list) and not isinstance(node, ast.Module | ast.ClassDef):
                for index in range(len(block) - 1):
                    if (
                        _calls(block[index])
                        and _calls(block[index + 1])
                        and _calls(block[index]) != _calls(block[index + 1])
                    ):
                        yield block, index


def _calls(node: ast.stmt) -> set[str]:
    found = {ast.unparse(item.func) for item in ast.walk(node) if isinstance(item, ast.Call)}
    return {name for name in found if "." in name}


def _unparsed(tree: ast.AST, question: Question) -> str:
    """The code without its comments, but with a comment and with those that say which file."""
    text = question.answer.pseudocode.text
    files = re.findall(r"^# file: .*$", text, re.MULTILINE)
    return (files[0] if len(files) == 1 else "# core") + "\n" + ast.unparse(tree)


def invented_call(question: Question) -> Iterator[Mutation]:
    """A call of something that exists, in a function that does not call it."""
    tree = ast.parse(question.answer.pseudocode.text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    names = [node.name for node in functions]
    called = {
        item.func.attr for item in ast.walk(tree) if isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute)
    }
    name = next((name for name in names if name not in called), None)
    if name is None:
        return
    lines = question.answer.pseudocode.text.split("\n")
    for node in functions:
        first = node.body[0]
        spoiled = " " * first.col_offset + f"self.{name}()"
        code = "\n".join([*lines[: first.lineno - 1], spoiled, *lines[first.lineno - 1 :]])
        yield f"{node.name} calls {name}", _with_code(question, code)


def undeclared(question: Question) -> Iterator[Mutation]:
    code = question.answer.pseudocode
    for number, name in enumerate(code.locals):
        rest = [*code.locals[:number], *code.locals[number + 1 :]]
        yield f"local {name} not declared", _with_part(question, "pseudocode", "locals", rest)
    for number, item in enumerate(code.dynamic):
        for key in ("caller", "callee", "via"):
            plain = msgspec.json.decode(msgspec.json.encode(code.dynamic))
            plain[number][key] += GONE
            yield f"dynamic {item.callee}: {key} renamed", _with_part(question, "pseudocode", "dynamic", plain)


def _with_code(question: Question, code: str) -> Question:
    return _with_part(question, "pseudocode", "text", code)


def _with_part(question: Question, section: str, key: str, value: Any) -> Question:
    return changed(question, lambda plain: plain["answer"][section].__setitem__(key, value))


# --- citations ---


def spoiled_citations(question: Question) -> Iterator[Mutation]:
    for number, citation in enumerate(question.citations):
        for what, change in _citation_changes(citation.quote, list(citation.lines)):
            yield (
                f"{citation.id}: {what}",
                changed(question, lambda plain, n=number, c=change: c(plain["citations"][n])),
            )
        removed = changed(question, lambda plain, n=number: plain["citations"].pop(n))
        yield f"{citation.id} removed", removed
        yield f"{citation.id} not used", _without_marker(question, citation.id)


def _citation_changes(quote: str, lines: list[int]) -> Iterator[tuple[str, Callable[[Plain], object]]]:
    digit = re.search(r"\d", quote)
    other = quote.replace("self", "selv", 1) if "self" in quote else quote + " "
    yield "a word of the quote changed", lambda plain: plain.update(quote=other)
    yield "sha256 changed", lambda plain: plain.update(sha256=quote_hash(quote + "\n"))
    yield "cut by a line", lambda plain: plain.update(lines=[lines[0], lines[1] + 1])
    if digit:
        constant = quote[: digit.start()] + str((int(digit[0]) + 1) % 10) + quote[digit.end() :]
        yield "a constant changed", lambda plain: plain.update(quote=constant)


def spoiled_fetched_citations(question: Question, fetched: set[str]) -> Iterator[Mutation]:
    """What can be noticed only with the source at hand."""
    for number, citation in enumerate(question.citations):
        if citation.source not in fetched:
            continue
        first, last = citation.lines
        changes: list[tuple[str, Plain]] = [
            ("shifted down", {"lines": [first + 1, last + 1]}),
            ("shifted up", {"lines": [first - 1, last - 1]}),
            ("outside the file", {"lines": [first + 10**6, last + 10**6]}),
            ("another file", {"file": citation.file.replace(".py", "_gone.py")}),
        ]
        forged = re.sub(r"\d", lambda match: str((int(match[0]) + 1) % 10), citation.quote, count=1) + " "
        changes.append(("quote and hash forged", {"quote": forged, "sha256": quote_hash(forged)}))
        for what, change in changes:
            if change.get("lines", [1])[0] > 0:
                spoiled = changed(question, lambda plain, n=number, c=change: plain["citations"][n].update(c))
                yield f"{citation.id} {what}", spoiled


def _without_marker(question: Question, citation: str) -> Question:
    text = msgspec.json.encode(question).decode()
    quotes = [item.quote for item in question.citations]
    plain = msgspec.json.decode(re.sub(rf"\[{citation}\]", "", text))
    for item, quote in zip(plain["citations"], quotes):
        item["quote"] = quote
    for point in plain["rubric"]:
        point["citations"] = [item for item in point.get("citations", []) if item != citation]
    plain["answer"] = _drop_in_lists(plain["answer"], citation)
    return msgspec.convert(plain, Question, strict=False)


def _drop_in_lists(value: Any, citation: str) -> Any:
    if isinstance(value, str):
        return re.sub(rf"{citation}\s*[,，、]\s*(?=c)|[,，、]\s*{citation}(?=\])", "", value)
    if isinstance(value, list):
        return [_drop_in_lists(item, citation) for item in value]
    if isinstance(value, dict):
        return {key: _drop_in_lists(item, citation) for key, item in value.items()}
    return value


# --- prose and claims ---


def renamed_in_prose(question: Question) -> Iterator[Mutation]:
    """The last identifier between each pair of backticks."""
    for place, text, put in _texts(question):
        for match in SPAN.finditer(text):
            names = list(re.finditer(r"[A-Za-z_][A-Za-z0-9_]{2,}", match[1]))
            if names and not match[1].startswith("-"):
                end = match.start(1) + names[-1].end()
                yield f"{place}: {match[0]} renamed", put(text[:end] + GONE + text[end:])


def spoiled_markers(question: Question) -> Iterator[Mutation]:
    for place, text, put in _texts(question):
        for marker in dict.fromkeys(markers(text)):
            yield f"{place}: {marker} leads nowhere", put(re.sub(rf"\b{marker}\b", "c99", text, count=1))


def emptied_sections(question: Question) -> Iterator[Mutation]:
    for place, _, put in _texts(question):
        if not place.startswith("rubric"):
            yield f"{place} emptied", put("……")
    yield "pseudocode emptied", _with_code(question, "# nothing\n")
    for key in ("flow", "evolution", "comparison"):
        yield f"no {key}", changed(question, lambda plain, k=key: plain["answer"].__setitem__(k, []))
    for number in range(len(question.answer.comparison)):
        yield (
            f"comparison {number} removed",
            changed(question, lambda plain, n=number: plain["answer"]["comparison"].pop(n)),
        )


def uncited_comparison(question: Question) -> Iterator[Mutation]:
    """A comparison that cites the subject instead of the other system."""
    subject = question.citations[0].id
    for number, item in enumerate(question.answer.comparison):
        text = re.sub(r"\[c[0-9, c，、]+\]", f"[{subject}]", item.text)
        yield (
            f"comparison with {item.system} cites the subject",
            changed(question, lambda plain, n=number, t=text: plain["answer"]["comparison"][n].update(text=t)),
        )


def spoiled_members(question: Question) -> Iterator[Mutation]:
    for number, field in enumerate(question.answer.fields):
        changes: list[Plain] = [{"name": field.name + GONE}, {"owner": field.owner + GONE}, {"type": "complex"}]
        for change in changes:
            spoiled = changed(question, lambda plain, n=number, c=change: plain["answer"]["fields"][n].update(c))
            yield f"field {field.owner}.{field.name}: {change}", spoiled
    for number, claim in enumerate(question.answer.signatures):
        texts = [claim.signature.replace(")", ", extra=None)", 1), claim.signature.replace("(", "(extra, ", 1)]
        for text in texts:
            change = {"signature": text}
            spoiled = changed(question, lambda plain, n=number, c=change: plain["answer"]["signatures"][n].update(c))
            yield f"signature of {claim.symbol}: {text}", spoiled


def _texts(question: Question) -> Iterator[tuple[str, str, Callable[[str], Question]]]:
    """Every piece of prose, and how to put another in its place."""
    answer = question.answer
    yield "title", question.title, lambda text: changed(question, lambda plain: plain.update(title=text))
    for key in PROSE:
        yield (
            key,
            getattr(answer, key),
            lambda text, k=key: changed(question, lambda plain: plain["answer"].update({k: text})),
        )
    for key in ("flow", "evolution"):
        for number, old in enumerate(getattr(answer, key)):
            yield (
                f"{key}[{number}]",
                old,
                lambda text, k=key, n=number: changed(question, lambda plain: plain["answer"][k].__setitem__(n, text)),
            )
    for number, item in enumerate(answer.comparison):
        yield (
            f"comparison[{item.system}]",
            item.text,
            lambda text, n=number: changed(question, lambda plain: plain["answer"]["comparison"][n].update(text=text)),
        )
    for number, point in enumerate(question.rubric):
        yield (
            f"rubric[{point.id}]",
            point.point,
            lambda text, n=number: changed(question, lambda plain: plain["rubric"][n].update(point=text)),
        )


MUTATORS: tuple[Callable[[Question], Iterator[Mutation]], ...] = (
    renamed_in_code,
    reordered_calls,
    invented_call,
    undeclared,
    spoiled_citations,
    renamed_in_prose,
    spoiled_markers,
    emptied_sections,
    uncited_comparison,
    spoiled_members,
)
