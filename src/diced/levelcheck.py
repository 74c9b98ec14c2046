"""Checking what a level of a pyramid holds of versions: trees that only its own entries name."""

from __future__ import annotations

from collections.abc import Iterator

from diced import index, keys
from diced.log import Entry
from diced.pyramid import NOTHING, Stored
from diced.report import Report
from diced.state import Base
from diced.walk import PageDamage, Pages


class LevelCheck:
    """The check of one level.

    Parameters
    ----------
    pages : Pages
    report : Report
    where : str
        What messages call it.
    """

    def __init__(self, pages: Pages, report: Report, where: str):
        self._pages = pages
        self._report = report
        self._where = where
        self._last = NOTHING  # whose tree was sound

    def blocks(self, entry: Entry, source: str) -> Iterator[tuple[bytes, Entry]]:
        """Check the trees of one version; yield the blocks that no earlier one had.

        Damage makes warnings: all that is lost can be computed.

        Raises
        ------
        CorruptError
            The entry itself is damaged.
        """
        stored = Stored.decode(entry, source)
        damage: list[PageDamage] = []
        roots = (stored.tree, stored.included)
        sound = [
            self._pages.verify(Base({} if root is None else {0: root}), damage) for root in roots
        ]
        for each in damage:
            pack = keys.pack(self._pages.home.prefix, each.pointer[0])
            self._report.warning(
                "bad-pyramid",
                self._where,
                f"a page of {source}, in {pack}: {each.error}; reads compute what is behind it,"
                " and updating the pyramid makes it anew",
            )
        if sound[0]:
            for key, _, new in index.diff(self._pages.home.load, self._last.tree, stored.tree):
                if new is not None:
                    yield key, new
            self._last = stored
