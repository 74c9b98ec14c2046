"""What is served beside the API: the page at ``/``, and neuroglancer.

The page's files are small and stay in memory. What the page asks of the server beyond DVID's API
is a table of routes below ``/api/page``, which go the way of all API requests: rights, errors,
threads.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diced.blocks import SPACE
from diced.errors import DicedException, InvalidError
from diced.moment import moment
from diced.server import viewer
from diced.server.answer import OCTETS, Answer, Refused
from diced.server.call import Call
from diced.server.routes import Route
from diced.server.thumbnails import MAX_SIDE, MAX_STEP, Thumbnails, levels, sample
from diced.server.wire import flip, numbers, point

if TYPE_CHECKING:
    from diced.server.site import Site

Message = MutableMapping[str, Any]
App = Callable[[Message, Any, Callable[[Message], Awaitable[None]]], Awaitable[None]]

FOLDER = Path(__file__).parent / "page"
TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
# No string becomes a script or a piece of the document: text of the store is only ever text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self' http: https:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
PLANES = {"xy": (1, 2), "xz": (0, 2), "yz": (0, 1)}  # axes of rows and columns, ZYX
MAX_KEYS = 1000
SIZE_SECONDS = 8.0
MAX_SIZES = 4096


class _File:
    """A file of the page."""

    def __init__(self, name: str, data: bytes):
        self.type = TYPES[name.rpartition(".")[2]]
        self.data = data
        self.zipped = gzip.compress(data, 9, mtime=0)
        self.tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'


def build(site: Site) -> App:
    """Return the ASGI application of everything that is not below ``/api/``.

    Parameters
    ----------
    site : Site
    """
    files = {
        f"/page/{each.name}": _File(each.name, each.read_bytes())
        for each in FOLDER.iterdir()
        if each.name.rpartition(".")[2] in TYPES
    }
    files["/"] = files.pop("/page/index.html")
    files["/favicon.ico"] = files["/page/icon.svg"]  # what is not told of an icon asks for this
    neuroglancer = viewer.build(site)

    async def answer(scope: Message, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path.startswith("/view/") and neuroglancer is not None:
            await neuroglancer(scope, receive, send)
            return
        asked = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        found = files.get(path)
        if found is None:
            await _reply(scope, send, 404, f"nothing is at {path}\n".encode("utf-8", "replace"))
        elif scope["method"] not in ("GET", "HEAD"):
            await _reply(scope, send, 405, b"only GET and HEAD\n", {"allow": "GET, HEAD"})
        else:
            headers = {**HEADERS, "etag": found.tag, "vary": "Accept-Encoding"}
            if found.tag in asked.get("if-none-match", ""):
                await _reply(scope, send, 304, b"", headers)
                return
            headers["content-type"] = found.type
            zips = "gzip" in asked.get("accept-encoding", "")
            if zips:
                headers["content-encoding"] = "gzip"
            await _reply(scope, send, 200, found.zipped if zips else found.data, headers)

    return answer


async def _reply(
    scope: Message, send: Any, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    every = {"content-type": "text/plain; charset=utf-8", **(headers or {})}
    if status != 304:
        every["content-length"] = str(len(body))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


# -- what the page asks --------------------------------------------------------------------


def _store(call: Call) -> Any:
    """Tell what store this is."""
    site = call.site
    return {
        "uuid": site.store.uuid,
        "info": dict(site.store.info),
        "viewer": viewer.find() is not None,
        "mode": site.options.mode,
        "user": call.user,
        "rights": _rights(call),
    }


def _may(call: Call, method: str, pieces: list[str]) -> bool:
    """Tell whether the caller may send a request."""
    found = call.site.table.find(method, pieces)
    if found is None:
        return False
    tried = copy.copy(call)
    tried.method, tried.path = method, "/api/" + "/".join(pieces)
    if "uuid" not in found[1]:
        tried.repo = None
    try:
        call.site.access.check(tried, found[0])
    except DicedException:
        return False
    return True


def _rights(call: Call) -> dict[str, bool]:
    """Return what the caller may do: with the repo of the path, if it names one."""
    rights = {"admin": call.admin, "create": _may(call, "POST", ["repos"])}
    if call.repo is not None:
        rights["write"] = _may(call, "POST", ["node", call.repo.uuid, "note"])
        rights["rename"] = _may(call, "POST", ["repo", call.repo.root, "info"])
        rights["remove"] = _may(call, "DELETE", ["repo", call.repo.root])
    return rights


def _node(call: Call) -> Any:
    """Tell what is at a version."""
    repo = call.node_repo()
    visible = repo._visible()
    lanes = [repo._history.lane(spec, repo._node_id) for spec in visible.values()]
    with moment(lanes if repo.remote else []):
        arrays = [_array(call, name) for name in visible]
    tags, access = repo.tags(), call.site.access
    if access.visible(call, repo) != "all":
        public = access.public_nodes(repo)
        tags = {name: uuid for name, uuid in tags.items() if uuid in public}
    return {
        "uuid": repo.uuid,
        "root": repo.root,
        "alias": repo.name,
        "locked": repo.locked,
        "note": repo.note,
        "tags": tags,
        "rights": _rights(call),
        "user": call.user,
        "arrays": arrays,
    }


def _array(call: Call, name: str) -> dict[str, Any]:
    """Describe an array; all coordinates XYZ, the end exclusive."""
    array, kind = call.site.find_array(call.repo, name)
    fields = {
        "name": name, "type": kind.name, "kind": array.kind, "versioned": array.versioned,
    }  # fmt: skip
    if getattr(array, "dtype", None) is None:
        return fields
    box = array._blocks().lane.refresh().box
    return {
        **fields,
        "dtype": array.dtype.name,
        "dims": array.numdims,
        "channels": array.channels,
        "lo": None if box is None else flip(box[0]),
        "hi": None if box is None else flip(box[1]),
        "block": flip(array.block_shape),
        "voxel": flip(array.voxel_size),
        "units": flip(array.units),
        "codec": array.codec,
        "fill": np.asarray(array.fill).tolist(),
        "source": viewer.source(array, kind),
    }


def _open(call: Call, planes: bool = True) -> Any:
    """Return the array that the path names."""
    array, _ = call.site.find_array(call.repo, call.args["name"])
    if planes and getattr(array, "dtype", None) is None:
        raise InvalidError(f"{array.name!r} holds keys, not voxels")
    return array


class _Facts:
    """What takes a while to find out, kept."""

    def __init__(self) -> None:
        self.thumbnails = Thumbnails()
        self._sizes: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._one = threading.Lock()

    def thumbnail(self, call: Call) -> Answer:
        """Answer with a picture."""
        side = call.number("side", 128)
        seen = call.headers.get("if-none-match", "")
        return self.thumbnails.answer(call.repo, _open(call), side, seen)

    def size(self, call: Call) -> Any:
        """Add up what an array holds at a version."""
        repo, array = call.node_repo(), _open(call, planes=False)
        if array._spec.kind == "pyramid":  # its blocks are kept with those of all versions
            return {"bytes": None, "entries": None, "complete": False}
        lane = repo._lane(array._spec)
        state = lane.refresh()
        key = (lane.id, lane.node_id, state.number)
        known = self._sizes.get(key)
        if known is not None:
            return known
        if not self._one.acquire(timeout=SIZE_SECONDS):
            raise Refused(503, "another size is being added up\n", {"Retry-After": "5"})
        try:
            end = time.monotonic() + SIZE_SECONDS
            count = total = 0
            whole = True
            for _, entry in lane.scan(state, SPACE):
                total += entry[2] if isinstance(entry, tuple) else len(entry)
                count += 1
                if not count % 4096 and time.monotonic() > end:
                    whole = False
                    break
        finally:
            self._one.release()
        found = {"bytes": total, "entries": count, "complete": whole}
        if len(self._sizes) >= MAX_SIZES:
            self._sizes.clear()
        self._sizes[key] = found
        return found


def _keys(call: Call) -> Any:
    """List keys, a page at a time."""
    array = _open(call, planes=False)
    if array.kind != "keyvalue":
        raise InvalidError(f"{array.name!r} holds no keys")
    limit = call.number("limit", 200)
    if not 1 <= limit <= MAX_KEYS:
        raise InvalidError(f"limit is from 1 to {MAX_KEYS}; got {limit}")
    prefix, after = call.query.get("prefix", ""), call.query.get("after", "")
    start = f"{after}\0" if after else None
    found = list(itertools.islice(array.keys(prefix, start), limit + 1))
    return {"keys": found[:limit], "more": len(found) > limit}


def _tile(call: Call) -> Answer:
    """Read a plane at a step."""
    array = _open(call)
    plane = call.args["plane"].lower()
    if array.numdims != 3 or plane not in PLANES:
        raise InvalidError(f"tiles are xy, xz or yz planes of 3-D arrays; got {plane!r:.20}")
    lo = point(call.args["offset"], 3)
    sizes = flip(numbers(call.args["size"], 2, "size"))
    steps = flip(numbers(call.args["step"], 2, "step"))
    if not all(1 <= each <= MAX_SIDE for each in sizes):
        raise InvalidError(f"a tile has 1 to {MAX_SIDE} pixels a side; got {flip(sizes)}")
    if not all(1 <= each <= MAX_STEP for each in steps):
        raise InvalidError(f"steps are from 1 to {MAX_STEP}; got {flip(steps)}")
    step, shape = [1, 1, 1], [1, 1, 1]
    for axis, n, each in zip(PLANES[plane], sizes, steps, strict=True):
        step[axis], shape[axis] = each, n
    values = sample(levels(call.repo, array), lo, step, shape)
    data = np.ascontiguousarray(values).data.cast("B")
    if call.query.get("compression") == "lz4":
        import lz4.block

        return Answer(lz4.block.compress(data, store_size=False), OCTETS)
    return Answer(data, OCTETS)


def routes() -> list[Route]:
    """Return the routes that the page needs beyond DVID's API."""
    facts = _Facts()
    node = "/api/page/node/{uuid}"
    return [
        Route("GET", "/api/page/store", _store, "Tells what store this is, and what one may do."),
        Route("GET", node, _node, "Tells what is at a version, with all its arrays."),
        Route(
            "GET", f"{node}/size/{{name}}", facts.size,
            "Returns the bytes that an array refers to at a version.",
        ),
        Route(
            "GET", f"{node}/thumbnail/{{name}}", facts.thumbnail,
            "Returns the middle plane of an array as a small PNG.",
            query={"side": "most pixels a side, 16 to 512"},
        ),
        Route(
            "GET", f"{node}/keys/{{name}}", _keys, "Lists keys, some at a time.",
            query={
                "prefix": "only keys that begin with it", "after": "only keys behind it",
                "limit": f"most keys, up to {MAX_KEYS}",
            },
        ),
        Route(
            "GET", f"{node}/tile/{{name}}/{{plane}}/{{step}}/{{size}}/{{offset}}", _tile,
            "Returns every so many-th voxel of a plane, as octets; of very large planes samples.",
            query={"compression": "lz4, or nothing"},
        ),
        *viewer.routes(node, _open),
    ]  # fmt: skip
