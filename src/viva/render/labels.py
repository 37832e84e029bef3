"""The interface's own words: (Chinese, English) by key. A page holds both and shows one."""

from __future__ import annotations

from html import escape

from markupsafe import Markup

LABELS: dict[str, tuple[str, str]] = {
    "skip": ("跳到正文", "Skip to the text"),
    "menu": ("题目", "Questions"),
    "close": ("关闭", "Close"),
    "search": ("搜索题目与答案", "Search questions and answers"),
    "levels": ("层级", "Levels"),
    "modules": ("模块", "Modules"),
    "clear": ("清除筛选", "Clear filters"),
    "found": ("道题", "questions"),
    "nothing": ("没有符合条件的题目。", "No question matches."),
    "recall": ("回忆模式", "Recall mode"),
    "recall_hint": ("先自己回答，再逐节展开", "Answer first, then reveal section by section"),
    "language": ("English", "中文"),
    "theme": ("外观", "Appearance"),
    "help": ("快捷键", "Keys"),
    "question": ("问题", "Question"),
    "answer": ("标准答案", "Model answer"),
    "reveal_all": ("全部展开", "Reveal all"),
    "hide_all": ("全部收起", "Hide all"),
    "previous": ("上一题", "Previous"),
    "next": ("下一题", "Next"),
    "citations": ("引用", "Citations"),
    "rubric": ("评分要点", "Rubric"),
    "weight": ("权重", "weight"),
    "premise": ("错误前提", "False premise"),
    "absent": ("钉住的源码中不存在：", "Not in the pinned source: "),
    "unchecked": ("仓库引文：未重新抓取，仅校验自洽", "From a repository: not fetched again, only consistent"),
    "open_file": ("在完整文件中查看", "Open in the whole file"),
    "select": ("选入导出", "Select for export"),
    "selected": ("已选", "Selected"),
    "select_all": ("全选当前", "Select all shown"),
    "export": ("导出所选", "Export the selection"),
    "print": ("打印", "Print"),
    "practice": ("作答并评分", "Answer and be graded"),
    "practice_hint": (
        "用自己的话回答，像在面试里那样。",
        "Answer in your own words, as in an interview.",
    ),
    "grade": ("评分", "Grade"),
    "grading": ("评分中…", "Grading…"),
    "covered": ("覆盖", "covered"),
    "partly": ("部分", "partly"),
    "missing": ("缺失", "missing"),
    "follow_up": ("追问", "Follow-up"),
    "report": ("本次练习报告", "Report of this session"),
    "failed": ("没有完成：", "This failed: "),
    "back": ("返回题库", "Back to the bank"),
    "cited_here": ("引用此文件的题目", "Questions that cite this file"),
    "keys_move": ("下一题 / 上一题", "next / previous question"),
    "keys_section": ("展开或收起第 n 节", "reveal or hide section n"),
    "keys_all": ("展开或收起全部", "reveal or hide everything"),
    "keys_search": ("搜索", "search"),
    "keys_recall": ("回忆模式", "recall mode"),
    "keys_select": ("选入导出", "select for export"),
    "keys_practice": ("作答", "answer"),
    "keys_look": ("语言 / 外观", "language / appearance"),
    "keys_help": ("本列表", "this list"),
}


def label(key: str) -> Markup:
    """Both languages; the style sheet shows that of the interface."""
    zh, en = LABELS[key]
    return both(zh, en)


def both(zh: str, en: str) -> Markup:
    return Markup(f'<span class="ui-zh" lang="zh">{escape(zh)}</span><span class="ui-en" lang="en">{escape(en)}</span>')


def attribute(name: str, key: str) -> Markup:
    """An attribute in the first language, with what the script needs to change it."""
    zh, en = LABELS[key]
    return Markup(f'{name}="{escape(zh)}" data-zh-{name}="{escape(zh)}" data-en-{name}="{escape(en)}"')
