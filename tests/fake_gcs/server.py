"""The process: requests through faults and latency to the API, and the admin path beside it."""

import asyncio
import json
import os
import secrets
import threading
import weakref

from .api import JSON, Api, perform
from .objects import Bucket, Refused, State, error_body
from .plan import Plan, depth
from .wire import Connection


class Fake:
    """All of the fake but its socket."""

    def __init__(self):
        self.state, self.plan = State(), Plan()
        self.api = Api(self.state)
        self.loop = asyncio.get_running_loop()
        self.dropped = set()
        self.connections = weakref.WeakSet()

    def connect(self):
        """Return the protocol of a new connection."""
        connection = Connection(self.handle)
        self.connections.add(connection)
        return connection

    def handle(self, connection, request):
        """Answer one request, now or later."""
        if request.path.startswith("/_fake/"):
            self._admin(connection, request)
            return
        try:
            run = self.api.route(request)
        except Exception as error:
            refused = error  # `error` is unbound after this clause

            def run():
                raise refused

        if request.bucket in self.dropped:  # a client of an earlier test, still at work
            connection.answer(*perform(run, request))
            return
        how, delay = self.plan.draw(request)
        delay += self.plan.latency
        if delay:  # the effect comes halfway
            self.loop.call_later(delay / 2, self._act, connection, request, run, how, delay / 2)
        else:
            self._act(connection, request, run, how, 0)

    def _act(self, connection, request, run, how, delay):
        if how in ("reset", "hang"):
            answer = None
        elif isinstance(how, int):
            reason = {429: "rateLimitExceeded", 503: "backendError"}.get(how, "injected")
            headers = self.plan.retry_after() if how in (429, 503) else ()
            answer = how, [JSON, *headers], error_body(how, f"Injected {how}", reason)
        else:
            answer = perform(run, request)
        if delay:
            self.loop.call_later(delay, self._reply, connection, request, how, answer)
        else:
            self._reply(connection, request, how, answer)

    def _reply(self, connection, request, how, answer):
        if how == "hang":
            self.plan.note(request, 0, 0)
            return
        if how in ("reset", "lost"):
            self.plan.note(request, 0, 0)
            connection.drop(how == "reset")
            return
        status, headers, body = answer
        cut = None
        if how == "cut" and request.operation == "get" and status in (200, 206):
            cut = self.plan.random.randrange(len(body)) if len(body) else None
        note = self.plan.note
        connection.answer(
            *(status, headers, body, cut, request.method == "HEAD"),
            lambda sent: note(request, status, sent),
        )

    def _admin(self, connection, request):
        try:
            order = json.loads(bytes(request.body)) if len(request.body) else {}
            found = getattr(self, "order_" + request.path.removeprefix("/_fake/"))(**order)
            status, body = 200, json.dumps(found).encode()
        except (ValueError, TypeError, KeyError, AttributeError, Refused) as error:
            status, body = 400, json.dumps(f"{type(error).__name__}: {error}").encode()
        connection.answer(status, [JSON], body)

    # The admin path

    def order_ping(self):
        return os.getpid()

    def order_latency(self, seconds):
        self.plan.latency = seconds

    def order_faults(self, seed=0, rates=None):
        self.plan.order_faults(seed, rates or {})

    def order_fail(self, **rule):
        self.plan.order_failure(**rule)

    def order_limit(self, seconds):
        self.state.interval = seconds

    def order_calm(self):
        """No latency, faults, rate limit or log."""
        self.plan.reset()
        self.state.interval = 0.0

    def order_clear(self):
        self.plan.clear()

    def order_log(self):
        return list(self.plan.log)

    def order_count(self):
        return dict(self.plan.counts)

    def order_depth(self):
        return depth(self.plan.log)

    def order_disconnect(self):
        for connection in list(self.connections):
            connection.close_idle()

    def order_keys(self, bucket, prefix=""):
        return [name for name in self.state.bucket(bucket).names if name.startswith(prefix)]

    def order_bucket(self, name=None, access="open", tokens=None):
        if access not in ("open", "private", "public"):
            raise ValueError(f"access {access!r}: open, private or public is wanted")
        name = name or "fake-" + secrets.token_hex(6)
        self.state.buckets[name] = Bucket(name, access, tokens)
        self.dropped.discard(name)
        return name

    def order_drop_bucket(self, name):
        self.state.buckets.pop(name, None)
        self.dropped.add(name)


def _watch_parent(parent):
    """Exit when standard input closes or the parent is gone."""

    def wait():
        while os.read(0, 4096):
            pass
        os._exit(0)

    def poll():
        while True:
            if os.getppid() != parent:  # a forked child may still hold the pipe open
                os._exit(0)
            event.wait(1.0)

    event = threading.Event()
    threading.Thread(target=wait, daemon=True).start()
    threading.Thread(target=poll, daemon=True).start()


async def _serve(port, bucket):
    fake = Fake()
    fake.order_bucket(bucket)
    server = await fake.loop.create_server(fake.connect, "127.0.0.1", port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main(arguments):
    """Serve until killed; the first line printed is the endpoint."""
    import argparse

    parser = argparse.ArgumentParser(prog="fake_gcs", description="A fake Google Cloud Storage.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--bucket", default="fake-bucket", help="a bucket to begin with")
    parser.add_argument("--parent", type=int, help="exit with this process, or at end of input")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _watch_parent(options.parent)
    try:
        asyncio.run(_serve(options.port, options.bucket))
    except KeyboardInterrupt:
        return 130
    return 0
