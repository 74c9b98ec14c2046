"""Blobs: bytes by content, beside the versions; every instance of a repo shows the same ones.

A blob's reference is its 128-bit FNV-1 hash in base64 of URLs. The hash is no protection against
malice, so other bytes of the same hash are refused rather than put in place of the first.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from diced._fnv import fnv128
from diced.errors import AlreadyExistsError, InvalidError
from diced.server.answer import Refused
from diced.server.datatype import ATTRS
from diced.server.routes import Route

if TYPE_CHECKING:
    from diced.repo import DicedRepo
    from diced.server.call import Call
    from diced.server.site import Site

NAME = ".blobs"  # the unversioned keyvalue array of a repo that holds them
MAX_BYTES = 256 * 2**20
_OWN = {"type": "blobstore"}


def reference(data: Any) -> str:
    """Return the reference of a blob."""
    return base64.urlsafe_b64encode(fnv128(data)).decode()


def put(site: Site, repo: DicedRepo, data: Any) -> str:
    """Store a blob in a repo, unless it is there, and return its reference."""
    name = reference(data)
    array = _array(site, repo, create=True)
    known = array.get(name)
    if known is None:
        array.put_many({name: data}, operation="blob")
    elif known != data:
        raise AlreadyExistsError(f"another blob has the reference {name}")
    return name


def get(site: Site, repo: DicedRepo, name: str) -> bytes | None:
    """Return a blob of a repo, or None.

    Raises
    ------
    InvalidError
        The name is no reference.
    """
    try:
        digest = base64.b64decode(name.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        digest = b""
    if len(digest) != 16:
        raise InvalidError(f"a blob's reference is base64 of 16 bytes; got {name!r:.80}")
    array = _array(site, repo)
    if array is None:
        return None
    found: bytes | None = array.get(base64.urlsafe_b64encode(digest).decode())
    return found


def _array(site: Site, repo: DicedRepo, create: bool = False) -> Any:
    """Return what holds a repo's blobs; None if there is nothing yet."""
    view = repo._history.view()
    root = site.lookup.handle(repo._id, view.dag.root.id)
    if NAME not in view.by_name:
        if not create:
            return None
        try:
            return root.create_array(NAME, kind="keyvalue", versioned=False, attrs={ATTRS: _OWN})
        except AlreadyExistsError:  # another call was faster
            pass
    array = root.get_array(NAME)
    if array._spec.fields.get("attrs", {}).get(ATTRS) != _OWN:
        raise InvalidError(f"the array {NAME!r} of this repo is not its blob store")
    return array


def _put(call: Call) -> Any:
    return {"reference": put(call.site, call.node_repo(), call.body)}


def _get(call: Call) -> bytes:
    found = get(call.site, call.node_repo(), call.args["ref"])
    if found is None:
        raise Refused(404, f"no blob {call.args['ref']}\n")
    return found


def routes() -> list[Route]:
    """Return the routes; patterns go on behind the instance's name."""
    return [
        Route(
            "POST", "blobstore", _put,
            'Stores bytes and returns {"reference": ...}, made of what they are.',
            body="any bytes", limit=MAX_BYTES, changes=False,
        ),
        Route("GET", "blobstore/{ref}", _get, "Returns the bytes of a reference; 404 without."),
    ]  # fmt: skip
