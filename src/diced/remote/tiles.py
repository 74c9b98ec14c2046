"""Tiles of a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from diced import pool
from diced.errors import EngineError, InvalidError, UnsupportedError
from diced.remote.files import RemoteFiles, as_bytes
from diced.remote.http import Reply, spell
from diced.spec import check_text
from diced.tilemaker import check_scales, plane_of, tile_key
from diced.tiles import ATTRIBUTE, TileArray

ENCODINGS = ("lz4", "png", "jpg")  # by DVID's numbers


class RemoteTiles(RemoteFiles, TileArray):
    """Tiles on a server, at the version that its repo object is at.

    All is as of `TileArray`. What is made of the source is made here, of voxels that are read over
    the network: for a large source the server's command ``generate`` is faster. While `generate`
    runs at an open version, the source is read as it is at each moment.

    On other servers than ours tiles go by plane, scale and place only, and the format ``lz4`` is
    read as PNG and cannot be written.
    """

    def __repr__(self) -> str:
        state = "locked" if self.locked else "open"
        return f"<RemoteTiles {self.name!r} at {state} version {self._repo.uuid[:12]}>"

    # -- description -----------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return what the tiles are made of: source, format, quality, size, origin, levels."""
        found: dict[str, Any] = self.attrs.get(ATTRIBUTE, {})
        return found if self._repo.store.ours else {**found, **self._settings_of_dvid()}

    def _settings_of_dvid(self) -> dict[str, Any]:
        info = self._repo._info(self.name)
        try:
            given = info["Extended"]
            found = {
                "source": given["Source"], "format": ENCODINGS[given["Encoding"]],
                "placeholder": given["Placeholder"],
            }  # fmt: skip
            levels = given.get("Levels") or {}
            if levels:
                pairs = [levels[str(number)] for number in range(len(levels))]
                found["levels"] = [[p["Resolution"][::-1], p["TileSize"][::-1]] for p in pairs]
                found["min"] = given["MinTileCoord"][::-1]
                found["max"] = given["MaxTileCoord"][::-1]
            if given.get("Quality"):
                found["quality"] = int(given["Quality"])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise EngineError(
                f"the server's JSON of data {self.name!r} is not DVID's: {error!r}"
            ) from None
        return found

    def set_scales(
        self,
        levels: Sequence[tuple[Sequence[Any], Sequence[Any]]],
        low: Sequence[int] | None = None,
        high: Sequence[int] | None = None,
        origin: Sequence[int] | None = None,
    ) -> None:
        """Set resolution and tile size of each scale; as `TileArray.set_scales`.

        Raises
        ------
        UnsupportedError
            On other servers than ours tiles begin at coordinate 0.
        """
        if self._repo.store.ours:
            super().set_scales(levels, low, high, origin)
            return
        scales = check_scales(levels)
        self._repo._check_writable()
        if origin is not None and any(origin):
            raise UnsupportedError(
                f"array {self.name!r}: DVID's tiles begin at coordinate 0; got origin {origin}"
            )
        known = self.settings()
        corners = [
            list(given if given is not None else known.get(name, (0, 0, 0)))[::-1]
            for name, given in (("min", low), ("max", high))
        ]
        fields = {
            "MinTileCoord": corners[0], "MaxTileCoord": corners[1],
            "Levels": {
                str(number): {"Resolution": each.resolution[::-1], "TileSize": each.size[::-1]}
                for number, each in enumerate(scales)
            },
        }  # fmt: skip
        path = spell("node", self._repo.uuid, self.name, "metadata")
        self._change(lambda: self._repo.store.server.post_json(path, fields))

    def _steady(self, source: Any) -> Any:
        self._check_open()
        return source.snapshot() if source.locked else source._bound()

    # -- tiles by their keys ---------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """Return the bytes of a tile by its key, such as ``xy/0/10_20_0``, or `default`."""
        pieces = _pieces(key)
        if not key or (self._repo.store.ours and pieces is None):
            return super().get(key, default)
        self._key(key)
        if self._repo.store.ours and pieces is not None:
            reply = self._ask("GET", "key", *pieces, wanted=(200, 404))
            return reply.body if reply.status == 200 else default
        try:
            reply = self._tile("GET", key, query={"noblanks": "true"}, wanted=(200, 404))
        except InvalidError:
            if self.settings().get("levels"):
                raise
            return default  # DVID has no tiles before it has scales
        return reply.body if reply.status == 200 else default

    def __contains__(self, key: object) -> bool:
        if self._repo.store.ours or not isinstance(key, str) or not key:
            return super().__contains__(key)
        return self.get(key) is not None

    def sizes(self, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
        """Yield (key, bytes of its value or None) in the order of `names`."""
        if self._repo.store.ours:
            yield from super().sizes(names)
            return
        for name, value in self.get_many(names):
            yield name, None if value is None else len(value)

    def put_many(self, values: Mapping[str, bytes | str], *, operation: str = "put") -> None:
        """Store several tiles by their keys: one commit on our server, else one by one."""
        if self._repo.store.ours:
            super().put_many(values, operation=operation)
            return
        self._repo._check_writable(self._spec)
        if not isinstance(values, Mapping):
            raise InvalidError(f"put_many takes a mapping; got {type(values).__name__}")
        check_text(f"{self.name!r}: the operation", operation)
        data = {key: as_bytes(value) for key, value in values.items() if self._key(key)}
        if not data:
            return
        if self.format == "lz4":
            raise UnsupportedError(
                f"array {self.name!r}: over DVID's API no tiles of the format lz4 are written"
            )

        def send(each: tuple[str, bytes]) -> None:
            self._change(lambda: self._tile("POST", each[0], body=each[1]))

        for _each in pool.map_ordered(send, list(data.items()), self._repo.store.threads):
            pass

    def __delitem__(self, key: str) -> None:
        if not self._repo.store.ours:
            self._refuse_keys()
        super().__delitem__(key)

    def delete_many(self, names: list[str], *, operation: str = "delete") -> None:
        """Delete several tiles by their keys, which only our server can."""
        if not self._repo.store.ours:
            self._refuse_keys()
        super().delete_many(names, operation=operation)

    def _names(self, low: str, prefix: str) -> list[str]:
        if not self._repo.store.ours:
            self._refuse_keys()
        return super()._names(low, prefix)

    def _refuse_keys(self) -> None:
        raise UnsupportedError(
            f"array {self.name!r}: DVID's API stores and reads tiles, and neither lists nor deletes"
            " them"
        )

    def _tile(self, method: str, key: str, **more: Any) -> Reply:
        """Ask for a tile by its key."""
        pieces = _pieces(key)
        if pieces is None:
            raise UnsupportedError(
                f"array {self.name!r}: what DVID's API stores here are tiles, by keys such as"
                f" xy/0/10_20_0; got {key!r:.80}"
            )
        return self._ask(method, "tile", *pieces, **more)


def _pieces(key: Any) -> tuple[str, ...] | None:
    """Return plane, scale and place of a tile's key, or None if it is none."""
    pieces = tuple(key.split("/")) if isinstance(key, str) else ()
    try:
        plane, scale, place = pieces
        name = tile_key(plane_of(plane), int(scale), [int(n) for n in place.split("_")][::-1])
    except ValueError:
        return None
    return pieces if name == key else None
