"""Neuroglancer, served by this server where its package is installed.

The package holds the client that its Python module serves. It wants a path with ``/v/<token>/`` in
it and three routes beside that; with a state in the URL's hash it needs no more. What DVID's data
source in it cannot read it gets in the precomputed form.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from diced.errors import InvalidError, NotFoundError
from diced.server import scales
from diced.server.answer import OCTETS, Answer
from diced.server.call import Call, whole
from diced.server.datatype import DataType
from diced.server.routes import Route
from diced.server.thumbnails import levels
from diced.server.wire import flip

if TYPE_CHECKING:
    from diced.server.site import Site

BASE = "/view/v/diced/"
# Its worker compiles the decoders of chunks from text.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval' blob:; worker-src 'self' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src * data: blob:; font-src 'self' data:;"
    " connect-src * data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
COOKIE = "diced-viewer"  # how the page hands its token on
MAX_BODY = 2**16
BEAT = 15  # seconds between comments in the event stream
LOOK = 0.5  # seconds between looks whether the server ends
# What the data source dvid:// of neuroglancer reads.
DVID_TYPES = frozenset(("uint8blk", "labelblk", "labelarray", "labelmap"))
PRECOMPUTED = {
    "uint8": "uint8", "int8": "int8", "uint16": "uint16", "int16": "int16", "uint32": "uint32",
    "int32": "int32", "uint64": "uint64", "float32": "float32", "bool": "uint8",
    "float16": "float32", "float64": "float32",
}  # fmt: skip
CHUNK = 64
METRES = {
    "nanometers": 1e-9, "nanometer": 1e-9, "nm": 1e-9, "micrometers": 1e-6, "micrometer": 1e-6,
    "um": 1e-6, "microns": 1e-6, "millimeters": 1e-3, "millimeter": 1e-3, "mm": 1e-3,
    "meters": 1.0, "meter": 1.0, "m": 1.0, "angstroms": 1e-10, "angstrom": 1e-10,
}  # fmt: skip


@lru_cache(maxsize=1)
def find() -> Path | None:
    """Return the folder of neuroglancer's client, or None; neuroglancer is not imported."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        client = Path(str(distribution("neuroglancer").locate_file("neuroglancer/static/client")))
    except PackageNotFoundError:
        return None
    return client if (client / "index.html").is_file() else None


def build(site: Site) -> Any:
    """Return the ASGI application of what is below ``/view/``, or None without the package."""
    folder = find()
    if folder is None:
        return None
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Mount
    from starlette.routing import Route as Path_
    from starlette.staticfiles import StaticFiles

    class Client(StaticFiles):
        """The client, without its source maps."""

        async def get_response(self, path: str, scope: Any) -> Response:
            if path.endswith(".map"):
                return PlainTextResponse("source maps are not served\n", 404)
            response = await super().get_response(path, scope)
            if path.endswith(".wasm"):
                response.headers["content-type"] = "application/wasm"
            # Names carry a hash of what is in the file, except for the first.
            hashed = path not in (".", "", "index.html")
            response.headers["cache-control"] = "max-age=31536000" if hashed else "no-cache"
            response.headers["content-security-policy"] = POLICY
            response.headers["x-content-type-options"] = "nosniff"
            return response

    async def events(_: Request) -> Response:
        return StreamingResponse(
            _beats(site), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def credentials(request: Request) -> Response:
        given = await _small(request)
        token = unquote(request.cookies.get(COOKIE, ""))
        # Only for this server: a link may hold layers of any other.
        mine = isinstance(given, dict) and _server(given) == request.headers.get("host", "")
        held = {"token": token} if token and mine else {}
        return JSONResponse({"generation": 0, "credentials": held})

    async def state(request: Request) -> Response:
        await _small(request)
        return JSONResponse({"g": "1"})

    async def missing(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"nothing is at {request.url.path}\n", 404)

    return Starlette(
        routes=[
            Path_("/view/events/diced", events),
            Path_("/view/credentials/diced", credentials, methods=["POST"]),
            Path_("/view/state/diced", state, methods=["POST"]),
            Mount("/view/v/diced", Client(directory=folder, html=True)),
        ],
        exception_handlers={404: missing},
    )


async def _small(request: Any) -> Any:
    """Return a small body as JSON, or None."""
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _server(given: dict[str, Any]) -> str:
    """Return the host that neuroglancer wants credentials for."""
    named = given.get("parameters")
    url = named.get("dvidServer") if isinstance(named, dict) else None
    return url.partition("//")[2].strip("/") if isinstance(url, str) else ""


async def _beats(site: Site) -> Any:
    """Yield a comment now and then, until the server ends."""
    yield b": diced\n\n"
    looks = 0
    while not site.ending:
        await asyncio.sleep(LOOK)
        looks += 1
        if looks * LOOK % BEAT == 0:
            yield b":\n\n"


# -- precomputed ---------------------------------------------------------------------------


def source(array: Any, kind: DataType) -> str:
    """Return how neuroglancer reads an array: ``dvid``, ``precomputed``, or nothing."""
    if array.numdims != 3:
        return ""
    if kind.name in DVID_TYPES:
        return "dvid"
    return "precomputed" if array.dtype.name in PRECOMPUTED else ""


def metres(unit: str) -> float:
    """Return the length of a unit; of one that is not known, a nanometre's."""
    return METRES.get(unit.strip().lower(), 1e-9)


def info(repo: Any, array: Any) -> dict[str, Any]:
    """Return the ``info`` of an array in the precomputed form.

    Raises
    ------
    InvalidError
        Neuroglancer has no such voxels.
    """
    if array.numdims != 3 or array.dtype.name not in PRECOMPUTED:
        raise InvalidError(
            f"{array.name!r} is a {array.numdims}-D array of {array.dtype}; neuroglancer reads 3-D"
            f" arrays of {', '.join(PRECOMPUTED)}"
        )
    nanometres = [
        size * metres(unit) * 1e9 for size, unit in zip(array.voxel_size, array.units, strict=True)
    ]
    told = []
    for number, level in enumerate(levels(repo, array)):
        box = level.array._blocks().lane.refresh().box or ((0, 0, 0), (CHUNK,) * 3)
        lo = [a // CHUNK * CHUNK for a in box[0]]
        resolution = [a * f for a, f in zip(nanometres, level.factor, strict=True)]
        told.append({
            "key": str(number),
            "size": flip([b - a for a, b in zip(lo, box[1], strict=True)]),
            "voxel_offset": flip(lo),
            "resolution": flip(resolution),
            "chunk_sizes": [[CHUNK] * 3],
            "encoding": "raw",
        })  # fmt: skip
    labels = array.kind == "label" and array.channels is None
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if labels else "image",
        "data_type": PRECOMPUTED[array.dtype.name],
        "num_channels": array.channels or 1,
        "scales": told,
    }


def chunk(repo: Any, array: Any, scale: str, name: str) -> np.ndarray:
    """Return a chunk named ``x0-x1_y0-y1_z0-z1``: (channels, z, y, x), little endian.

    Raises
    ------
    InvalidError, NotFoundError
    """
    found = levels(repo, array)
    number = whole(scale, "scale")
    if not 0 <= number < len(found):
        raise NotFoundError(f"{array.name!r} has {len(found)} scales; got {scale!r:.20}")
    ranges = [each.rpartition("-") for each in name.split("_")]
    if len(ranges) != 3 or array.dtype.name not in PRECOMPUTED:
        raise InvalidError(f"a chunk is named x0-x1_y0-y1_z0-z1; got {name!r:.80}")
    box = [slice(whole(a, "chunk"), whole(b, "chunk")) for a, _, b in ranges]
    if not all(0 < each.stop - each.start <= CHUNK for each in box):
        raise InvalidError(f"chunks have 1 to {CHUNK} voxels a side; got {name!r:.80}")
    values = scales.bounded(found[number].array)[flip(box)]
    values = np.asarray(values).astype(np.dtype(PRECOMPUTED[array.dtype.name]).newbyteorder("<"))
    return np.ascontiguousarray(np.moveaxis(values, 3, 0) if array.channels else values)


def routes(node: str, find_array: Callable[[Call], Any]) -> list[Route]:
    """Return the routes of the precomputed form.

    Parameters
    ----------
    node : str
        Pattern that they begin with.
    find_array : callable
        Returns the array of a call.
    """

    def get_info(call: Call) -> Any:
        return info(call.repo, find_array(call))

    def get_chunk(call: Call) -> Answer:
        found = chunk(call.repo, find_array(call), call.args["scale"], call.args["chunk"])
        return Answer(found.data.cast("B"), OCTETS)

    form = f"{node}/precomputed/{{name}}"
    return [
        Route("GET", f"{form}/info", get_info, "Describes an array as a precomputed volume."),
        Route(
            "GET", f"{form}/{{scale}}/{{chunk}}", get_chunk,
            "Returns a chunk of a precomputed volume, x0-x1_y0-y1_z0-z1.",
        ),
    ]  # fmt: skip
