"""What a check or a rebuild of a store found, and what it advises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diced.errors import AccessError, EngineError, UnsupportedError

REBUILD = "run 'diced fsck --rebuild'"
RESTORE = "restore {} from a copy"
REWRITE = "or write the blocks again at an open version"
REWRITE_VALUE = "write it again at an open version"
# Kinds of findings that say what could not be looked at, not what is damaged.
UNCHECKED = ("unsupported", "access", "medium")

Progress = Callable[[str], None]


class Problem(NamedTuple):
    """One finding: severity is ``error`` or ``warning``, `kind` a fixed word.

    `where` is the place (repo, array, version) and `message` what is wrong there, without it.
    """

    severity: str
    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message}"


def obstacle(error: Exception) -> str | None:
    """Return the kind of what keeps bytes from being checked, or None if they are damaged."""
    if isinstance(error, UnsupportedError):
        return "unsupported"
    if isinstance(error, AccessError):
        return "access"
    return "medium" if isinstance(error, EngineError) else None


class Report:
    """What a check or rebuild found.

    Attributes
    ----------
    problems : list of Problem
    counts : dict of str to int
        How much was looked at or written.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.counts: dict[str, int] = {}
        self._once: set[Problem] = set()

    @property
    def ok(self) -> bool:
        """True without errors; warnings are allowed."""
        return not any(each.severity == "error" for each in self.problems)

    def error(self, kind: str, where: str, message: str) -> None:
        """Add a finding that means lost or unreadable data, or a broken rule."""
        self.problems.append(Problem("error", kind, where, message))

    def damage(self, kind: str, where: str, what: str, error: Exception, advice: str) -> None:
        """Add that `what` does not read: as damage, or as not checked if nothing says that."""
        other = obstacle(error)
        if other is None:
            self.error(kind, where, f"{what} is damaged ({error}); {advice}")
        else:
            self.unchecked(other, where, f"{what} cannot be checked: {error}")

    def unchecked(self, kind: str, where: str, message: str) -> None:
        """Add what keeps something from being checked, once however much it concerns."""
        problem = Problem("error", kind, where, message)
        if problem not in self._once:
            self._once.add(problem)
            self.problems.append(problem)

    def warning(self, kind: str, where: str, message: str) -> None:
        """Add a finding that costs space or attention only."""
        self.problems.append(Problem("warning", kind, where, message))

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[what] = self.counts.get(what, 0) + number

    def __repr__(self) -> str:
        errors = sum(each.severity == "error" for each in self.problems)
        return f"<Report {errors} errors, {len(self.problems) - errors} warnings, {self.counts}>"
