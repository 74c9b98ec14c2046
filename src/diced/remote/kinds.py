"""Arrays of a server that hold no voxels: what they share, and how DVID's API creates them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from diced import grid
from diced.errors import InvalidError, UnsupportedError
from diced.remote.array import RemoteHandle, RemoteInstance
from diced.roi import BLOCK

T = TypeVar("T")


class RemoteKind(RemoteHandle):
    """An array without voxels, at the version that its repo object is at."""

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<{type(self).__name__} {self.name!r} at {state} version {self._repo.uuid[:12]}>"

    def _named(self, operation: str) -> dict[str, str]:
        """Return the query that names a commit; only our server records it."""
        return {"operation": operation} if self._repo.store.ours else {}


class OtherInstance(RemoteInstance):
    """An instance of a type that this client has no methods for."""

    def __repr__(self) -> str:
        return f"<RemoteInstance {self.name!r} {self.kind} at {self._repo.uuid[:12]}>"

    def __getattr__(self, name: str) -> Any:
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        spec = self.__dict__.get("_spec")
        if spec is not None and not name.startswith("_"):
            text += (
                f": {spec.name!r} is of DVID's type {spec.kind!r}, which only requests to"
                f" node/{self._repo.uuid}/{spec.name}/ reach"
            )
        raise AttributeError(text)


def settings_of(name: str, kind: str, options: Mapping[str, Any], attrs: Any) -> dict[str, Any]:
    """Return the settings that create an array without voxels on any DVID server.

    Parameters
    ----------
    name, kind : str
    options : mapping
        Of ``create_array``.
    attrs : mapping
        Its attributes: ``tiles`` tells what tiles are made of.

    Raises
    ------
    InvalidError
    UnsupportedError
        DVID has no such tiles.
    """
    settings: dict[str, Any] = {"typename": kind}
    if kind == "roi":
        given = options.get("block_shape")
        shape = grid.check_block_shape(BLOCK if given is None else given, 3)
        settings["BlockSize"] = ",".join(str(each) for each in reversed(shape))
    if kind == "imagetile":
        tiles = attrs.get("tiles", {})
        if not isinstance(tiles, dict):
            raise InvalidError(f"array {name!r}: 'tiles' is an object; got {tiles!r:.80}")
        if tiles.get("origin") and tiles["origin"] != [0, 0, 0]:
            raise UnsupportedError(
                f"array {name!r}: DVID's tiles begin at coordinate 0; got origin"
                f" {tiles['origin']!r:.80}"
            )
        for key in ("format", "source", "quality", "placeholder"):
            if tiles.get(key):
                text = str(tiles[key])
                settings[key.capitalize()] = text if key == "source" else text.lower()
    return settings
