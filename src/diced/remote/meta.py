"""What a repo keeps in its instance ``.meta``, as the first DICED has it, on any DVID server.

``restrictions`` is a JSON list of names that are not listed, ``instance:<name>:<DataUUID>`` tells
the dimensions of an array that is a volume of one voxel's thickness to the server, and
``attributes:<name>:<DataUUID>`` holds the attributes of an array.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diced.attrs import Attributes, check_json
from diced.errors import CorruptError, NotFoundError
from diced.remote.http import spell
from diced.repo import META, RESTRICTIONS
from diced.spec import ArraySpec

if TYPE_CHECKING:
    from diced.remote.repo import RemoteRepo


def read(repo: RemoteRepo, key: str) -> bytes | None:
    """Return a value, or None."""
    path = spell("node", repo.uuid, META, "key", key)
    try:
        reply = repo.store.server.ask("GET", path, wanted=(200, 404))
    except NotFoundError:  # there is no .meta
        return None
    return reply.body if reply.status == 200 else None


def write(repo: RemoteRepo, key: str, value: bytes) -> None:
    """Store a value, in an instance that is created for it if need be."""
    repo._create_keyvalue(META)
    repo._handle(repo._info(META))[key] = value


def hidden_names(repo: RemoteRepo) -> set[str]:
    """Return the names that are not listed.

    Raises
    ------
    CorruptError
    """
    text = read(repo, RESTRICTIONS)
    try:
        return set(json.loads(text)) if text else set()
    except (ValueError, TypeError):
        raise CorruptError(f"{META}/{RESTRICTIONS} is not a JSON list of names") from None


def numdims(repo: RemoteRepo, name: str, identity: str) -> int:
    """Return how many dimensions an array has to those who made it.

    Raises
    ------
    CorruptError
    """
    text = read(repo, _dims_key(name, identity))
    try:
        number = 3 if text is None else int(json.loads(text)["numdims"])
    except (ValueError, KeyError, TypeError):
        number = 0
    if not 1 <= number <= 3:
        raise CorruptError(f"{META}: the dimensions of {name!r} are {text!r:.80}")
    return number


def set_numdims(repo: RemoteRepo, name: str, identity: str, dims: int) -> None:
    """Tell how many dimensions an array has."""
    write(repo, _dims_key(name, identity), json.dumps({"numdims": dims}).encode())


def attributes(repo: RemoteRepo, array: ArraySpec) -> Attributes:
    """Return an array's attributes: those of the repo's version, which must be open to change."""
    key = f"attributes:{array.name}:{array.id}"
    what = f"array {array.name!r}"

    def load() -> dict[str, Any]:
        text = read(repo, key)
        try:
            found = {} if text is None else json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CorruptError(f"{META}/{key} is not a JSON object")
        return found

    def edit(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        repo._check_writable()
        write(repo, key, check_json(what, change(load())))

    return Attributes(what, load, edit)


def _dims_key(name: str, identity: str) -> str:
    return f"instance:{name}:{identity}"
