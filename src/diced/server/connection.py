"""One connection of a client: heads of requests bounded in bytes and time, silence in time.

uvicorn bounds neither a head that never ends nor one that never comes, and goes on reading a body
that was refused for as long as it is sent.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 2**10
# Of a body that nobody wants, so that a client which sends all of it first can read the refusal.
DRAIN_BYTES = 64 * 2**20


class Connection(HttpToolsProtocol):
    """A connection; `bounded` makes classes with other bounds of time."""

    head_seconds = 30.0
    idle_seconds = 75.0
    send_seconds = 600.0

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._timer: TimerHandle | None = None
        self._head = False  # the head of a request is under way
        self._whole = True  # no request is under way
        self._moved = False  # the data at hand ended a head, or held a body
        self._since = 0  # bytes since something last moved
        self._drained = 0
        self._stuck: TimerHandle | None = None
        self._unsent = 0  # bytes that the client had not taken when that was last looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; a client that says nothing is not waited for without end."""
        super().connection_made(transport)
        self._wait(self.idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unwait()
        self._unstick()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Hold back what is sent: the client does not take what it asked for."""
        super().pause_writing()
        self._unstick()
        self._unsent = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(self.send_seconds, self._look)

    def resume_writing(self) -> None:
        """Go on sending."""
        self._unstick()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take bytes; refuse a head, or what else of a request is no body, that goes on and on."""
        self._moved = False
        super().data_received(data)
        if self._moved:
            self._since = 0
            return
        self._since += len(data)
        if self._since > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._head, self._whole = True, False
        self._wait(self.head_seconds)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._head, self._moved = False, True
        self._drained = 0
        self._unwait()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; of one that nobody wants only so much."""
        self._moved = True
        if self.cycle.response_complete:
            self._drained += len(body)
            if self._drained > DRAIN_BYTES:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._moved = self._whole = True
        if self.cycle.response_complete:
            self._unwait()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that was answered before it was there, but not for ever."""
        super().on_response_complete()
        # Of the request that was answered, not of one that came behind it and is worked at.
        mine = self.cycle is None or self.cycle.response_complete
        if mine and not self._whole and not self.transport.is_closing():
            self._wait(self.head_seconds)

    def _refuse(self, status: HTTPStatus) -> None:
        text = f"{status.phrase}\n".encode()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, status.phrase.encode(), len(text), text)
            )
        self.transport.close()

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _look(self) -> None:
        self._stuck = None
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            # To close would be to wait for the client to take the rest, for ever.
            self.transport.abort()
            return
        self._unsent = unsent
        self._stuck = self.loop.call_later(self.send_seconds, self._look)

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _wait(self, seconds: float) -> None:
        self._unwait()
        self._timer = self.loop.call_later(seconds, self._late)

    def _unwait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(
    head_seconds: float, idle_seconds: float, send_seconds: float = Connection.send_seconds
) -> type[Connection]:
    """Return the class of connections with these bounds of time."""
    found: type[Connection] = type(
        "BoundedConnection",
        (Connection,),
        {"head_seconds": head_seconds, "idle_seconds": idle_seconds, "send_seconds": send_seconds},
    )
    return found
