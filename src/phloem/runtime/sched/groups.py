"""Which running rows share their first pages, so that attention reads those once for all of them.

Rows join when they hold enough pages and leave when they end; only then is their family grouped anew. A family is the
rows that have the same page in place MIN_SHARED_PAGES - 1: whoever shares fewer pages is not worth a group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from phloem.core.plan import SharedPrefix

MIN_SHARED_PAGES = 8


class SharedPrefixes:
    """Disjoint groups of rows, chosen family by family to save page reads: a family as a whole, or its branches."""

    def __init__(self) -> None:
        self._families: dict[int, dict[int, Sequence[int]]] = {}  # page -> row -> the row's block table (live)
        self._family_of: dict[int, int] = {}
        self._groups: dict[int, list[SharedPrefix]] = {}  # page -> the family's groups
        self._stale: dict[int, None] = {}  # families to group anew, in order

    def join(self, row: int, pages: Sequence[int]) -> None:
        """A row holds at least MIN_SHARED_PAGES pages now."""
        page = pages[MIN_SHARED_PAGES - 1]
        self._family_of[row] = page
        self._families.setdefault(page, {})[row] = pages
        self._stale[page] = None

    def leave(self, row: int) -> None:
        """A row ended. Rows that never joined are ignored."""
        page = self._family_of.pop(row, None)
        if page is not None:
            del self._families[page][row]
            self._stale[page] = None

    def groups(self, rows: Collection[int]) -> tuple[SharedPrefix, ...]:
        """The groups among the rows of a step."""
        for page in self._stale:
            self._regroup(page)
        self._stale.clear()
        found = [group for groups in self._groups.values() for group in groups]
        if found and not self._family_of.keys() <= (present := frozenset(rows)):
            found = _restrict(found, present)
        return tuple(found)

    def _regroup(self, page: int) -> None:
        family = self._families[page]
        if groups := _divide(sorted(family), family, 0):
            self._groups[page] = groups
        else:
            self._groups.pop(page, None)
        if not family:
            del self._families[page]


def _restrict(groups: list[SharedPrefix], rows: frozenset[int]) -> list[SharedPrefix]:
    kept = [SharedPrefix(tuple(row for row in group.rows if row in rows), group.num_pages) for group in groups]
    return [group for group in kept if len(group.rows) > 1]


def _divide(rows: list[int], tables: dict[int, Sequence[int]], num_known: int) -> list[SharedPrefix]:
    """Groups among rows known to share `num_known` pages: all of them, or, if that saves more reads, their branches."""
    if len(rows) < 2:
        return []
    first = tables[rows[0]]
    num_pages = len(first)
    for row in rows[1:]:
        num_pages = _num_common(first, tables[row], num_known, num_pages)
    branches: dict[int, list[int]] = {}
    for row in rows:
        if len(tables[row]) > num_pages:
            branches.setdefault(tables[row][num_pages], []).append(row)
    parts = [group for branch in branches.values() for group in _divide(branch, tables, num_pages + 1)]
    whole = SharedPrefix(tuple(rows), num_pages)
    return [whole] if num_pages >= MIN_SHARED_PAGES and _saved(whole) >= sum(map(_saved, parts)) else parts


def _num_common(left: Sequence[int], right: Sequence[int], low: int, high: int) -> int:
    """Leading pages two block tables share: known to be at least `low`, wanted up to `high`."""
    high = min(high, len(right))
    if left[low:high] == right[low:high]:
        return high
    return next(place for place in range(low, high) if left[place] != right[place])


def _saved(group: SharedPrefix) -> int:
    return (len(group.rows) - 1) * group.num_pages
