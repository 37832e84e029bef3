"""Dummy models traced once, and their stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from phloem.graph.compile import compile_graph
from phloem.graph.ir import Stage, StepGraph, target_name
from phloem.models.catalog import define_dummy


@pytest.fixture(scope="session")
def compiled() -> Callable[[str], StepGraph]:
    """The compiled graph of a dummy, made once."""
    made: dict[str, StepGraph] = {}

    def get(name: str) -> StepGraph:
        if name not in made:
            made[name] = compile_graph(define_dummy(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def stage_of(compiled) -> Callable[[str, str], Stage]:
    """One stage of a dummy's compilation, by name."""

    def get(model: str, name: str) -> Stage:
        return next(stage for stage in compiled(model).stages if stage.name == name)

    return get


@pytest.fixture(scope="session")
def count() -> Callable[[Stage], Counter[str]]:
    """How often each op is called in a stage."""

    def ops(stage: Stage) -> Counter[str]:
        return Counter(target_name(node) for node in stage.graph.nodes if node.op == "call_function")

    return ops


@pytest.fixture(scope="session")
def listing() -> Callable[[Stage], list[Any]]:
    """Everything a stage says, for comparing two of them."""

    def lines(stage: Stage) -> list[Any]:
        nodes = [(n.name, n.op, str(n.target), str(n.args), str(n.meta.get("spec"))) for n in stage.graph.nodes]
        return [*nodes, *stage.recipes]

    return lines
