"""Metadata lanes as tables of JSON objects, read whole and changed by transactions.

The store's lane and each repo's are small: their entries stay parsed in memory and each newer
record costs only its own changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diced import jsontext
from diced.state import Change, State
from diced.versioned import Lane

# Tables of the store's lane; those of a repo's are in `diced.history`.
REPOS, INFO, DEAD, GONE = 0, 1, 2, 3

Table = dict[bytes, Any]
Tables = dict[int, Table]
# (space, key, new value or None to delete)
Edits = list[tuple[int, bytes, Any]]


class Meta:
    """The tables of one metadata lane.

    Parameters
    ----------
    lane : Lane
    spaces : tuple of int
    """

    def __init__(self, lane: Lane, spaces: tuple[int, ...]):
        self.lane = lane
        self._spaces = spaces
        self._known: tuple[int, Tables] | None = None

    def read(self) -> tuple[int, Tables]:
        """Return (record number, tables) as of now. The tables are shared: do not change them."""
        return self._at(self.lane.refresh())

    def _at(self, state: State) -> tuple[int, Tables]:
        known = self._known
        if known is not None and known[0] == state.number:
            return known
        deltas = None
        if known is not None and known[0] < state.number:
            deltas = self.lane.changes_since(state, known[0])
        if known is None or deltas is None:
            tables = {
                space: {
                    key: jsontext.loads(entry)  # type: ignore[arg-type]
                    for key, entry in self.lane.scan(state, space)
                }
                for space in self._spaces
            }
        else:
            tables = {space: dict(table) for space, table in known[1].items()}
            for delta in deltas:
                for space, changes in delta.items():
                    for key, entry in changes.items():
                        if entry is None:
                            tables[space].pop(key, None)
                        else:
                            tables[space][key] = jsontext.loads(entry)  # type: ignore[arg-type]
        found = (state.number, tables)
        if self._known is None or self._known[0] < state.number:
            self._known = found
        return found

    def transact(self, edit: Callable[[Tables, int], Edits], *, op: str, user: str) -> int:
        """Apply `edit` to the newest tables, atomically; return the record number.

        `edit` gets the tables and the number its record will have, and is run again after a lost
        race, so it must do nothing but decide and raise.
        """

        def prepare(state: State, _touched: Any) -> Change | None:
            number, tables = self._at(state)
            edits = edit(tables, number + 1)
            if not edits:
                return None
            delta: dict[int, dict[bytes, Any]] = {}
            for space, key, value in edits:
                delta.setdefault(space, {})[key] = None if value is None else jsontext.dumps(value)
            return Change(delta)

        return self.lane.commit(prepare, op=op, user=user)
