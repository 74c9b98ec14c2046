"""A server under load: small GETs, large reads, many writers, idle connections.

``python -m benchmarks.server [--seconds 5] [--workers 2] [--only small read write idle]``

Small GETs come from wrk (Debian's package of that name), on the same processors as the server.
Large reads are compared, in the same run, with reading the same box by the library in one process,
and with a bare copy of as many bytes over a loopback socket; the server's share of the smaller is
printed. The writers check every voxel afterwards. Everything lies on a local disk,
``durability="process"`` unless ``--durability power`` is given.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np

from benchmarks.common import em
from diced import DicedStore

MB = 1e6


def free_port():
    """Return a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(location, workers, durability):
    """Run ``diced serve`` until the block ends; give its port."""
    port = free_port()
    words = [
        sys.executable, "-m", "diced", "serve", location, "--port", str(port),
        "--workers", str(workers), "--durability", durability,
    ]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        while True:
            try:
                ask(port, "GET", "/api/server/info")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() - began > 30:
                    raise
                time.sleep(0.005)
        print(f"ready {time.monotonic() - began:.2f} s after the start of the process")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(port, method, path, body=None, connection=None):
    """Send one request; return the body of its answer."""
    own = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        own.request(method, path, body)
        answer = own.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {found[:200]}")
        return found
    finally:
        if connection is None:
            own.close()


def prepare(location, side, durability):
    """Make a repo with a volume, a few keys and an open version; return its UUID."""
    with DicedStore(location, durability=durability) as store:
        repo = store.create_repo("bench")
        array = repo.create_array("gray", np.uint8)
        seed = em((128, 256, 256))
        cube = np.tile(seed, [-(-side // n) for n in seed.shape])[:side, :side, :side]
        array[:side, :side, :side] = cube
        repo.create_array("kv", kind="keyvalue")["small"] = b"x" * 30
        repo.create_array("target", np.uint32)
        return repo.uuid


# -- small GETs ----------------------------------------------------------------------------


def small(port, uuid, seconds):
    """Yield rows of requests a second, by wrk."""
    if shutil.which("wrk") is None:
        yield "small GETs", "wrk is not installed"
        return
    paths = {
        "server info": "/api/server/info",
        "node status": f"/api/node/{uuid}/status",
        "a key of 30 bytes": f"/api/node/{uuid}/kv/key/small",
        "instance info": f"/api/node/{uuid}/gray/info",
    }
    for name, path in paths.items():
        yield f"{name}, keep-alive", f"{wrk(port, path, seconds, 32):,.0f} requests/s"
    path = paths["node status"]
    rate = wrk(port, path, seconds, 32, "-H", "Connection: close")
    yield "node status, Connection: close", f"{rate:,.0f} requests/s"


def wrk(port, path, seconds, connections, *more):
    """Return requests a second."""
    words = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        *more,
        f"http://127.0.0.1:{port}{path}",
    ]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(text)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])


# -- large reads ---------------------------------------------------------------------------


def read(port, location, uuid, side, durability):
    """Yield rows about reading a cube: by the library, by a bare socket, by the server."""
    with DicedStore(location, durability=durability) as store:
        array = store.open_repo("bench")["gray"]
        box = (slice(0, side),) * 3
        path = f"/api/node/{uuid}/gray/raw/0_1_2/{side}_{side}_{side}/0_0_0"
        out = bytearray(side**3)
        peer = socket.create_connection(("127.0.0.1", port))
        with Copies(out) as copies:
            calls = {
                "library": lambda: array[box],
                "socket": copies.once,
                "server": lambda: fetch(peer, path, out),
            }
            found = {name: [] for name in calls}
            for _ in range(15):
                for name, call in calls.items():
                    found[name].append(rate(call, side))
        peer.close()
        if bytes(out) != array[box].tobytes():
            raise AssertionError("the server's voxels are others")
    best = {name: statistics.median(rates) for name, rates in found.items()}
    for name, each in best.items():
        yield f"{side}^3 uint8, {name}", f"{each:.0f} MB/s"
    bound = min(best["library"], best["socket"])
    yield "the server over half the smaller", f"{best['server'] / (bound / 2):.2f}"


def rate(call, side):
    begin = time.perf_counter()
    call()
    return side**3 / (time.perf_counter() - begin) / MB


def fetch(peer, path, out):
    """Read an answer into memory that is there, with as little of a client as can be."""
    peer.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += peer.recv(1024)
    head, _, first = head.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head)
    view, at = memoryview(out), len(first)
    view[:at] = first
    while at < len(out):
        at += peer.recv_into(view[at:])


class Copies:
    """A process that fills a buffer over a socket whenever it gets a byte."""

    def __init__(self, out):
        self.out = out

    def __enter__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self._process = get_context("fork").Process(
            target=_send_copies, args=(listener, len(self.out)), daemon=True
        )
        self._process.start()
        self._socket = socket.create_connection(listener.getsockname())
        listener.close()
        return self

    def once(self):
        self._socket.send(b"?")
        view, at = memoryview(self.out), 0
        while at < len(self.out):
            at += self._socket.recv_into(view[at:])

    def __exit__(self, *_error):
        self._socket.close()
        self._process.join()


def _send_copies(listener, count):
    peer, _ = listener.accept()
    data = bytes(count)
    while peer.recv(1):
        peer.sendall(data)


# -- writers -------------------------------------------------------------------------------


def write(port, location, uuid, clients, rounds, durability):
    """Yield rows about clients that write blocks of 64 voxels cubed, several each."""
    side = 64
    errors, spent = [], []

    def work(number):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            for turn in range(rounds):
                data = block(number, turn)
                path = f"/api/node/{uuid}/target/raw/0_1_2/64_64_64/{turn * side}_{number * side}_0"
                begin = time.perf_counter()
                ask(port, "POST", path, data.tobytes(), connection)
                spent.append(time.perf_counter() - begin)
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    begin = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    took = time.perf_counter() - begin
    if errors:
        raise errors[0]
    wrong = 0
    with DicedStore(location, readonly=True, durability=durability) as store:
        array = store.open_repo("bench")["target"]
        for number in range(clients):
            for turn in range(rounds):
                found = array[
                    :side, number * side : (number + 1) * side, turn * side : (turn + 1) * side
                ]
                wrong += int((found != block(number, turn)).sum())
    count = clients * rounds
    yield (
        f"{clients} clients, 64^3 uint32 each POST",
        (
            f"{count / took:.0f} POSTs/s, {count * side**3 * 4 / took / MB:.0f} MB/s,"
            f" p50 {1000 * statistics.median(spent):.0f} ms, longest {1000 * max(spent):.0f} ms"
        ),
    )
    yield "voxels that are wrong afterwards", str(wrong)


def block(number, turn):
    """Return voxels that nobody else writes."""
    rng = np.random.default_rng(1000 * number + turn)
    return rng.integers(0, 2**16, (64, 64, 64), np.uint32)


# -- idle connections ----------------------------------------------------------------------


def idle(port, uuid, count, seconds):
    """Yield a row about connections that do nothing while others work."""
    path = f"/api/node/{uuid}/status"
    held = []
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        ask(port, "GET", path, connection=connection)
        held.append(connection)
    beside = wrk(port, path, seconds, 32) if shutil.which("wrk") else 0.0
    closed = 0
    for connection in held:
        try:
            closed += connection.sock is None or not json.loads(
                ask(port, "GET", path, connection=connection)
            )
        except (OSError, http.client.HTTPException):
            closed += 1
        connection.close()
    yield (
        f"{count} connections held open",
        (f"{count - closed} still answer after {seconds} s; beside them {beside:,.0f} requests/s"),
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument("--only", nargs="*", default=["small", "read", "write", "idle"])
    args = parser.parse_args()
    place = tempfile.mkdtemp(prefix="diced-bench-")
    try:
        location = os.path.join(place, "store")
        uuid = prepare(location, args.side, args.durability)
        with serving(location, args.workers, args.durability) as port:
            suites = {
                "small": lambda: small(port, uuid, args.seconds),
                "read": lambda: read(port, location, uuid, args.side, args.durability),
                "write": lambda: write(
                    port, location, uuid, args.clients, args.rounds, args.durability
                ),
                "idle": lambda: idle(port, uuid, args.idle, args.seconds),
            }
            print(f"{args.workers} worker processes, {os.cpu_count()} processors")
            for name in args.only:
                for what, figure in suites[name]():
                    print(f"{what:48} {figure}", flush=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
