"""Connections: one per thread behind one object, and one request on any of them."""

from __future__ import annotations

import functools
import http.client
import json
import threading
from pathlib import Path
from typing import Any

from diced.errors import UnsupportedError
from diced.pydvid.errors import DvidHttpError, UnexpectedResponseError

# What a server that closed an idle connection looks like to the next request.
_CLOSED = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class DvidConnection:
    """Looks like an `http.client.HTTPConnection`, and is another one in every thread.

    Parameters
    ----------
    hostname : str
        ``host:port``.
    timeout : float, optional
        Seconds.
    """

    def __init__(self, hostname: str, timeout: float | None = None):
        self.hostname = hostname
        self.timeout = timeout
        self._own = threading.local()
        self._lock = threading.Lock()
        self._all: list[http.client.HTTPConnection] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._connection(), name)

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is None:
            found = http.client.HTTPConnection(self.hostname, timeout=self.timeout)
            self._own.connection = found
            with self._lock:
                self._all.append(found)
        return found

    def close(self) -> None:
        """Close the connections of all threads; the next request opens anew."""
        with self._lock:
            for each in self._all:
                each.close()


def ask(
    connection: Any, what: str, method: str, path: str, body: Any = None, type: str = ""
) -> bytes:
    """Send a request and return the body of its answer.

    Parameters
    ----------
    connection : http.client.HTTPConnection or DvidConnection
    what : str
        What is being done, for messages.
    method, path : str
    body : bytes-like, optional
    type : str
        Content type.

    Raises
    ------
    DvidHttpError
        The answer is no success.
    OSError
        There is no connection.
    """
    headers = {"Content-Type": type} if type else {}
    try:
        answer = _exchange(connection, method, path, body, headers)
    except _CLOSED:
        # It was kept open for longer than the server cared to. What pydvid sends may be repeated.
        connection.close()
        answer = _exchange(connection, method, path, body, headers)
    status, reason, found = answer
    if status not in (200, 204):
        text = found.decode("utf-8", "replace")
        raise DvidHttpError(what, status, reason, text, method, path)
    return found


def _exchange(
    connection: Any, method: str, path: str, body: Any, headers: dict[str, str]
) -> tuple[int, str, bytes]:
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    try:
        return response.status, response.reason, response.read()
    finally:
        response.close()


def get_json(connection: Any, path: str, schema: str = "") -> Any:
    """Return the JSON that a server gives at a path, checked against a schema of this package.

    Raises
    ------
    DvidHttpError, UnexpectedResponseError
    """
    found = ask(connection, f"getting {path}", "GET", path)
    try:
        value = json.loads(found)
    except ValueError as error:
        raise UnexpectedResponseError(f"{path} is not JSON: {error}") from None
    if schema:
        check(value, schema, path)
    return value


@functools.cache
def _validator(schema: str) -> Any:
    try:
        import jsonschema
    except ImportError:
        raise UnsupportedError(
            "checking a server's JSON needs jsonschema: pip install 'diced[pydvid]'"
        ) from None
    text = (Path(__file__).parent / "schemas" / f"{schema}.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def check(value: Any, schema: str, what: str) -> None:
    """Check JSON against a schema of this package.

    Raises
    ------
    UnexpectedResponseError
    """
    error = next(iter(_validator(schema).iter_errors(value)), None)
    if error is not None:
        raise UnexpectedResponseError(f"{what}, at {error.json_path}: {error.message:.300}")
