"""Only the rows whose logits are wanted go on after the last attention: everything from there on is row by row."""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import STEP_INPUTS, Stage, add_placeholder, calls, copy_graph, spec_of
from phloem.graph.ops.contract import Spec
from phloem.graph.ops.lowered import paged_attention, select_rows


def select_last_rows(stage: Stage) -> Stage:
    """Cut the graph behind the last paged_attention: each value of T rows that crosses the cut is thinned to L rows."""
    graph = copy_graph(stage.graph)
    logit_rows = add_placeholder(graph, "logit_rows", STEP_INPUTS["logit_rows"])
    nodes = list(graph.nodes)
    cut = nodes.index(list(calls(graph, paged_attention))[-1])
    after = set(nodes[cut + 1 :])
    for node in nodes[: cut + 1]:
        readers = [user for user in node.users if user in after]
        if readers and _has_token_rows(node):
            with graph.inserting_after(nodes[cut]):
                chosen = graph.create_node("call_function", select_rows, (node, logit_rows), name="select_rows")
            for reader in readers:
                reader.replace_input_with(node, chosen)
    for node in after:  # their specs now count L rows: the verifier derives them anew
        node.meta.pop("spec", None)
    return Stage("select_last_rows", graph, stage.recipes)


def _has_token_rows(node: fx.Node) -> bool:
    return isinstance(node.meta["spec"], Spec) and node.op != "placeholder" and spec_of(node).shape[0] == "T"
