"""Configuration is resolved once: defaults, then a file, then flags; each value remembers where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from phloem.core.config import Config
from phloem.core.errors import ConfigError

Source = Literal["default", "file", "flag", "derived"]


class Resolved(msgspec.Struct, frozen=True):
    """A configuration and the source of each of its values."""

    config: Config
    sources: dict[str, Source]

    def derive(self, **values: Any) -> Resolved:
        """The same with values that were computed (a measured size, a chosen device), checked like any other."""
        sources: dict[str, Source] = dict.fromkeys(values, "derived")
        merged = {name: getattr(self.config, name) for name in Config.__struct_fields__} | values
        return Resolved(config=_convert(merged), sources={**self.sources, **sources})


def resolve(*, file: Mapping[str, Any] | None = None, flags: Mapping[str, Any] | None = None) -> Resolved:
    """Merge the layers, later ones winning. Unknown keys and values out of range: ConfigError naming the option."""
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(Config.__struct_fields__, "default")
    layers: tuple[tuple[Source, Mapping[str, Any]], ...] = (("file", file or {}), ("flag", flags or {}))
    for source, layer in layers:
        for name, value in layer.items():
            if name not in sources:
                raise ConfigError(f"unknown option {name!r} from the {source}", field=name)
            values[name] = value
            sources[name] = source
    return Resolved(config=_convert(values), sources=sources)


def _convert(values: Mapping[str, Any]) -> Config:
    try:
        return msgspec.convert(dict(values), Config)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        if field is None:
            raise ConfigError(reason) from error
        if choices := get_args(get_type_hints(Config)[field]):
            reason = f"{reason}; choose from {', '.join(map(str, choices))}" if "enum" in reason else reason
        raise ConfigError(f"option {field}: {reason} (given: {values[field]!r})", field=field) from error
