"""`phloem graph`: the graph before and after each pass as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from torch import fx

from phloem.core.errors import ConfigError
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.cost import DECODE, PREFILL, Cost, node_cost, total_cost
from phloem.graph.ir import Stage, StepGraph, target_name
from phloem.graph.weights import stored_bytes

LEGEND = """\
decode: 1 new token, the last of 1,024; prefill: 512 new tokens. Bytes: weights as stored, activations and KV cache in
bfloat16. Shapes: T tokens of the step, L tokens that want logits; act is the activation type."""


def show(step: StepGraph, checkpoint: Checkpoint, *, only: str | None = None, full: bool = False) -> str:
    """Each stage's op counts, and its ops for one layer with their cost.

    `full`: every node. `only`: the stage of that name. ConfigError lists the stages when there is none of that name.
    """
    names = [stage.name for stage in step.stages]
    if only is not None and only not in names:
        raise ConfigError(f"there is no pass {only!r}; there are {', '.join(names)}", field="pass")
    stages = [stage for stage in step.stages if only in (None, stage.name)]
    blocks = [LEGEND, *(_describe(stage, checkpoint, full=full) for stage in stages)]
    if only is None:
        blocks.insert(1, _counts(step.stages))
    return "\n\n".join(blocks)


def _counts(stages: tuple[Stage, ...]) -> str:
    """Ops down, stages across."""
    counted = [Counter(_ops(stage.graph)) for stage in stages]
    names = list(dict.fromkeys(name for counts in counted for name in counts))
    rows = [["", *(stage.name for stage in stages)]]
    rows += [[name, *(str(counts[name] or "-") for counts in counted)] for name in names]
    rows.append(["nodes", *(str(len(stage.graph.nodes)) for stage in stages)])
    rows.append(["parameters", *(str(len(stage.recipes)) for stage in stages)])
    return _table(rows)


def _ops(graph: fx.Graph) -> Iterator[str]:
    return (target_name(node) for node in graph.nodes if node.op == "call_function")


def _describe(stage: Stage, checkpoint: Checkpoint, *, full: bool) -> str:
    sizes = {name: stored_bytes(recipe, checkpoint) for name, recipe in stage.recipes.items()}
    nodes = list(stage.graph.nodes) if full else _one_layer(stage.graph)
    rows = [["node", "computes", "result", "decode", "", "prefill", ""]]
    for node in nodes:
        if full or node.op == "call_function":
            costs = [node_cost(node, load, sizes.__getitem__) for load in (DECODE, PREFILL)]
            rows.append([node.name, _expression(node), _result(node), *(text for c in costs for text in _amounts(c))])
    totals = [total_cost(stage.graph, load, sizes.__getitem__) for load in (DECODE, PREFILL)]
    rows.append(["whole step", "", "", *(text for cost in totals for text in _amounts(cost))])
    what = "all nodes" if full else "one layer"
    return f"== {stage.name} ({what}) ==\n{_table(rows)}"


def _one_layer(graph: fx.Graph) -> list[fx.Node]:
    """The nodes of the second layer (or of the only one): from its first parameter to that of the next."""
    layers: dict[int, list[fx.Node]] = {}
    layer = -1
    for node in graph.nodes:
        if node.op == "get_attr":
            match = re.match(r"layers\.(\d+)\.", str(node.target))
            layer = (
                int(match.group(1)) if match else layer if layer < 0 else layer + (str(node.target) == "norm.weight")
            )
        layers.setdefault(layer, []).append(node)
    return layers.get(1) or layers[0]


def _expression(node: fx.Node) -> str:
    """linear(rms_norm_2, mlp.down): what every layer repeats, and what is left at its default, is not said."""
    if node.op != "call_function":
        return node.op if node.op != "get_attr" else str(node.target)
    said = [arg for arg in node.args if arg is not None and arg is not False]
    if target_name(node) == "paged_attention":
        said[2:8] = ["..."]
    return f"{target_name(node)}({', '.join(map(_argument, said))})"


def _argument(arg: object) -> str:
    if isinstance(arg, fx.Node):
        return re.sub(r"^layers\.\d+\.|\.weight$", "", str(arg.target)) if arg.op == "get_attr" else arg.name
    return f"{arg:.4g}" if isinstance(arg, float) else str(arg)


def _result(node: fx.Node) -> str:
    spec = node.meta.get("spec")
    return ", ".join(map(str, spec)) if isinstance(spec, tuple) else str(spec or "")


def _amounts(cost: Cost) -> tuple[str, str]:
    return _scaled(cost.num_bytes, "B"), _scaled(cost.flops, "FLOP")


def _scaled(amount: float, unit: str) -> str:
    """Three digits and a prefix: 98.3 MB."""
    if not amount:
        return ""
    for prefix in ("", "k", "M", "G"):
        if amount < 1000:
            return f"{amount:.3g} {prefix}{unit}"
        amount /= 1000
    return f"{amount:.3g} T{unit}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
