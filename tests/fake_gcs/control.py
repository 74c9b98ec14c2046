"""`Server`: a fake server as a test sees it, from another process than the server's own."""

import atexit
import http.client
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    """One request in the log; times are those of time.monotonic(), status 0 is no answer."""

    start: float
    end: float
    method: str
    operation: str
    key: str
    status: int
    received: int
    sent: int


class Server:
    """A running fake; a context manager that stops it.

    `process` is the server's, if it is to be stopped; `bucket` exists there.
    """

    fake = True  # faults, latency and the log are there

    def __init__(self, endpoint, bucket, process=None):
        self.endpoint, self.bucket = endpoint, bucket
        self._process, self._owner = process, os.getpid()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def _order(self, action, **order):
        host = urlsplit(self.endpoint).netloc
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request("POST", f"/_fake/{action}", json.dumps(order))
            answer = connection.getresponse()
            found = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(found)
        return found

    def url(self, prefix=None):
        """Return a gs:// url in the bucket: a prefix never used before unless one is given."""
        prefix = prefix or "t" + secrets.token_hex(6)
        return f"gs://{self.bucket}/{prefix}"

    def environ(self):
        """Return what a process needs in its environment to reach the server."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def new_bucket(self, name=None, access="open", tokens=None):
        """Make an empty bucket and return its name.

        `access`: "open" lets anybody do anything, "private" wants a token for everything,
        "public" for writes only. `tokens` maps each good token to "read" or "write".
        """
        return self._order("bucket", name=name, access=access, tokens=tokens)

    def drop_bucket(self, name):
        """Remove a bucket and all that is in it; later requests to it are not in the log."""
        self._order("drop_bucket", name=name)

    def latency(self, seconds):
        """Delay every answer from now on; its effect comes halfway. Requests overlap."""
        self._order("latency", seconds=seconds)

    def faults(self, seed=0, **rates):
        """Let requests go wrong at random, each kind at its rate; without rates, no more.

        lost: it takes effect, then the connection closes without an answer. reset: the connection
        is reset before any effect. hang: no effect, no answer, no close. cut: the body of a get
        ends early. slow: up to 0.3 s more. e429, e503, e500, ...: this status and no effect.
        """
        self._order("faults", seed=seed, rates=rates)

    def fail(self, count, *, how, method=None, path=None, operation=None, after=0, delay=0.3):
        """Let the next `count` matching requests go wrong, after the first `after` of them.

        `how` is a kind as in `faults` or a status. `path` is a regular expression searched in the
        decoded path and in the key. "slow" delays by `delay` seconds.
        """
        order = {"method": method, "path": path, "operation": operation, "after": after}
        self._order("fail", count=count, how=how, delay=delay, **order)

    def disconnect(self):
        """Close all idle connections, as servers do with those kept open for long."""
        self._order("disconnect")

    def limit(self, seconds=1.0):
        """Refuse with 429 a second update of a name within `seconds`; 0 is off."""
        self._order("limit", seconds=seconds)

    def calm(self):
        """Stop latency, faults and limit, and empty the log."""
        self._order("calm")

    def log(self):
        """Return the requests since the last `clear`, in the order of their answers."""
        return [Request(*entry) for entry in self._order("log")]

    def clear(self):
        """Empty the log."""
        self._order("clear")

    def count(self):
        """Return how many requests of each operation there were since the last `clear`."""
        return self._order("count")

    def depth(self):
        """Return how many round trips deep the log is.

        That is the length of the longest chain of requests of which no two overlap in time.
        Without latency even concurrent requests may not overlap: set one.
        """
        return self._order("depth")

    def keys(self, prefix=""):
        """Return the sorted names of the objects in the bucket that begin with `prefix`."""
        return self._order("keys", bucket=self.bucket, prefix=prefix)

    def stop(self):
        """End the process; twice does no harm, and forked children leave it running."""
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        self._process = None
        atexit.unregister(self.stop)
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def start(port=0):
    """Start a fake in a process that ends with this one, and return its `Server`."""
    package = Path(__file__).resolve().parent
    process = subprocess.Popen(
        [sys.executable, "-m", package.name, "--port", str(port), "--parent", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=package.parent,
        text=True,
    )
    endpoint = process.stdout.readline().strip()
    server = Server(endpoint, "fake-bucket", process)
    if not endpoint:
        server.stop()
        raise RuntimeError(f"the fake server ended with {process.returncode} before it served")
    atexit.register(server.stop)
    return server
