"""A server in this process, on a real socket, for tests of the HTTP API.

``serving(location, **options)`` is a context manager that gives a `Serving`; the fixtures `server`
(an empty store in memory) and `disk_server` (an empty store on disk) are made of it.
"""

import contextlib
import json
import threading
import time
from urllib.parse import urlencode

import urllib3

from diced.server.app import App
from diced.server.options import Options
from diced.server.serve import listen, make_server


class Reply:
    """An answer: status, headers (any case), body."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.data

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<Reply {self.status} {self.body[:300]!r}>"


class Serving:
    """A running server: its URL, its application, and a client that never retries."""

    def __init__(self, app, url):
        self.app = app
        self.url = url
        self.netloc = url.partition("//")[2]
        self._pool = urllib3.PoolManager(maxsize=40)

    @property
    def store(self):
        """The server's own store object."""
        return self.app.site.store

    def ask(self, method, path, body=None, headers=None, query=None, decode=True):
        """Send a request; `path` goes out as it is, from ``/api`` on or whole."""
        path = path if path.startswith("/") else f"/api/{path}"
        path += f"?{urlencode(query)}" if query else ""
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
        return Reply(
            self._pool.request(
                method, self.url + path, body=body, headers=headers, retries=False,
                redirect=False, decode_content=decode, timeout=60,
            )
        )  # fmt: skip

    def get(self, path, **more):
        """GET, which must go well."""
        reply = self.ask("GET", path, **more)
        assert reply.status == 200, reply
        return reply

    def post(self, path, body=b"", **more):
        """POST, which must go well."""
        reply = self.ask("POST", path, body, **more)
        assert reply.status == 200, reply
        return reply

    def refused(self, method, path, body=None, status=400, **more):
        """Send what must be refused with `status`; return what the answer says."""
        reply = self.ask(method, path, body, **more)
        assert reply.status == status, reply
        return reply.text

    def repo(self, alias="test", description=""):
        """Create a repo; return its UUID."""
        return self.post("repos", {"alias": alias, "description": description}).json["root"]

    def instance(self, uuid, typename, name, **settings):
        """Create a data instance."""
        fields = {"typename": typename, "dataname": name, **settings}
        return self.post(f"repo/{uuid}/instance", fields)

    def close(self):
        self._pool.clear()


@contextlib.contextmanager
def serving(location, **options):
    """Serve a location until the block ends."""
    listener = listen("127.0.0.1", 0)
    app = App(Options(location=str(location), **options))
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    client = Serving(app, f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        yield client
    finally:
        client.close()
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"
