"""Tracing: a model's forward, run once on proxies, becomes a graph with every layer unrolled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from phloem.graph.ir import GraphError, Stage
from phloem.graph.weights import WeightRecipe


def trace(module: nn.Module, recipes: Mapping[str, WeightRecipe]) -> Stage:
    """The stage "trace" of a module on the meta device whose forward takes `token_ids` and `positions`.

    `recipes` has one entry for each parameter and buffer, by its dotted name; tied ones go by their first name.
    """
    try:
        graph = _Tracer(module).trace(module)
    except fx.proxy.TraceError as error:
        raise GraphError(f"{type(module).__name__} cannot be traced: {error}") from error
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return Stage("trace", graph, {name: recipe for name, recipe in recipes.items() if name in used})


class _Tracer(fx.Tracer):
    """Walks into every module and records each parameter once, under the first of its names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        named = [*module.named_parameters(), *module.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not isinstance(attr_val, torch.Tensor):
            return attr_val
        name = self._names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]
