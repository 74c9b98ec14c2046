"""Assignments that become one commit, if one request can hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diced import grid
from diced.errors import UnsupportedError
from diced.grid import Box
from diced.pending import Assignment
from diced.remote.boxes import lay

if TYPE_CHECKING:
    from diced.remote.voxels import Voxels


class Batch:
    """Assignments that wait to become one; the part of `pending.Pending` that reading needs.

    Parameters
    ----------
    voxels : Voxels
    """

    def __init__(self, voxels: Voxels):
        self.voxels = voxels
        self.box: Box | None = None
        self._todo: list[Assignment] = []

    def assign(self, todo: Assignment) -> None:
        """Add an assignment; its values are copied."""
        spec = self.voxels.spec
        values = np.array(todo.source, spec.dtype)
        self._todo.append(Assignment(todo.lo, todo.hi, todo.step, values, todo.channel))
        self.box = grid.union(self.box, (todo.lo, todo.hi))

    def overlay(self, lo: Sequence[int], hi: Sequence[int], out: np.ndarray) -> None:
        """Write what waits inside a box over `out`."""
        for each in self._todo:
            lay(each, (tuple(lo), tuple(hi)), out)

    def send(self, operation: str) -> None:
        """Write all: by one commit of our server, and elsewhere by one request.

        Raises
        ------
        UnsupportedError
            One request cannot hold them; nothing was written.
        """
        if self.voxels.commits and (len(self._todo) != 1 or not self._todo[0].dense):
            self.voxels.operation = operation
            self.voxels.commit(self._todo)
        else:
            self.voxels.write([self.joined()], whole=True, operation=operation)

    def joined(self) -> Assignment:
        """Return one dense assignment of all.

        Raises
        ------
        UnsupportedError
            They leave gaps in the box around them: that would be several requests, each of them a
            commit of its own.
        """
        assert self.box is not None
        if len(self._todo) == 1:
            return self._todo[0]
        lo, hi = self.box
        spec = self.voxels.spec
        shape = tuple(b - a for a, b in zip(lo, hi, strict=True))
        shape += () if spec.channels is None else (spec.channels,)
        if sum(each.source.size for each in self._todo) < math.prod(shape):
            raise self._gaps()
        values, seen = np.empty(shape, spec.dtype), np.zeros(shape, np.bool_)
        for each in self._todo:
            lay(each, self.box, values)
            lay(Assignment(each.lo, each.hi, each.step, np.broadcast_to(True, each.source.shape),
                           each.channel), self.box, seen)  # fmt: skip
        if not seen.all():
            raise self._gaps()
        return Assignment(lo, hi, (1,) * len(lo), values)

    def _gaps(self) -> UnsupportedError:
        return UnsupportedError(
            f"array {self.voxels.spec.name!r}: over DVID's API a batch must fill one box, which is"
            f" one request; the assignments leave gaps in {self.box}. Nothing was written"
        )
