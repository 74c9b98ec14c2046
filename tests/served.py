"""``diced serve`` as a process of its own, for tests of how it starts, stops, and bears abuse."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys


class Served:
    """A running ``diced serve``."""

    def __init__(self, process, url):
        self.process = process
        self.url = url
        self.netloc = url.partition("//")[2]

    def ask(self, method, path, body=None, headers=None, connection=None):
        """Send a request below ``/api``; return its status and body."""
        own = connection or http.client.HTTPConnection(self.netloc, timeout=60)
        if isinstance(body, dict):
            body = json.dumps(body)
        try:
            own.request(method, f"/api/{path}", body, headers or {})
            answer = own.getresponse()
            return answer.status, answer.read()
        finally:
            if connection is None:
                own.close()

    def get(self, path):
        """GET what must be there; return its JSON."""
        status, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path, body=b""):
        """POST what must go well; return the body."""
        status, found = self.ask("POST", path, body)
        assert status == 200, found
        return found

    def repo(self):
        """Create a repo; return its UUID."""
        return json.loads(self.post("repos", {"alias": "test"}))["root"]

    def furnish(self):
        """Make a repo, its `uuid` kept, with an instance of five types and a block of zeros."""
        self.uuid = self.repo()
        for kind, name in (("uint8blk", "gray"), ("labelblk", "seg"), ("keyvalue", "kv"),
                           ("roi", "mask"), ("labelgraph", "graph")):  # fmt: skip
            self.post(f"repo/{self.uuid}/instance", {"typename": kind, "dataname": name})
        self.post(f"node/{self.uuid}/gray/raw/0_1_2/64_64_64/0_0_0", bytes(64**3))
        self.get("openapi.json")

    def stop(self, number=signal.SIGTERM):
        """Tell it to end; return its exit code and what it wrote to standard error."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def workers(self):
        """Return the ids of its worker processes."""
        path = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(each) for each in path.read_text().split()]

    def memory(self, field="VmRSS"):
        """Return the bytes that it occupies."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (each for each in text.splitlines() if each.startswith(f"{field}:"))
        return 1024 * int(line.split()[1])

    def forget_peak(self):
        """Have ``VmHWM`` begin anew."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def served(*words, env=None):
    """Run ``diced serve`` with a free port until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "diced", "serve", *map(str, words), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert " is served at http://" in line, (line, process.stderr.read() if not line else "")
        yield Served(process, line.split()[-1])
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        process.stdout.close()
        process.stderr.close()
