"""What arrays offer of their pyramids; the work is in `multiscale`, reached by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diced import registry

if TYPE_CHECKING:
    from diced.multiscale import Pyramid


class Scaled:
    """An array with levels of half the resolution, a quarter, and so on."""

    def pyramid(
        self, levels: int | None = None, *, axes: Any = None, method: str | None = None
    ) -> Pyramid:
        """Return the array's pyramid: a sequence whose level 0 is the array itself.

        Nothing is stored by this. What is not stored is computed whenever it is read, so that a
        level is always that of the array's state; see `update_pyramid`.

        Parameters
        ----------
        levels : int, optional
            How many besides level 0. By default those that are stored, and if there are none, as
            many as make the array one block.
        axes : sequence of int or ``"isotropic"``, optional
            Axes to halve, all by default; ``"isotropic"`` leaves out those whose voxels are at
            least twice as long as the shortest. What is stored stays as it is.
        method : str, optional
            ``mean``, ``mode`` (the commonest label that is not 0) or ``nearest``; for labels
            ``mode`` by default, for images ``mean``.

        Raises
        ------
        InvalidError
            Not possible for this array, or not how its stored pyramid was made.
        """
        view: Any = registry.lookup("kind", "pyramid")
        found: Pyramid = view.pyramid_of(self, levels, axes, method)
        return found

    def level(self, number: int) -> Any:
        """Return a level of the pyramid, read-only; 0 is the array itself."""
        return self.pyramid(number or None)[number]

    def update_pyramid(
        self,
        levels: int | None = None,
        *,
        axes: Any = None,
        method: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Store what the pyramid lacks of this version, locked or open.

        Writers need not wait for it, several processes may do it at once, and it may be stopped
        and repeated at any time. Memory is bounded.

        Parameters
        ----------
        levels, axes, method : optional
            As of `pyramid`.
        progress : callable, optional
            Called with the level and the number of its blocks that were computed, now and then.

        Returns
        -------
        int
            Blocks computed.

        Raises
        ------
        InvalidError, ReadOnlyError
        """
        return self.pyramid(levels, axes=axes, method=method).update(progress)
