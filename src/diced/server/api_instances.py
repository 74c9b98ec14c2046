"""Requests of every instance, whatever its data type."""

from __future__ import annotations

from typing import Any

from diced.attrs import check_json
from diced.errors import InvalidError
from diced.server import blobstore, mutations
from diced.server.call import Call
from diced.server.datatype import DataType, edit_stored, stored
from diced.server.describe import instance_json
from diced.server.fields import NOTE_BYTES
from diced.server.routes import Route


def help_text(kind: DataType) -> str:
    """Return the help of a data type: what it is, its requests, its commands."""
    lines = [f"{kind.name}: {kind.text.strip()}", "", "HTTP API", ""]
    for route in [*kind.table.routes, *routes()]:
        methods = " ".join(route.methods)
        lines.append(f"{methods}  <api URL>/node/<UUID>/<data name>/{route.pattern}")
        lines += ["", f"    {route.summary}"]
        lines += [f"    {name}: {what}" for name, what in route.query.items()]
        lines += [f"    Body: {route.body}"] if route.body else []
        lines.append("")
    if kind.commands:
        lines += ["Command line", ""]
        for word, run in kind.commands.items():
            lines += [f"$ dvid node <UUID> <data name> {word} ...", "", f"    {run.__doc__}", ""]
    return "\n".join(lines)


def _help(call: Call) -> str:
    return help_text(call.type)


def _info(call: Call) -> Any:
    return instance_json(call.site, call.repo, call.array, call.type)


def _tags(call: Call) -> Any:
    return {"Tags": stored(call.array).get("tags", {})}


def _set_tags(call: Call) -> None:
    given = call.json()
    if not all(isinstance(value, str) for value in given.values()):
        raise InvalidError("tags are a JSON object of text")
    check_json("tags", given)
    replace = call.flag("replace")

    def change(own: dict[str, Any]) -> dict[str, Any]:
        return {**own, "tags": given if replace else {**own.get("tags", {}), **given}}

    edit_stored(call.array, change)


def routes() -> list[Route]:
    """Return the routes; patterns go on behind the instance's name."""
    return [
        Route("GET", "help", _help, "Returns this text.", light=True),
        Route("GET", "info", _info, "Returns what the instance is, as JSON.", light=True),
        Route("GET", "tags", _tags, "Returns the instance's tags as JSON.", light=True),
        Route(
            "POST", "tags", _set_tags, "Adds tags, or replaces them all.",
            query={"replace": "true: the old ones go"}, body="JSON object of text",
            limit=NOTE_BYTES,
        ),
        *blobstore.routes(),
        *mutations.routes(),
    ]  # fmt: skip
