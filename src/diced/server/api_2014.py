"""Requests of 2013 and 2014, when a repo was called a dataset.

Most are called otherwise today and mean the same; `today` tells how. Those with an answer or a body
of their own are routes.

=========================================================  ========================================
of old                                                     today
=========================================================  ========================================
``/api/v1/...``                                            ``/api/...``
``/api/about``                                             ``/api/server/info``
``/api/datasets/info``, ``/api/datasets/all``              ``/api/repos/info``
``/api/dataset/UUID/info``                                 ``/api/repo/UUID/info``
``/api/dataset/UUID/NAME/...``                             ``/api/node/UUID/NAME/...``
``GET /api/datasets/list``                                 the keys of ``/api/repos/info``
``POST /api/datasets/new``                                 ``POST /api/repos``
``POST /api/dataset/UUID/new/TYPE/NAME``, and              ``POST /api/repo/UUID/instance``
``versioned`` or ``unversioned`` in place of ``new``
``POST /api/node/UUID/lock``                               ``POST /api/node/UUID/commit``
=========================================================  ========================================
"""

from __future__ import annotations

import json
from typing import Any

from diced.errors import InvalidError
from diced.server import api_repos
from diced.server.call import Call
from diced.server.datatype import Settings
from diced.server.fields import NOTE_BYTES
from diced.server.routes import Route

PATHS = {
    "/api/about": "/api/server/info",
    "/api/datasets/info": "/api/repos/info",
    "/api/datasets/all": "/api/repos/info",
}
OF_ONE = "/api/dataset/"
# Words in the place of "new": with versions, without them, or as is usual.
CREATION = {"new": None, "versioned": True, "unversioned": False}


def today(path: str) -> str:
    """Return what a path of old is called today; any other path as it is."""
    if path.startswith("/api/v1/"):
        path = "/api/" + path.removeprefix("/api/v1/")
    if not path.startswith(OF_ONE):
        return PATHS.get(path.removesuffix("/"), path)
    uuid, _, rest = path.removeprefix(OF_ONE).partition("/")
    pieces = rest.removesuffix("/").split("/")
    if not uuid or not pieces[0] or (pieces[0] in CREATION and len(pieces) == 3):
        return path
    return f"/api/repo/{uuid}/info" if pieces == ["info"] else f"/api/node/{uuid}/{rest}"


def _list(call: Call) -> dict[str, list[str]]:
    return {"DatasetsUUID": list(json.loads(call.site.descriptions.repos(call)))}


def _new(call: Call) -> dict[str, str]:
    root = api_repos._create(call)["root"]
    return {"Root": root, "root": root}


def _create(word: str) -> Any:
    """Return a handler of POST ``dataset/UUID/<word>/TYPE/NAME``."""

    def handler(call: Call) -> dict[str, str]:
        given = call.json(empty={})
        inner = given.get("Properties", {})
        if not isinstance(inner, dict):
            raise InvalidError(f"'Properties' is a JSON object; got {inner!r:.80}")
        outer = {name: value for name, value in given.items() if name != "Properties"}
        fields = {}
        for name, value in (*inner.items(), *outer.items()):  # what is further out counts
            fields[name.lower()] = value
        fields |= {"typename": call.args["typename"], "dataname": call.args["dataname"]}
        if CREATION[word] is not None:
            fields["versioned"] = CREATION[word]
        fields = {name: value for name, value in fields.items() if value is not None}
        repo = call.node_repo()
        array, typename = api_repos.create_instance(repo, Settings(fields))
        return {"result": f"Added {array.name} [{typename}] to node {repo.uuid}"}

    return handler


def _lock(call: Call) -> str:
    repo = call.node_repo()
    repo._check_writable()
    repo._history.lock(repo._node_id, repo.note, [])
    return f"Lock on node {repo.uuid} successful.\n"


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route(
            "GET", "/api/datasets/list", _list,
            'Returns the UUIDs of all repos\' roots, as of old: {"DatasetsUUID": [...]}.',
        ),
        Route(
            "POST", "/api/datasets/new", _new,
            'Creates a repo, as of old, and returns {"Root": ..., "root": ...}.',
            body="JSON, all optional: as of POST /api/repos", limit=NOTE_BYTES,
        ),
        *(
            Route(
                "POST", f"{OF_ONE}{{uuid}}/{word}/{{typename}}/{{dataname}}", _create(word),
                f"Creates a data instance at a version, as of old{text}.",
                body="JSON: settings of the type, some or all in 'Properties'", limit=NOTE_BYTES,
            )
            for word, text in (
                ("new", ""),
                ("versioned", ", with versions"),
                ("unversioned", ", without versions"),
            )
        ),
        Route("POST", "/api/node/{uuid}/lock", _lock, "Locks a version, as of old."),
    ]  # fmt: skip
