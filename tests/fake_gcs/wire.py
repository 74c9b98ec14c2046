"""HTTP/1.1 by hand: one `Connection` per client, bodies received and sent without copies."""

import asyncio
import socket
import struct
import time
from urllib.parse import unquote_plus

HEAD_LIMIT = 1 << 16
PIECE = 1 << 20
REASONS = {
    **{200: "OK", 204: "No Content", 206: "Partial Content", 304: "Not Modified"},
    **{308: "Resume Incomplete", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden"},
    **{404: "Not Found", 409: "Conflict", 410: "Gone", 412: "Precondition Failed"},
    **{416: "Requested Range Not Satisfiable", 429: "Too Many Requests"},
    **{500: "Internal Server Error", 503: "Service Unavailable"},
}


class Request:
    """One request, complete with its body."""

    __slots__ = (
        *("body", "headers", "key", "method", "operation", "path", "query", "query_text"),
        *("bucket", "start"),
    )

    def __init__(self, method, target, headers):
        self.start = time.monotonic()
        self.method, self.headers, self.body = method, headers, b""
        self.path, _, text = target.partition("?")
        self.query_text = text
        self.query = {}
        for pair in text.split("&") if text else ():
            name, _, value = pair.partition("=")
            self.query[unquote_plus(name)] = unquote_plus(value)
        self.operation, self.bucket, self.key = "other", "", ""


class Connection(asyncio.BufferedProtocol):
    """Reads requests one after the other; `handler(connection, request)` answers each."""

    def __init__(self, handler):
        self._handler = handler
        self._head = memoryview(bytearray(HEAD_LIMIT))
        self._filled = 0  # bytes of _head in use
        self._request = None  # whose body is awaited
        self._body, self._received = None, 0
        self._chunked = None  # raw bytes of a chunked body not decoded yet
        self._busy = False  # a request is being answered
        self._pending, self._done, self._last = None, None, False
        self._paused = False

    # What asyncio calls

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=0)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get_buffer(self, hint):
        if self._body is not None:
            return self._body[self._received :]
        if self._filled == HEAD_LIMIT:
            raise ValueError("a request head is too long")
        return self._head[self._filled :]

    def buffer_updated(self, count):
        if self._body is not None:
            self._received += count
            if self._received == len(self._body):
                self._finish(self._body)
            return
        self._filled += count
        if self._chunked is not None:
            self._take_chunks()
        elif not self._busy:
            self._take_head()
        elif self._filled == HEAD_LIMIT:
            self.transport.abort()  # pipelining is not served

    def connection_lost(self, error):
        if self._done:
            self._done(self._sent)
        self._pending = self._done = None
        self._busy = True

    def pause_writing(self):
        self._paused = True

    def resume_writing(self):
        self._paused = False
        if self._pending is not None:
            self._pump()

    # Requests

    def _consume(self, count):
        rest = bytes(self._head[count : self._filled])
        self._head[: len(rest)] = rest
        self._filled = len(rest)

    def _take_head(self):
        raw = bytes(self._head[: self._filled])
        end = raw.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = raw[:end].decode("latin-1").split("\r\n")
        try:
            method, target, version = first.split(" ")
        except ValueError:
            self.transport.abort()
            return
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        request = Request(method, target, headers)
        self._busy = True
        self._last = version != "HTTP/1.1" or headers.get("connection", "").lower() == "close"
        if headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", ""):
            self._request, self._chunked = request, bytearray()
            self._consume(end + 4)
            self._take_chunks()
            return
        length = int(headers.get("content-length") or 0)
        if end + 4 + length <= self._filled:
            request.body = raw[end + 4 : end + 4 + length]
            self._consume(end + 4 + length)
            self._handler(self, request)
            return
        self._request = request
        begun = raw[end + 4 :]
        self._body, self._received = memoryview(bytearray(length)), len(begun)
        self._body[: len(begun)] = begun
        self._filled = 0

    def _finish(self, body):
        request, self._request, self._body = self._request, None, None
        request.body = body
        self._handler(self, request)

    def _take_chunks(self):
        while True:
            raw = bytes(self._head[: self._filled])
            line = raw.find(b"\r\n")
            if line < 0:
                return
            size = int(raw[:line].split(b";")[0], 16)
            if size == 0:
                end = raw.find(b"\r\n\r\n", line)
                if end < 0:
                    return
                self._consume(end + 4)
                body, self._chunked = self._chunked, None
                self._finish(memoryview(body))
                return
            # A chunk longer than the buffer is taken in parts: its size line is rewritten.
            here = min(size, len(raw) - line - 2)
            if here == size and len(raw) < line + 2 + size + 2:
                here -= 1
            if here <= 0:
                return
            self._chunked += raw[line + 2 : line + 2 + here]
            if here == size:
                self._consume(line + 2 + size + 2)
                continue
            self._filled = 0
            rest = b"%x\r\n" % (size - here) + raw[line + 2 + here :]
            self._head[: len(rest)] = rest
            self._filled = len(rest)
            return

    # Answers

    def answer(self, status, headers, body=b"", cut=None, bodiless=False, done=None):
        """Send an answer, or no more than `cut` bytes of its body and then close.

        `done` is called with the number of body bytes just before the last of them are sent.
        """
        if self.transport.is_closing():
            if done:
                done(0)
            return
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if status not in (204, 304):
            lines.append(f"Content-Length: {len(body)}")
        if self._last:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if bodiless:
            body = b""
        if cut is not None:
            body, self._last = memoryview(body)[:cut], True
        if len(body) <= HEAD_LIMIT:
            if done:
                done(len(body))
            self.transport.write(b"".join((head, body)))
            self._answered()
            return
        self.transport.write(head)
        self._pending, self._done = memoryview(body), done
        self._sent = 0
        if not self._paused:
            self._pump()

    def _pump(self):
        while not self._paused:
            piece = self._pending[self._sent : self._sent + PIECE]
            self._sent += len(piece)
            if self._sent < len(self._pending):
                self.transport.write(piece)
                continue
            if self._done:
                self._done(self._sent)
            self.transport.write(piece)
            self._pending = self._done = None
            self._answered()
            return

    def _answered(self):
        if self._last:
            self.transport.close()
            return
        self._busy = False
        if self._filled:
            self._take_head()

    def drop(self, reset):
        """Close without an answer; with a RST if `reset`."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def close_idle(self):
        """Close unless a request has begun."""
        if not (self._busy or self._filled or self._request):
            self.transport.close()
