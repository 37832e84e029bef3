"""`phloem`: one command a use. Nothing here imports torch; each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phloem.core.errors import CallerError, ConfigError, PhloemError
from phloem.launch.options import OFFLINE_OMITS, add_options

EXIT_OK, EXIT_ENGINE, EXIT_CALLER, EXIT_INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = """\
Phloem serves large language models, on a two-core CPU or a rack of GPUs.

  phloem serve                                serve the default model, OpenAI-compatible, on 127.0.0.1:8000
  phloem serve --model ./llama-3.2-1b.gguf    serve a GGUF file, a Hugging Face folder or a hub id
  phloem chat                                 talk to the model in the terminal
  phloem generate "The capital of France is"  continue a text and print it
  phloem models                               what is known and what is on this machine
  phloem graph default                        what one step computes, before and after each pass
  phloem program show FILE                    a structured program, before and after each pass
  phloem bench                                how fast it is here

`phloem COMMAND --help` explains every option of a command."""

SERVE = """\
Serve a model behind the OpenAI API: /v1/models, /v1/completions, /v1/chat/completions, /tokenize, /detokenize,
/health, /ready, /metrics and /docs.

  phloem serve
  phloem serve --model ./Qwen2.5-0.5B-Instruct --port 9000 --max-model-len 8192
  phloem serve --config phloem.toml --policy fcfs        # flags win over the file
  curl -s http://127.0.0.1:8000/v1/models

exit codes: 0 stopped by a signal after draining, 1 the engine failed, 2 an option or the model is wrong,
70 the engine process died (open requests were answered with an error first)."""

ROUTER = """\
Put one address in front of several replicas, and send each request where most of its prompt is cached.

  phloem router --replica http://10.0.0.1:8000 --replica http://10.0.0.2:8000 --model default
  phloem router --policy least-tokens --port 9000
  curl -s http://127.0.0.1:8080/replicas
  curl -s http://127.0.0.1:8080/replicas -d '{"url": "http://10.0.0.3:8000"}'      # add one; -X DELETE drains one

exit codes: 0 stopped by a signal after draining, 2 an option or a replica is wrong."""

GENERATE = """\
Continue a text and print what the model says, as it says it.

  phloem generate "The capital of France is" --max-tokens 20 --temperature 0
  phloem generate --chat "Explain what a radix tree is in one sentence."
  cat article.txt | phloem generate - --max-tokens 100"""

CHAT = """\
Talk to a model in the terminal, with history. Without --url the model runs in this process.

  phloem chat
  phloem chat --model ./model.gguf --system "You answer in French."
  phloem chat --url http://127.0.0.1:8000

inside: /help, /clear, /system TEXT, /quit; arrow keys recall earlier lines."""

BENCH = """\
Measure this engine in process: single stream, prefill, offline throughput and a shared prefix.

  phloem bench
  phloem bench --only a,b --dtype bfloat16 --json result.json
  phloem bench --profile     where the time of a step goes, op by op

bench/ in the repository compares with peers."""

GRAPH = """\
Print the model's graph before and after each pass, with bytes and FLOPs an op. No weights are read.

  phloem graph default
  phloem graph dummy:llama-3.2-1b"""

PROGRAM = """\
Show a structured-generation program: its nodes as traced, and after each pass that changes something.

  phloem program show judge.py
  phloem program show judge.py --name judge --pass parallel
  phloem program show judge.json --format mermaid        # or svg, json"""

SIMULATE = """\
What a fleet would do with a trace: the real scheduler and router on a virtual clock, with a cost a step in the place of
a model; docs/cluster.md states how far to trust it.

  phloem simulate trace.jsonl --gpus 64 --tp 2 --rate 20             H200s, by the rates measured on one
  phloem serve --record run.phloem; phloem simulate --fit run.phloem   step costs fitted to what this machine did
  phloem simulate trace.csv --fit run.phloem --replicas 4 --router round-robin"""

MODELS = """\
List the models that are known by name and those in the cache folder, or fetch one.

  phloem models
  phloem models fetch default"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for the caller's fault and 1 for the engine's. Never a traceback, except
    with --log-level debug."""
    arguments = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except PhloemError as error:
        if vars(arguments).get("log_level") == "debug":
            raise
        print(f"phloem: error: {error.message}", file=sys.stderr)
        return EXIT_CALLER if isinstance(error, CallerError) else EXIT_ENGINE
    except KeyboardInterrupt:
        print("phloem: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nothing is left to be said
        return EXIT_OK


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = TeachingParser(prog="phloem", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"phloem {_version()}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", description=SERVE, help="serve a model behind the OpenAI API")
    _add_model_argument(serve)
    add_options(serve)
    serve.set_defaults(run=_serve)

    _add_router(commands)

    generate = commands.add_parser("generate", description=GENERATE, help="continue a text")
    generate.add_argument("prompt", help="the text; - reads standard input")
    generate.add_argument("--chat", action="store_true", help="wrap the text in the model's chat template")
    _add_sampling(generate, max_tokens=128, temperature=0.0)
    add_options(generate, omit=OFFLINE_OMITS)
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", description=CHAT, help="talk to a model in the terminal")
    _add_model_argument(chat)
    chat.add_argument("--url", help="a server to talk to, instead of running the model in this process")
    chat.add_argument("--system", help="system message")
    _add_sampling(chat, max_tokens=512, temperature=0.7)
    add_options(chat, omit=tuple(name for name in OFFLINE_OMITS if name != "api_key"))
    chat.set_defaults(run=_chat)

    bench = commands.add_parser("bench", description=BENCH, help="measure this engine here")
    _add_model_argument(bench)
    bench.add_argument("--only", help="which of a,b,c,d to run (default all)", default="a,b,c,d")
    bench.add_argument("--profile", action="store_true", help="time single steps op by op instead (CPU)")
    bench.add_argument("--json", metavar="FILE", type=Path, help="write the rows here, too")
    add_options(bench, omit=OFFLINE_OMITS)
    bench.set_defaults(run=_bench)

    graph = commands.add_parser("graph", description=GRAPH, help="show what one step computes")
    graph.add_argument("model", nargs="?", default="default", help="as for serve (default: default)")
    graph.add_argument("--pass", dest="only", metavar="NAME", help="print the graph after this pass only")
    graph.add_argument("--full", action="store_true", help="every node, not one layer's")
    graph.set_defaults(run=_graph)

    program = commands.add_parser("program", description=PROGRAM, help="show a structured program")
    program.add_argument("action", choices=("show",), metavar="show")
    program.add_argument("file", metavar="FILE", help="a .py file with a @program function, or the IR as .json")
    program.add_argument("--name", help="which of the file's programs")
    program.add_argument("--pass", dest="only", metavar="NAME", help="print the program after this pass only")
    program.add_argument("--format", choices=("text", "mermaid", "svg", "json"), default="text", metavar="FORM",
                         help="text (default), mermaid, svg or json")  # fmt: skip
    program.set_defaults(run=_program)

    simulate = commands.add_parser("simulate", description=SIMULATE, help="what a fleet would do with a trace")
    _add_simulation(simulate)
    simulate.set_defaults(run=_simulate)

    models = commands.add_parser("models", description=MODELS, help="list or fetch models")
    models.add_argument("action", nargs="?", choices=("list", "fetch"), default="list", metavar="list|fetch")
    models.add_argument("name", nargs="?", default="default", help="what to fetch (default: default)")
    models.set_defaults(run=_models)
    return top


class TeachingParser(argparse.ArgumentParser):
    """Keeps the line breaks of examples in descriptions, and takes no abbreviations. Its subcommands do the same."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="the same as --model MODEL")


def _add_sampling(parser: argparse.ArgumentParser, *, max_tokens: int, temperature: float) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help=f"default {max_tokens}")
    group.add_argument(
        "--temperature", type=float, default=temperature, metavar="X", help=f"0 is greedy; default {temperature:g}"
    )
    group.add_argument("--top-p", type=float, default=1.0, metavar="X", help="nucleus; default 1, off")
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="default 0, off")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end here; may be given again")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("phloem")
    except PackageNotFoundError:
        return "(not installed)"


def _take_model_argument(arguments: argparse.Namespace) -> None:
    """`phloem serve MODEL` is `phloem serve --model MODEL`; both at once must agree."""
    if arguments.model_argument is None:
        return
    if vars(arguments).setdefault("model", arguments.model_argument) != arguments.model_argument:
        raise ConfigError("MODEL is given twice, as an argument and as --model; give it once", field="model")


def _serve(arguments: argparse.Namespace) -> int:
    from phloem.launch import options, serve

    _take_model_argument(arguments)
    resolved = options.resolve_options(arguments)
    if resolved.config.cluster == "ray":
        from phloem.launch.cluster import serve_cluster

        return serve_cluster(resolved.config)
    return serve.serve(resolved)


def _add_router(commands: argparse._SubParsersAction[TeachingParser]) -> None:
    from phloem.launch.router_options import add_arguments

    router = commands.add_parser("router", description=ROUTER, help="one address in front of several replicas")
    add_arguments(router)
    router.set_defaults(run=_route)


def _route(arguments: argparse.Namespace) -> int:
    from phloem.launch import router

    return router.route(arguments)


def _generate(arguments: argparse.Namespace) -> int:
    from phloem.launch import terminal

    return terminal.generate(arguments)


def _chat(arguments: argparse.Namespace) -> int:
    from phloem.launch import terminal

    _take_model_argument(arguments)
    return terminal.chat(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from phloem.launch import bench

    _take_model_argument(arguments)
    return bench.bench(arguments)


def _graph(arguments: argparse.Namespace) -> int:
    from phloem.launch import show

    return show.graph(arguments.model, only=arguments.only, full=arguments.full)


def _program(arguments: argparse.Namespace) -> int:
    from phloem.launch import program_file

    return program_file.show(arguments.file, name=arguments.name, only=arguments.only, form=arguments.format)


def _add_simulation(parser: argparse.ArgumentParser) -> None:
    from phloem.launch.simulate_options import add_arguments

    add_arguments(parser)


def _simulate(arguments: argparse.Namespace) -> int:
    from phloem.launch import simulate

    return simulate.run(arguments)


def _models(arguments: argparse.Namespace) -> int:
    from phloem.launch import show

    return show.fetch(arguments.name) if arguments.action == "fetch" else show.list_models()
