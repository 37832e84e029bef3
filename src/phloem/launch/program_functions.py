"""`--program-functions`: what programs may call beyond the built-in functions, named by the operator."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from phloem.core.errors import ConfigError
from phloem.lang.functions import BUILT_IN, Functions
from phloem.launch.modules import load_module

OPTION = "program_functions"


def load_functions(where: str | None) -> Functions:
    """The built-in functions and, from `FILE.py:NAME` or `MODULE:NAME`, those of a mapping from names to functions.
    ConfigError says what is wrong."""
    if where is None:
        return BUILT_IN
    module_name, mark, name = where.rpartition(":")
    if not mark or not module_name or not name.isidentifier():
        raise ConfigError(f"{where!r}: write FILE.py:NAME or MODULE:NAME", field=OPTION)
    module = load_module(module_name, field=OPTION)
    found = vars(module).get(name)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: no mapping from names to functions of that name", field=OPTION)
    for key, function in found.items():
        if not isinstance(key, str) or not key.isidentifier() or not callable(function):
            raise ConfigError(f"{where}: {key!r} is not the name of a function", field=OPTION)
        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"{where}: {key!r} is async; write a plain function", field=OPTION)
        if key in BUILT_IN:
            raise ConfigError(f"{where}: {key!r} is built in; give it another name", field=OPTION)
    return MappingProxyType({**BUILT_IN, **found})
