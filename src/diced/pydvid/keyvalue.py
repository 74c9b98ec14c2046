"""Values by key."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from diced.pydvid.connection import ask, get_json


def create_new(connection: Any, uuid: str, data_name: str) -> None:
    """Create a keyvalue instance."""
    create_instance(connection, uuid, data_name, "keyvalue", {})


def create_instance(
    connection: Any, uuid: str, data_name: str, typename: str, settings: dict[str, str]
) -> None:
    """Create an instance of any type."""
    fields = {**settings, "typename": typename, "dataname": data_name}
    path = f"/api/repo/{quote(uuid)}/instance"
    what = f"creating {typename} {data_name!r}"
    ask(connection, what, "POST", path, json.dumps(fields).encode(), "application/json")


def get_value(connection: Any, uuid: str, data_name: str, key: str) -> bytes:
    """Return the value of a key."""
    return ask(connection, f"getting key {key!r}", "GET", _path(uuid, data_name, key))


def put_value(connection: Any, uuid: str, data_name: str, key: str, value: Any) -> None:
    """Store a value: text, bytes, or a file that can be read."""
    data = value.encode() if isinstance(value, str) else value
    data = data.read() if hasattr(data, "read") else data
    ask(
        connection, f"putting key {key!r}", "POST", _path(uuid, data_name, key), data,
        "application/octet-stream",
    )  # fmt: skip


def del_value(connection: Any, uuid: str, data_name: str, key: str) -> None:
    """Delete a key."""
    ask(connection, f"deleting key {key!r}", "DELETE", _path(uuid, data_name, key))


def get_keys(connection: Any, uuid: str, data_name: str) -> list[str]:
    """Return all keys, in order."""
    found: list[str] = get_json(
        connection, f"/api/node/{quote(uuid)}/{quote(data_name)}/keys", "keys"
    )
    return found


def _path(uuid: str, data_name: str, key: str) -> str:
    return f"/api/node/{quote(uuid)}/{quote(data_name)}/key/{quote(key, safe='')}"
