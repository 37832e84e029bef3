"""A bank as Markdown, in the form that banks are published in.

    ## Level 2（源码理解）
    ### 问题 1：...
    - 标准答案：
      1. 高层解释：...
      2. 核心伪代码：a fenced block
      3. 控制流/数据流解析：1. ... → 2. ...
      4. 数据结构与内存布局：...
      5. 与 vLLM/TensorRT-LLM 对比：...
      6. 性能 & 工程 trade-offs：...
      7. 重构/演进方向：...

Behind the answer stand what the reader checks it with: the citations, the false premise, the rubric.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from viva.bank.load import Bank
from viva.bank.schema import BankFile, Question
from viva.render.pieces import paragraphs, pieces, tidy
from viva.render.words import SECTIONS, level_name, module_name, pinned, place, product, section_name

WORDS = {
    "zh": {
        "question": "问题 {number}：{title}",
        "answer": "标准答案",
        "citations": "引用",
        "premise": "错误前提",
        "absent": "在钉住的源码中不存在",
        "rubric": "评分要点",
        "weight": "权重",
        "fields": "关键字段",
        "signatures": "签名",
        "dynamic": "动态分派（静态调用图看不到）",
        "sources": "源码版本",
        "unchecked": "未重新抓取，仅校验引文自洽",
        "about": "每个 `[cN]` 指向该题末尾的引用：来源、文件、行号与所引各行的 sha256；"
        "逐字引文在 `questions/` 的同名 YAML 里。",
        "table": "| 问题 | 层级 | 模块 |",
        "colon": "：",
    },
    "en": {
        "question": "Question {number}: {title}",
        "answer": "Model answer",
        "citations": "Citations",
        "premise": "False premise",
        "absent": "not in the pinned source",
        "rubric": "Rubric",
        "weight": "weight",
        "fields": "Key fields",
        "signatures": "Signatures",
        "dynamic": "Dynamic dispatch (no static call graph shows it)",
        "sources": "Sources",
        "unchecked": "not fetched again, only consistent",
        "about": "Each `[cN]` points to the citations after the answer: source, file, lines and sha256 of the quoted"
        " lines; the verbatim quotes are in the YAML files of `questions/`.",
        "table": "| Question | Level | Module |",
        "colon": ": ",
    },
}
IN_ANSWER, IN_ITEM = " " * 2, " " * 5  # columns of the list items that texts belong to


def bank_markdown(bank: Bank, questions: Sequence[Question] | None = None) -> str:
    """The whole bank, or some of its questions under the numbers that they have in it."""
    chosen = {question.id for question in (bank.questions if questions is None else questions)}
    numbered = [(number, each) for number, each in enumerate(bank.questions, start=1) if each.id in chosen]
    language, words = bank.file.language, WORDS[bank.file.language]
    lines = [f"# {_text(bank.file.title)}", "", f"{words['sources']}{words['colon']}{_sources(bank.file)}", ""]
    lines += [words["about"], "", words["table"], "| --- | --- | --- |"]
    for number, question in numbered:
        lines.append(
            f"| {number} | {level_name(question.level, language)} | {module_name(question.module, language)} |"
        )
    level = 0
    for number, question in numbered:
        if question.level != level:
            level = question.level
            lines += ["", f"## {level_name(level, language)}"]
        lines += ["", *question_lines(question, bank.file, number=number)]
    return "\n".join(lines) + "\n"


def question_lines(question: Question, file: BankFile, *, number: int) -> Iterator[str]:
    """One question from its heading to its rubric."""
    words = WORDS[file.language]
    yield "### " + words["question"].format(number=number, title=_text(question.title))
    yield ""
    yield f"- {words['answer']}{words['colon'].rstrip()}"
    for position, section in enumerate(SECTIONS, start=1):
        name = section_name(section, question, file, file.language)
        body = list(_section(section, question, file))
        first, rest = (body[0], body[1:]) if section != "pseudocode" else ("", ["", *body])
        yield f"{IN_ANSWER}{position}. {name}{words['colon']}{first}".rstrip()
        yield from (f"{IN_ITEM}{line}" if line else "" for line in rest)
    yield from _after(question, file)


def _section(section: str, question: Question, file: BankFile) -> Iterator[str]:
    """The lines of one of the seven, the first of which stands behind the heading."""
    answer, words = question.answer, WORDS[file.language]
    match section:
        case "pseudocode":
            yield from _fenced(answer.pseudocode.text)
            if answer.pseudocode.dynamic:
                yield from ("", f"{words['dynamic']}{words['colon']}".rstrip(), "")
            for call in answer.pseudocode.dynamic:
                yield f"- `{call.caller}` → `{call.callee}` (`{call.via}`){words['colon']}{_text(call.reason)}"
        case "flow":
            yield f"1. {_text(answer.flow[0])}" if answer.flow else ""
            yield from (f"→ {number}. {_text(step)}" for number, step in enumerate(answer.flow[1:], start=2))
        case "layout":
            yield from _spaced(paragraphs(answer.layout))
            yield from _facts(question, file)
        case "comparison":
            sources = {source.id: source for source in file.sources}
            for each in answer.comparison:
                yield from ("", f"- **{product(sources.get(each.system), each.system)}**{words['colon']}".rstrip(), "")
                yield from (f"  {line}" if line else "" for line in _spaced(paragraphs(each.text)))
        case "evolution":
            yield ""
            for direction in answer.evolution:
                yield from ("", f"- {_text(direction)}")
        case _:
            yield from _spaced(paragraphs(answer.overview if section == "overview" else answer.tradeoffs))


def _facts(question: Question, file: BankFile) -> Iterator[str]:
    """Fields and signatures: what `viva verify` compares with the source word by word."""
    words = WORDS[file.language]
    fields = []
    for field in question.answer.fields:
        kind = f": {field.type}" if field.type else ""
        default = f" = {field.default}" if field.default else ""
        fields.append(f"`{field.owner}.{field.name}{kind}{default}`")
    signatures = [f"`{each.symbol}{each.signature}`" for each in question.answer.signatures]
    for name, facts in (("fields", fields), ("signatures", signatures)):
        if facts:
            yield from ("", f"{words[name]}{words['colon']}".rstrip(), "", *(f"- {fact}" for fact in facts))


def _after(question: Question, file: BankFile) -> Iterator[str]:
    words, sources = WORDS[file.language], {source.id: source for source in file.sources}
    colon = words["colon"]
    yield f"- {words['citations']}{colon.rstrip()}"
    for citation in question.citations:
        source = sources[citation.source]
        note = "" if source.checked else f", {words['unchecked']}"
        yield (
            f"  - [{citation.id}] {pinned(source, citation)} `{place(citation)}` (sha256 {citation.sha256[:16]}{note})"
        )
    if question.premise:
        absent = ", ".join(f"`{name}`" for name in question.premise.absent)
        claim = _text(question.premise.claim).rstrip("。.")
        yield f"- {words['premise']}{colon}{claim} ({words['absent']}{colon}{absent})"
    yield f"- {words['rubric']}{colon.rstrip()}"
    for point in question.rubric:
        cited = f" [{', '.join(point.citations)}]" if point.citations else ""
        yield f"  - {_text(point.point)} ({words['weight']} {point.weight}){cited}"


def _sources(file: BankFile) -> str:
    return ", ".join(f"`{pinned(source)}`" for source in file.sources)


def _fenced(code: str) -> Iterator[str]:
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    yield f"{fence}python"
    yield from code.rstrip().splitlines()
    yield fence


def _spaced(texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield ""
        yield _text(text)


def _text(text: str) -> str:
    """A line that stays a line: no heading, no fence and no HTML in it but what stands between backticks."""
    parts = []
    for piece in pieces(tidy(text)):
        match piece.kind:
            case "text":
                parts.append(re.sub(r"<(?=[A-Za-z/!?])", r"\<", piece.text))
            case "code":
                parts.append(f"`{piece.text}`")
            case "strong":
                parts.append(f"**{piece.text}**")
            case "marker":
                parts.append(piece.text)
    return re.sub(r"^(?=#{1,6}(\s|$)|```|~~~)", r"\\", "".join(parts))
