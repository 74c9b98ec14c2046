"""What handles and snapshots tell of an array: how it was created."""

from __future__ import annotations

from typing import Any

import numpy as np

from diced.spec import ArraySpec


class Described:
    """Something of an array of any kind."""

    _spec: ArraySpec

    @property
    def name(self) -> str:
        """Name, unique in the repo."""
        return self._spec.name

    @property
    def kind(self) -> str:
        """``image``, ``label``, ``keyvalue``, or a kind that a package added."""
        return self._spec.kind


class DescribedVoxels(Described):
    """Something of an array of voxels."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = self._spec.dtype
        return dtype

    @property
    def numdims(self) -> int:
        """Number of spatial dimensions, without channels."""
        return self._spec.dims

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of a block in voxels."""
        return self._spec.block_shape

    @property
    def channels(self) -> int | None:
        """Number of channels, or None."""
        return self._spec.channels

    @property
    def fill(self) -> Any:
        """Value of voxels never written; one per channel if there are channels."""
        return self._spec.fill_value
