"""What a server is and holds."""

from __future__ import annotations

from typing import Any

from diced.pydvid.connection import get_json


def get_server_info(connection: Any) -> dict[str, str]:
    """Return ``/api/server/info``."""
    found: dict[str, str] = get_json(connection, "/api/server/info", "server-info")
    return found


def get_server_types(connection: Any) -> dict[str, str]:
    """Return ``/api/server/types``: the data types in use, and their URLs."""
    found: dict[str, str] = get_json(connection, "/api/server/types", "server-info")
    return found


def get_repos_info(connection: Any) -> dict[str, Any]:
    """Return ``/api/repos/info``: all repos by the UUID of their root."""
    found: dict[str, Any] = get_json(connection, "/api/repos/info", "repos-info")
    return found


# A repo was called a dataset in 2014.
get_datasets_info = get_repos_info
