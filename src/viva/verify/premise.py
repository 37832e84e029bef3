"""False premises: what the question says is gone must be gone."""

from __future__ import annotations

from viva.index.facts import CLASS
from viva.index.resolve import Resolver


def present(name: str, resolver: Resolver) -> str | None:
    """Where the source has an identifier, `Class.member`, file, module or flag; None if nowhere."""
    store = resolver.store
    if "/" in name or name.endswith(".py"):
        found = [
            path for path in store.paths() if path == name or path.endswith(f"/{name}") or path.startswith(f"{name}/")
        ]
        return found[0] if found else None
    if name.startswith("--"):
        field = name.removeprefix("--").replace("-", "_")
        fields = store.fields_named(field)
        return "a string of the source" if name in store.all_strings() else fields[0].file if fields else None
    owner, _, last = name.rpartition(".")
    if owner:
        return _present_member(owner, last, resolver)
    files = store.files_with_name([name])[name]
    if files:
        return files[0]
    return "a string of the source" if name in store.all_strings() else None


def _present_member(owner: str, last: str, resolver: Resolver) -> str | None:
    found = resolver.find(f"{owner}.{last}")
    if found:
        return f"{found[0].file}:{found[0].line}"
    for symbol in resolver.find(owner):
        if symbol.kind == CLASS and last in resolver.members(symbol):
            return f"{symbol.file}:{symbol.line}"
    module = resolver.module_file(owner)
    if module is not None and last in resolver.store.names(module):
        return module
    module = resolver.module_file(f"{owner}.{last}")
    return module
