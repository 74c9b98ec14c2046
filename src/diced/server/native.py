"""What DVID's API has no word for, as diced's own client asks it: ``diced.remote.native``.

An array's whole description, its creation with all that a store at a path can make, its attributes,
the blocks that are present, and the commits that led to a version.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

from diced.array import DicedArray
from diced.attrs import check_json
from diced.errors import AlreadyExistsError, InvalidError
from diced.files import KeyValueArray
from diced.grid import MAX_COORDINATE, MIN_COORDINATE
from diced.server import blobstore, native_pyramid, streams
from diced.server.answer import Answer, to_json
from diced.server.api_repos import RESERVED, check_public_name
from diced.server.call import Call, check_json_size
from diced.server.fields import NOTE_BYTES
from diced.server.routes import NONE, Route
from diced.server.voxels import as_voxels
from diced.server.wire import check_block
from diced.spec import DTYPES, MAX_CHANNELS

VERSION = 1  # of these requests
HEAD = struct.Struct("<I")  # bytes of JSON at the beginning of a batch
MAX_BOXES = 65536
HEAD_BYTES = 2**24  # of JSON at the beginning of a batch
BATCH_BYTES = 2**30 + 2**24


def _never(_value: Any) -> bool:
    return False


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**64)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_list(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check for one value, or a list of few."""

    def checked(value: Any) -> bool:
        if isinstance(value, list):
            return len(value) <= MAX_CHANNELS and all(map(check, value))
        return check(value)

    return checked


# What ``create_array`` may be told, and what JSON of it must be; the rest is its own to check.
OPTIONS: dict[str, Callable[[Any], bool]] = {
    "dtype": lambda value: isinstance(value, str) and value in DTYPES,
    "dims": _is_scalar,
    "islabel3D": _is_flag,
    "lossycompression": _is_flag,
    "block_shape": _or_list(_is_scalar),
    "codec": _is_text,
    "fill": _or_list(_is_number),
    "voxel_size": _or_list(_is_number),
    "units": _or_list(_is_text),
    "channels": _is_scalar,
}


def _about(call: Call) -> Any:
    return {"native": VERSION, "store": call.site.store.uuid}


def _describe(call: Call) -> Any:
    array = call.array
    fields = array._fields()
    # Of a level of a pyramid these are its array's.
    found = {"name": fields["name"], "kind": array.kind, "versioned": array.versioned}
    # The same as in the instance's JSON.
    found["id"] = array._spec.id + call.node_repo()._id
    if isinstance(array, DicedArray):
        for key in ("dtype", "dims", "block_shape", "channels", "codec", "fill", "voxel_size",
                    "units"):  # fmt: skip
            found[key] = fields.get(key)
        bounds = array.bounds
        found["box"] = bounds and [[s.start for s in bounds], [s.stop for s in bounds]]
    # What is DVID's own is told by DVID's requests.
    found["attrs"] = _own(fields.get("attrs", {}))
    return found


def _own(attrs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if not _is_dvids(key)}


def _is_dvids(key: str) -> bool:
    return key == "dvid" or key.startswith("dvid ")


def _edit_attrs(call: Call) -> None:
    given = call.json()
    new, gone = given.get("set", {}), given.get("remove", [])
    if not isinstance(new, dict) or not isinstance(gone, list):
        raise InvalidError("the body is JSON: 'set', an object, and 'remove', a list of names")
    if any(not isinstance(key, str) or _is_dvids(key) for key in (*new, *gone)):
        raise InvalidError("attributes named 'dvid' are changed by DVID's own requests")
    check_json(f"array {call.array.name!r}", new)

    def change(old: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**old, **new}.items() if key not in gone}

    call.array.attrs._edit(change)


def _blocks(call: Call) -> Answer:
    if not isinstance(call.array, DicedArray):
        raise InvalidError(f"data {call.array.name!r} holds no voxels")
    return streams.json_list(to_json(list(each)) for each in call.array.blocks())


def _batch(call: Call) -> None:
    """Write several boxes, steps and channels too, in one commit."""
    array, body = call.array, memoryview(call.body)
    if not isinstance(array, DicedArray):
        raise InvalidError(f"data {array.name!r} holds no voxels")
    if len(body) < HEAD.size or len(body) - HEAD.size < HEAD.unpack_from(body)[0]:
        raise InvalidError("the body is cut off in its description")
    at = HEAD.size + HEAD.unpack_from(body)[0]
    if at > HEAD_BYTES:
        raise InvalidError(f"a batch is described by at most {HEAD_BYTES} bytes; got {at}")
    head = bytes(body[HEAD.size : at])
    check_json_size(head)
    try:
        given = json.loads(head)
        operation = given.get("operation") or "write"
        todo = [tuple(slice(*map(whole, axis)) for axis in index) for index in given["indices"]]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"the body does not begin with what it holds: {error!r:.200}") from None
    if len(todo) > MAX_BOXES:
        raise InvalidError(f"at most {MAX_BOXES} boxes in one commit; got {len(todo)}")
    parts = []
    for index in todo:
        if len(index) != array.ndim or not all(map(_is_sound, index)):
            raise InvalidError(
                f"an index has {array.ndim} slices that are not empty, within 32-bit coordinates;"
                f" got {index!r:.200}"
            )
        shape = tuple(len(range(s.start, s.stop, s.step)) for s in index)
        nbytes = math.prod(shape) * array.dtype.itemsize
        if nbytes > len(body) - at:
            raise InvalidError(f"the voxels of {index} are cut off")
        parts.append((index, as_voxels(body[at : at + nbytes], array.dtype).reshape(shape)))
        at += nbytes
    if at != len(body):
        raise InvalidError(f"{len(body) - at} bytes follow the last voxels")
    with array.batch(operation):
        for index, values in parts:
            array[index] = values


def _delete_keys(call: Call) -> None:
    given, array = call.json(), call.array
    names, operation = given.get("keys"), given.get("operation", "delete")
    if not isinstance(array, KeyValueArray):
        raise InvalidError(f"data {array.name!r} holds no keys")
    if not isinstance(names, list):
        raise InvalidError("'keys' is a JSON list of text")
    array.delete_many(names, operation=operation)


def _is_sound(part: slice) -> bool:
    inside = MIN_COORDINATE <= part.start < part.stop <= MAX_COORDINATE + 1
    return bool(inside and 1 <= part.step <= MAX_COORDINATE)


def whole(value: Any) -> int:
    """Return an integer of JSON, or raise."""
    if type(value) is not int:
        raise TypeError(f"{value!r:.40} is no integer")
    return value


def _create(call: Call) -> Any:
    given = call.json()
    name, options = given.get("name"), given.get("options", {})
    check_public_name("instance", name)
    if name in RESERVED or name == blobstore.NAME:
        raise InvalidError(f"an instance cannot be named {name!r}: it has a meaning in paths")
    if not isinstance(options, dict):
        raise InvalidError("'options' is a JSON object")
    for key, value in options.items():
        if not OPTIONS.get(key, _never)(value):
            raise InvalidError(f"there is no option {key!r:.80}, or it is not {value!r:.80}")
    shape = options.get("block_shape")
    check_block(shape if isinstance(shape, list) else ())
    kind, attrs = given.get("kind"), given.get("attrs", {})
    if not isinstance(kind, str) or not isinstance(attrs, dict) or any(map(_is_dvids, attrs)):
        raise InvalidError("'kind' is text, and 'attrs' a JSON object without names of DVID's")
    repo = call.node_repo()
    if name in repo._history.view().by_name:
        raise AlreadyExistsError(f"data instance {name!r} exists already in this repo")
    array = repo.create_array(
        name, kind=kind, versioned=given.get("versioned", True) is not False, attrs=attrs, **options
    )
    return {"id": array._spec.id + repo._id}


def _operations(call: Call) -> Answer:
    array = call.query.get("array") or None
    return streams.json_list(to_json(each) for each in call.node_repo().operations(array))


def routes() -> list[Route]:
    """Return the routes of the server and of repos."""
    return [
        Route(
            "GET", "/api/diced", _about, "Tells diced's client which store this is.", light=True,
            needs=NONE,
        ),
        Route(
            "POST", "/api/repo/{uuid}/array", _create,
            "Creates an array with all that diced knows of arrays.",
            body="JSON: 'name', 'kind', 'versioned', 'attrs', and 'options' of create_array",
            limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "GET", "/api/repo/{uuid}/operations", _operations,
            "Returns the commits that led to a version, oldest version first, as a JSON list.",
            query={"array": "only those of this array"},
        ),
    ]  # fmt: skip


def instance_routes() -> list[Route]:
    """Return the routes of every instance."""
    return [
        Route("GET", "diced", _describe, "Returns what the array is to diced, as JSON."),
        Route(
            "POST", "diced", _edit_attrs, "Changes the array's attributes, in one commit.",
            body="JSON: 'set' (object), 'remove' (list of names)", limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "POST", "diced/batch", _batch, "Writes any number of boxes in one commit.",
            body="4 bytes: how many of JSON follow, the lowest first; 'operation' and 'indices', of"
            " each box [[start, stop, step], ...] ZYX, channels last; then the voxels of each",
            limit=BATCH_BYTES,
        ),
        Route(
            "POST", "diced/delete", _delete_keys, "Removes keys in one commit.",
            body="JSON: 'keys' (list of text), 'operation'",
        ),
        Route("GET", "diced/blocks", _blocks, "Returns the coordinates of all blocks, ZYX."),
        *native_pyramid.routes(),
    ]  # fmt: skip
