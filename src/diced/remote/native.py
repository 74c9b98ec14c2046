"""What our own server tells beyond DVID's API: ``diced.server.native``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from diced.attrs import Attributes, check_json
from diced.errors import DicedException, EngineError, InvalidError, NotFoundError
from diced.grid import Box
from diced.remote import meta
from diced.remote.http import Server, spell
from diced.spec import ArraySpec, check_dtype

if TYPE_CHECKING:
    from diced.remote.repo import RemoteRepo


def store_uuid(server: Server) -> str | None:
    """Return the UUID of the store, or None if the server has no such requests."""
    try:
        found = server.get_json("diced")
    except (NotFoundError, InvalidError):
        return None
    return str(found["store"]) if found.get("native") == 1 else None


def create(
    repo: RemoteRepo,
    name: str,
    kind: str,
    versioned: bool,
    options: dict[str, Any],
    attrs: dict[str, Any],
) -> None:
    """Create an array, of any kind, with all options."""
    given = {key: value for key, value in options.items() if value is not None}
    if "dtype" in given:
        given["dtype"] = check_dtype(given["dtype"]).name
    given = {key: _plain(value) for key, value in given.items()}
    fields = {"name": name, "kind": kind, "versioned": versioned, "options": given, "attrs": attrs}
    try:
        json.dumps(fields)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"array {name!r}: an option cannot be sent: {error}") from None
    repo._create_by(spell("repo", repo.uuid, "array"), name, fields)


def _plain(value: Any) -> Any:
    """Return a value without numpy's types."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def describe(repo: RemoteRepo, name: str) -> dict[str, Any]:
    """Return the description of an array."""
    found: dict[str, Any] = repo.store.server.get_json(spell("node", repo.uuid, name, "diced"))
    return found


def spec(repo: RemoteRepo, name: str, wanted: str | None = None) -> ArraySpec:
    """Return the description of an array.

    Parameters
    ----------
    repo : RemoteRepo
    name : str
    wanted : str, optional
        The id that it must have: another one of its name may have been created.
    """
    fields = describe(repo, name)
    try:
        identity = str(fields["id"])
        if wanted is not None and identity != wanted:
            raise NotFoundError(f"array {name!r} was deleted, and another one created")
        fields |= {"node": "", "type": "diced", "attrs": fields.get("attrs") or {}}
        if fields.get("dims") == 3 and fields["block_shape"][0] == 1:
            _reduce(repo, fields)
        return ArraySpec(identity, fields)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DicedException):
            raise
        raise EngineError(
            f"the server's description of {name!r} is not diced's: {error!r}"
        ) from None


def _reduce(repo: RemoteRepo, fields: dict[str, Any]) -> None:
    """Make it of one or two dimensions if a client of the first DICED said that it is."""
    dims = meta.numdims(repo, fields["name"], fields["id"])
    if dims < 3:
        fields["dims"] = dims
        for key in ("block_shape", "voxel_size", "units"):
            fields[key] = fields[key][-dims:]


def box(repo: RemoteRepo, array: ArraySpec) -> Box | None:
    """Return the box of everything written."""
    found = describe(repo, array.name)
    if found["id"] != array.id:
        raise NotFoundError(f"array {array.name!r} was deleted, and another one created")
    if found["box"] is None:
        return None
    lo, hi = (tuple(int(n) for n in each)[-array.dims :] for each in found["box"])
    return lo, hi


def attributes(repo: RemoteRepo, array: ArraySpec) -> Attributes:
    """Return an array's attributes."""
    what = f"array {array.name!r}"

    def read() -> dict[str, Any]:
        return dict(describe(repo, array.name)["attrs"])

    def edit(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        repo._check_writable()
        old = read()
        new = change(dict(old))
        check_json(what, new)
        fields = {
            "set": {key: value for key, value in new.items() if old.get(key, ...) != value},
            "remove": [key for key in old if key not in new],
        }
        repo.store.server.post_json(spell("node", repo.uuid, array.name, "diced"), fields)

    return Attributes(what, read, edit)


def blocks(repo: RemoteRepo, array: ArraySpec) -> Iterator[tuple[int, ...]]:
    """Yield the coordinates of the blocks that are present."""
    path = spell("node", repo.uuid, array.name, "diced", "blocks")
    for each in repo.store.server.get_json(path, list):
        yield tuple(int(number) for number in each)[-array.dims :]


def pyramid(
    repo: RemoteRepo,
    name: str,
    levels: int | None,
    axes: Any,
    method: str | None,
    status: bool,
) -> dict[str, Any]:
    """Return the description of an array's pyramid, with all levels or those that are wanted."""
    found: dict[str, Any] = repo.store.server.get_json(
        spell("node", repo.uuid, name, "diced", "pyramid"), levels=levels, axes=axes_text(axes),
        method=method, status="on" if status else None,
    )  # fmt: skip
    return found


def axes_text(axes: Any) -> str | None:
    """Return the axes of a pyramid as queries have them."""
    return axes if axes is None or isinstance(axes, str) else ",".join(map(str, axes))


def operations(repo: RemoteRepo, array: str | None) -> Iterator[dict[str, Any]]:
    """Yield the commits that led to a version."""
    path = spell("repo", repo.uuid, "operations")
    yield from repo.store.server.get_json(path, list, array=array)
