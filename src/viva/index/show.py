"""`viva show`: what an index knows of a symbol."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from viva.index.command import named_store
from viva.index.facts import CLASS, CallFact, FieldFact, Symbol
from viva.index.resolve import Resolver
from viva.place import cache_folder

DESCRIPTION = """\
Show a symbol: definition, fields or callees in order, callers.

  viva show sglang==0.5.23 Scheduler.run_batch
  viva show sglang==0.5.23 sglang/srt/mem_cache/radix_cache.py::TreeNode
  viva show src Scheduler.plan --source            with its lines

`?` before a caller: a call of this name; the source does not say of which object."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="SOURCE", help="PACKAGE==VERSION, a wheel or a folder")
    parser.add_argument("symbol", metavar="SYMBOL", help="Class, Class.method, function, or path.py::qualified.name")
    parser.add_argument("--source", action="store_true", help="print the definition's lines")
    parser.add_argument("--limit", type=int, default=20, help="callers to print (default 20)")


def run(arguments: argparse.Namespace) -> int:
    store = named_store(arguments.what, cache=cache_folder())
    resolver = Resolver(store)
    found = resolver.find(arguments.symbol) or [resolver.find_one(arguments.symbol)]
    for symbol in found:
        print(f"{symbol.kind} {symbol.qualname or symbol.file}{symbol.signature}")
        print(f"  {symbol.file}:{symbol.begin}-{symbol.end}")
        for decorator in symbol.decorators:
            print(f"  @{decorator}")
        if len(found) <= 3:
            print_details(resolver, symbol, limit=arguments.limit)
        if arguments.source:
            lines = store.lines(symbol.file)
            print("\n".join(f"{number:6}  {lines[number - 1]}" for number in range(symbol.begin, symbol.end + 1)))
    return 0


def print_details(resolver: Resolver, symbol: Symbol, *, limit: int) -> None:
    if symbol.kind == CLASS:
        order = " -> ".join(base.qualname for base in resolver.mro(symbol))
        outside = resolver.outside_bases(symbol)
        print(f"  bases: {order}{' -> not in the source: ' + ', '.join(outside) if outside else ''}")
        print(f"  subclasses: {', '.join(item.qualname for item in resolver.subclasses(symbol)) or 'none'}")
        for member in sorted(resolver.members(symbol).values(), key=lambda member: (member.file, member.line)):
            print(f"  {_member(member)}")
    else:
        for call, reached in resolver.callees(symbol):
            where = f"  -> {reached[0].file}:{reached[0].line}" if reached else ""
            print(f"  calls {call.line}: {call.callee}{where}")
    sure, perhaps = resolver.callers(symbol)
    _print_callers(sure, "", limit)
    _print_callers(perhaps, "? ", max(0, limit - len(sure)))


def _member(member: Symbol | FieldFact) -> str:
    if isinstance(member, Symbol):
        return f"{member.kind} {member.name}{member.signature}  {member.file}:{member.line}"
    type_text = f": {member.type}" if member.type else ""
    value = f" = {member.value}" if member.value else ""
    return f"field {member.name}{type_text}{value}  {member.file}:{member.line}"


def _print_callers(calls: Sequence[CallFact], mark: str, limit: int) -> None:
    for call in calls[:limit]:
        print(f"  {mark}called by {call.caller or 'the module'} as {call.callee}  {call.file}:{call.line}")
    if len(calls) > limit:
        print(f"  {mark}called {len(calls) - limit} more times")
