"""Which pyramid of an array, and which of its levels, a request means."""

from __future__ import annotations

from typing import Any

from diced import multiscale
from diced.downsample import MAX_DIMS
from diced.errors import InvalidError
from diced.server.call import Call, whole

# Axes that mean: whatever the stored levels were made of.
AS_STORED = "stored"
ISOTROPIC = "isotropic"

QUERY = {
    "axes": "axes that the levels halve: numbers, Z being 0, such as 1,2, or isotropic; by default"
    " as stored, or else all",
    "method": "how the levels are made: mean, mode or nearest",
}


def pyramid(array: Any, levels: Any, axes: Any, method: Any) -> Any:
    """Return an array's pyramid.

    Parameters
    ----------
    array : DicedArray
    levels, axes, method : Any
        As of `diced.scaled.Scaled.pyramid`, and whatever JSON may hold instead.

    Raises
    ------
    InvalidError
    """
    if axes == AS_STORED:
        axes = None
    elif isinstance(axes, list) and len(axes) > MAX_DIMS:
        raise InvalidError(f"at most {MAX_DIMS} axes are halved; got {len(axes)}")
    elif not (axes is None or axes == ISOTROPIC or isinstance(axes, list)):
        raise InvalidError(f"axes are numbers or {ISOTROPIC!r}; got {axes!r:.60}")
    return array.pyramid(levels, axes=axes, method=method)


def of_query(call: Call, array: Any, levels: int | None) -> Any:
    """Return the pyramid that a query means."""
    text = call.query.get("axes") or None
    axes: Any = text
    if text is not None and text not in (AS_STORED, ISOTROPIC):
        words = text.split(",", MAX_DIMS)
        axes = [whole(each, "each of the query parameter 'axes'") for each in words]
    return pyramid(array, levels, axes, call.query.get("method") or None)


def source(call: Call, array: Any) -> Any:
    """Return the array, or the level of its pyramid that the query asks for."""
    number = call.number("scale", 0)
    if number < 0:
        raise InvalidError(f"data {array.name!r} has no scale {number}; 0 is full detail")
    if not number:
        return array
    if "axes" in call.query or "method" in call.query:
        return of_query(call, array, number)[number]
    return multiscale.level(array, number)
