"""All requests as OpenAPI 3.1, and as the RAML that DVID had at ``/interface``: from the routes.

Several data types answer at one path. There it is described once, with what each of them says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from diced import __version__
from diced.server import wire
from diced.server.datatype import DataType
from diced.server.routes import ADMIN, NONE, READ, Route, variants

if TYPE_CHECKING:
    from diced.server.site import Site

INSTANCE = "/api/node/{uuid}/{name}"
METHODS = ("get", "head", "post", "put", "delete")
NUMBERS = "-?[0-9]+([_,]-?[0-9]+)*"

# What is known of parameters by their names, wherever they stand: schema, meaning.
PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "uuid": (
        {"type": "string", "minLength": 1},
        "A version: UUID, beginning of one, tag, <UUID>:<branch>, or any of these with ~N",
    ),
    "name": ({"type": "string", "minLength": 1}, "Name of the data instance"),
    "type": ({"type": "string"}, "Name of a data type"),
    "dims": (
        {"type": "string", "examples": ["0_1_2", "xy", "xz", "yz"]},
        "Axes, as 0_1_2 or xy",
    ),
    "size": (
        {"type": "string", "pattern": f"^{NUMBERS}$", "examples": ["64_64_64", "250_250"]},
        "Voxels along each of the axes, X first",
    ),
    "offset": (
        {"type": "string", "pattern": f"^{NUMBERS}$", "examples": ["0_0_0", "-64_0_100"]},
        "First voxel, X first",
    ),
    "format": ({"type": "string", "examples": ["png", "jpg:80"]}, "Format of pictures"),
    "key": ({"type": "string", "minLength": 1}, "A key; slashes may be in it"),
    "plane": ({"type": "string", "examples": ["xy", "xz", "yz"]}, "Plane of an image"),
}
_WHOLE = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_FLAG = {"type": "string", "enum": ["on", "off", "true", "false", "1", "0"]}
# Schemas of query parameters that are not any text.
QUERY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("scale", "levels", "batchsize", "limit", "side"), _WHOLE),
    **dict.fromkeys(("throttle", "imsure", "replace", "mutate", "interactive"), _FLAG),
}
COMMON = {
    "u": "User, recorded in commits; where tokens are asked for, they tell who it is",
    "app": "Name of the program",
    "interactive": "false: nobody waits for the answer",
    "admintoken": "The admin token",
}
# What any request may be answered with that is not 200.
REFUSALS = {
    "400": "Refused: the text says why",
    "401": "A token is missing, or nobody has it",
    "403": "The user may not do this",
    "404": "Nothing is there",
    "408": "The body did not come in time",
    "413": "The body is larger than it may be",
    "415": "The body has an encoding that is not known",
    "429": "The user or the address is blocked",
    "503": "Too much to do at the moment, or not done in time; to be tried again",
}


def document(site: Site, kinds: Iterable[DataType]) -> dict[str, Any]:
    """Return the description of all requests.

    Parameters
    ----------
    site : Site
    kinds : iterable of DataType

    Returns
    -------
    dict
        An OpenAPI 3.1 document.
    """
    paths: dict[str, dict[str, Any]] = {}
    shapes: dict[str, str] = {}  # paths with nameless parameters -> the first one's spelling
    used: set[str] = set()
    for tag, pattern, route in _all(site, kinds):
        for variant in variants(pattern):
            path, names = _template(variant)
            known = shapes.setdefault(re.sub(r"\{[^}]*\}", "{}", path), path)
            item = paths.setdefault(known, {})
            if known != path:  # the same request by other names
                names = re.findall(r"\{([^}]*)\}", known)
            for method in route.methods:
                _add(item, method.lower(), known, names, route, tag, used)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DVID API of diced",
            "version": __version__,
            "description": "Requests of a server that keeps versioned volumes. Numbers of"
            f" coordinates are X first. No request has more than {wire.MAX_DATA_BYTES} bytes.",
        },
        "servers": [{"url": "/"}],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {
            "parameters": {
                name: {"name": name, "in": "query", "required": False, "description": what,
                       "schema": QUERY.get(name, {"type": "string"})}
                for name, what in COMMON.items()
            },
            "responses": {
                f"refused{status}": {
                    "description": what, "content": {"text/plain": {"schema": {"type": "string"}}},
                }
                for status, what in REFUSALS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "admintoken": {"type": "apiKey", "in": "query", "name": "admintoken"},
            },
        },
        "security": [{}, {"bearer": []}, {"admintoken": []}],
    }  # fmt: skip


def text(site: Site, kinds: Iterable[DataType]) -> bytes:
    """Return the description as JSON."""
    return json.dumps(document(site, kinds), separators=(",", ":"), ensure_ascii=False).encode()


def raml(found: dict[str, Any]) -> bytes:
    """Return a description as RAML, which is YAML."""
    lines = ["#%RAML 1.0", f"title: {json.dumps(found['info']['title'])}", "version: v1"]
    for path, item in found["paths"].items():
        lines.append(f"{path}:")
        for method, operation in item.items():
            lines += [f"  {method}:", f"    description: {json.dumps(operation['summary'])}"]
    return "\n".join([*lines, ""]).encode()


def _all(site: Site, kinds: Iterable[DataType]) -> Iterator[tuple[str, str, Route]]:
    """Yield the tag, the whole pattern and the route of every request."""
    for route in site.table.routes:
        pattern = "/" + route.pattern.removeprefix("/")
        if not pattern.startswith(("/api/", "/interface")):
            pattern = f"/api{pattern}"
        yield pattern.split("/")[2 if pattern.startswith("/api/") else 1], pattern, route
    for kind in kinds:
        for route in kind.table.routes:
            yield kind.name, f"{INSTANCE}/{route.pattern}", route
    for route in site.common.routes:
        yield "instances", f"{INSTANCE}/{route.pattern}", route


def _template(pattern: str) -> tuple[str, list[str]]:
    """Return a path as OpenAPI has it, and the names in it, each but once."""
    names: list[str] = []

    def name(match: re.Match[str]) -> str:
        found = match[1].removesuffix("...")
        while found in names:
            found += "2"
        names.append(found)
        return "{" + found + "}"

    return re.sub(r"\{([^}]*)\}", name, pattern), names


def _add(
    item: dict[str, Any], method: str, path: str, names: list[str], route: Route, tag: str,
    used: set[str],
) -> None:  # fmt: skip
    """Add an operation, or to one what another data type says of it."""
    known = item.get(method)
    if known is None:
        known = item[method] = _operation(method, path, names, route, tag, used)
    elif tag not in known["tags"]:
        known["tags"].append(tag)
        if route.summary not in known["summary"]:
            known["summary"] += f" {tag}: {route.summary}"
    there = {each["name"] for each in known["parameters"] if each.get("in") == "query"}
    for name, what in route.query.items():
        if name not in there and name not in COMMON:
            known["parameters"].append({
                "name": name, "in": "query", "required": False, "description": what,
                "schema": QUERY.get(name, {"type": "string"}),
            })  # fmt: skip
    if route.body:
        _add_body(known, route.body)


def _operation(
    method: str, path: str, names: list[str], route: Route, tag: str, used: set[str]
) -> dict[str, Any]:
    words = re.findall("[A-Za-z0-9]+", path.removeprefix("/api"))
    name = base = "_".join([method, *words])
    count = 2
    while name in used:
        name, count = f"{base}_{count}", count + 1
    used.add(name)
    parameters: list[dict[str, Any]] = []
    for each in names:
        schema, what = PARAMETERS.get(each, ({"type": "string", "minLength": 1}, each))
        parameters.append(
            {"name": each, "in": "path", "required": True, "description": what, "schema": schema}
        )
    parameters += [{"$ref": f"#/components/parameters/{each}"} for each in COMMON]
    found: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "tags": [tag],
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done"},
            **{each: {"$ref": f"#/components/responses/refused{each}"} for each in REFUSALS},
            "default": {"description": "Any other answer, such as a part of a value (206)"},
        },
    }
    if route.needs == ADMIN:
        found["description"] = "Needs the right admin."
    elif route.needs not in (NONE, READ):
        found["description"] = "Needs the right write."
    return found


def _add_body(operation: dict[str, Any], what: str) -> None:
    """Add what a body holds."""
    kind = "application/json" if "json" in what.lower() else "application/octet-stream"
    schema: dict[str, Any] = {} if kind == "application/json" else {
        "type": "string", "format": "binary",
    }  # fmt: skip
    body = operation.setdefault("requestBody", {"description": what, "content": {}})
    if what not in body["description"]:
        body["description"] += f"; {what}"
    body["content"].setdefault(kind, {"schema": schema})
