"""The command line is generated from core.config.Config: one option a field, with its type, bounds and help."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.core.resolve import Resolved, resolve

GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        "model",
        "served_model_name",
        "dtype",
        "quantize",
        "kv_cache_dtype",
        "deterministic",
        "chat_template",
        "tool_format",
        "reasoning_format",
        "max_model_len",
        "seed",
    ),
    "machine": ("device", "threads", "memory_gb", "page_size"),
    "parallelism": ("tp", "ep", "pp", "dp", "router_policy", "nodes", "node_rank", "meet", "role", "kv_port"),
    "cluster": ("cluster", "ray_address", "min_replicas", "max_replicas"),
    "scheduling": ("policy", "max_running", "max_step_tokens", "max_queue", "overlap", "prefix_cache"),
    "server": (
        "host",
        "port",
        "api_key",
        "max_body_mb",
        "program_functions",
        "drain_timeout_s",
        "log_level",
        "max_restarts",
        "record",
    ),
}
"""Where each option stands in `--help`; a test compares it with the fields of Config."""

OFFLINE_OMITS = (
    "served_model_name",
    "tool_format",
    "reasoning_format",
    "max_queue",
    "host",
    "port",
    "api_key",
    "max_body_mb",
    "program_functions",
    "drain_timeout_s",
    "max_restarts",
    "nodes",
    "node_rank",
    "dp",
    "router_policy",
    "meet",
    "role",
    "kv_port",
)
"""Options that mean nothing without a server."""


def add_options(parser: argparse.ArgumentParser, *, omit: tuple[str, ...] = ()) -> None:
    """Give `parser` one flag a field of Config, except `omit`, and `--config FILE`. Only flags that were typed appear
    in the namespace."""
    fields = {field.name: field for field in _struct_info().fields}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            if name not in omit:
                _add_option(group, fields[name])
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file with any of these options; flags win")


def resolve_options(namespace: argparse.Namespace) -> Resolved:
    """Defaults, then the TOML file, then the flags. ConfigError names the option, or the file that cannot be read."""
    flags = {name: value for name, value in vars(namespace).items() if name in Config.__struct_fields__}
    file = None if namespace.config is None else _read_toml(namespace.config)
    try:
        return resolve(file=file, flags=flags)
    except ConfigError as error:
        if error.field in flags or error.field not in (file or {}):
            raise
        raise ConfigError(f"{namespace.config}: {error.message}", field=error.field) from error


def _struct_info() -> inspect.StructType:
    info = inspect.type_info(Config)
    assert isinstance(info, inspect.StructType)
    return info


def _add_option(group: argparse._ArgumentGroup, field: inspect.Field) -> None:
    flag = "--" + field.name.replace("_", "-")
    text, kind = _description(field.type)
    default = "" if field.default in (None, msgspec.NODEFAULT) else f"default {_show(field.default)}"
    if isinstance(kind, inspect.BoolType):
        action = argparse.BooleanOptionalAction
        group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=_help(text, default))
        return
    if isinstance(kind, inspect.LiteralType):
        choices = tuple(str(value) for value in kind.values)
        listed = tuple(sorted(choices, key=lambda choice: choice != field.default))
        metavar = "|".join(listed)
        group.add_argument(flag, choices=choices, metavar=metavar, default=argparse.SUPPRESS, help=_help(text, default))
        return
    parse, metavar = _scalar(kind)
    notes = _help(text, _bounds(kind), default)
    group.add_argument(flag, type=parse, metavar=metavar, default=argparse.SUPPRESS, help=notes)


def _description(kind: inspect.Type) -> tuple[str, inspect.Type]:
    """The help text and the type without its wrappers (annotations, `| None`)."""
    text = ""
    while True:
        if isinstance(kind, inspect.Metadata):
            text = text or str((kind.extra_json_schema or {}).get("description", ""))
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            kind = next(member for member in kind.types if not isinstance(member, inspect.NoneType))
        else:
            return text, kind


def _scalar(kind: inspect.Type) -> tuple[type[int] | type[float] | type[str], str]:
    if isinstance(kind, inspect.IntType):
        return int, "N"
    if isinstance(kind, inspect.FloatType):
        return float, "X"
    return str, "TEXT"


def _bounds(kind: inspect.Type) -> str:
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    limits = ((">=", kind.ge), (">", kind.gt), ("<=", kind.le), ("<", kind.lt))
    return ", ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


def _help(text: str, *notes: str) -> str:
    present = [note for note in notes if note and not (note.startswith("default") and "default" in text)]
    return (f"{text} ({'; '.join(present)})" if present else text).replace("%", "%%")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            values = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not valid TOML: {error}", field="config") from error
    return {name.replace("-", "_"): value for name, value in values.items()}
