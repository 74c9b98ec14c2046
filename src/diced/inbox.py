"""The proposals that lie in a bucket for whoever puts the next record of a lane."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from diced import keys, pool
from diced.errors import CorruptError, NotFoundError
from diced.proposal import Part, parts_of
from diced.tidy import delete_later

if TYPE_CHECKING:
    from diced.versioned import Lane

MOST_PROPOSALS = 256  # looked at in one round


class Inbox:
    """The proposals of one lane, as one process sees them; used by one thread at a time.

    Parameters
    ----------
    lane : Lane
    outcomes : mapping
        What is known to have become of transactions, kept by who reads the records.
    """

    def __init__(self, lane: Lane, outcomes: Mapping[str, int]):
        self._lane = lane
        self._outcomes = outcomes
        self._opened: dict[str, list[Part]] = {}  # by key
        self._decided: set[str] = set()  # keys of proposals that need no one any more

    def names(self) -> Iterator[str]:
        """List the keys of all proposals."""
        return iter(self._lane.home.engine.list(keys.proposals(self._lane.log.prefix)))

    def open(self, names: list[str], own: str) -> list[list[Part]]:
        """Return the commits of undecided proposals, reading those that are new.

        Parameters
        ----------
        names : list of str
            The keys that are there.
        own : str
            The key that is not looked at.
        """
        for key in names:
            if self._is_decided(key):
                self._tidy(key)
        wanted = [key for key in names if key != own and not self._is_decided(key)]
        known = self._opened
        self._opened = {key: known[key] for key in wanted if key in known}
        fresh = [key for key in wanted if key not in known][:MOST_PROPOSALS]
        for key, parts in zip(fresh, pool.map_ordered(self._read, fresh, pool.LIMIT), strict=True):
            if parts:
                self._opened[key] = parts
        return list(self._opened.values())

    def forget(self) -> None:
        """Let go of what was decided since."""
        self._opened = {
            key: parts for key, parts in self._opened.items() if not self._is_decided(key)
        }

    def _is_decided(self, key: str) -> bool:
        # A proposal is called after the first commit in it.
        return key.rsplit("/", 1)[1] in self._outcomes

    def _read(self, key: str) -> list[Part]:
        try:
            return list(parts_of(self._lane.home.engine.get(key), key))
        except (NotFoundError, CorruptError):
            return []  # its writer is done with it; or nobody can be, and it stays

    def _tidy(self, key: str) -> None:
        """Remove the proposal of a writer that died, seen decided twice: the living do it."""
        if key in self._decided:
            self._decided.discard(key)
            delete_later(self._lane.home.engine, key)
        elif len(self._decided) < MOST_PROPOSALS:
            self._decided.add(key)
