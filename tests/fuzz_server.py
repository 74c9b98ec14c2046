"""Requests made from the server's own OpenAPI description, valid and hostile: no answer is 5xx.

``python -m tests.fuzz_server --requests 50000 --seed 1``

Every operation of ``/api/openapi.json`` is called with parameters that are right, nearly right, or
meant to break something, and bodies likewise, over a real socket, while the store changes under it.
The last line is the result; the exit status is 0 only if no answer was 5xx, none was broken off,
and the server still works and has not grown.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

TYPES = (
    "uint8blk", "uint16blk", "uint32blk", "uint64blk", "float32blk", "rgba8blk", "labelblk",
    "keyvalue", "roi", "imagetile", "labelgraph",
)  # fmt: skip
HOSTILE = (
    "", "0", "-1", "1", "2147483647", "2147483648", "-2147483649", "9223372036854775808", "1e9",
    "nan", "..", "../..", "../../etc/passwd", "%00", "\x00", "a\nb", "a/b", " ", "'", '"', "<b>",
    "é", "\U0001d518", "_", "__", "1_", "_1", "1_2", "1_2_3_4", "-1_-1_-1", "0_0_0", "64_64_64",
    "1_1_1", "2147483647_2147483647_2147483647", "99999999999999999999999_1_1", "A" * 300, "{}",
    "[]", "null", "true", "0x10", "\uff11", "1,2,3", "xy", "XZ", "yz", "0_1_2", "0_2", "jpeg",
    "png", "jpeg:101",
)  # fmt: skip
POINTS = ("0_0_0", "1_2_3", "-64_0_64", "64_64_64", "-5_-6_-7", "2147483647_0_0", "10_20_30")
SIZES = ("1_1_1", "64_64_64", "65_3_2", "32_32_32", "128_64_64", "4_4_4")
KNOWN = {
    "dims": ("0_1_2", "xy", "xz", "yz", "0_1", "vol"),
    "plane": ("xy", "xz", "yz", "XY"),
    "scale": ("0", "1", "2"),
    "compression": ("lz4", "gzip", "googlegzip", "uncompressed", "jpeg", "blocks", "none"),
    "format": ("png", "jpg", "jpeg:80", "tif", "bmp", "jpeg"),
    "blocks": ("0,0,0", "0,0,0,1,1,1", "-1,0,0"),
    "key": ("a", "b", "first", "x/y"),
    "batchsize": ("1", "3", "16"),
    "roi": ("inst-roi",),
    "spanx": ("1", "2", "3"),
    "throttle": ("on", "true", "off"),
}
JUNK = (
    b"", b"{", b"[]", b"{}", b"null", b"0", b'"x"', b"\xff" * 64, bytes(1000), b"[[1,2,3]]",
    b"[[0,0,0,1],[0,1,5,2]]", b"[1,2,3]", b'{"a": "b"}', b"[" * 5000, b'{"note": "n"}',
    b'["a","b"]',
    b'{"Vertices":[{"Id":1,"Weight":2}],"Edges":[{"Id1":1,"Id2":2,"Weight":3}]}',
    b'{"MinPoint":[0,0,0],"MaxPoint":[63,63,63]}', b"[8.0,8.0,8.0]", b'{"data": [1e999]}',
    b'{"typename": "roi", "dataname": "x\\u0000"}', b'{"branch": "~"}', b"\x0a\x01a\x12\x02bc",
    gzip.compress(bytes(10_000_000)), bytes(64**3), bytes(8 * 64**3),
)  # fmt: skip


class Fuzzer:
    """Makes requests of one server.

    Parameters
    ----------
    netloc : str
        ``host:port``.
    seed : int
    """

    def __init__(self, netloc: str, seed: int):
        self.random = random.Random(seed)
        self.connection = http.client.HTTPConnection(netloc, timeout=60)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.uuids: list[str] = []
        self.operations: list[tuple[str, str, list[dict[str, Any]], bool, list[str]]] = []
        self._describe()
        self._furnish()

    def send(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        self.connection.request(method, path, body or None, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def _describe(self) -> None:
        status, body = self.send("GET", "/api/openapi.json", b"", {})
        assert status == 200, body
        described = json.loads(body)
        named = described["components"]["parameters"]
        for path, item in described["paths"].items():
            shared = item.get("parameters", [])
            for method, operation in item.items():
                if method in ("get", "post", "put", "delete", "head"):
                    found = [
                        named[each["$ref"].rpartition("/")[2]] if "$ref" in each else each
                        for each in (*shared, *operation.get("parameters", []))
                    ]
                    takes = "requestBody" in operation
                    types = operation.get("tags", [])
                    self.operations.append((method.upper(), path, found, takes, types))

    def _furnish(self) -> None:
        """Make a repo with an instance of every type, one version locked, a child open."""
        _, body = self.send("POST", "/api/repos", b'{"alias": "fuzz"}', {})
        root = json.loads(body)["root"]
        for each in TYPES:
            fields = {"typename": each, "dataname": f"inst-{each}"}
            if each == "imagetile":
                fields["source"] = "inst-uint8blk"
            status, body = self.send(
                "POST", f"/api/repo/{root}/instance", json.dumps(fields).encode(), {}
            )
            assert status == 200, body
        self.send("POST", f"/api/node/{root}/inst-keyvalue/key/first", b"value", {})
        self.send(
            "POST", f"/api/node/{root}/inst-uint8blk/raw/0_1_2/64_64_64/0_0_0", bytes(64**3), {}
        )
        self.send("POST", f"/api/node/{root}/commit", b"{}", {})
        _, body = self.send("POST", f"/api/node/{root}/newversion", b"{}", {})
        self.uuids = [root, json.loads(body)["child"]]

    def value(self, parameter: dict[str, Any], types: list[str]) -> str:
        """Return what a parameter may be: mostly what fits, else anything."""
        roll = self.random.random()
        lower = parameter["name"].lower()
        schema = parameter.get("schema", {})
        choices = [str(each) for each in (*schema.get("enum", ()), *schema.get("examples", ()))]
        if lower in ("uuid", "u1", "u2", "uuid1", "uuid2"):
            if roll < 0.9:
                return self.random.choice(self.uuids)[: self.random.choice((6, 12, 32, 32))]
        elif lower == "name":
            if roll < 0.95:
                fitting = [each for each in types if each in TYPES] if roll < 0.8 else TYPES
                return f"inst-{self.random.choice(fitting or TYPES)}"
        elif roll < 0.7:
            if choices and roll < 0.4:
                return self.random.choice(choices)
            if lower in KNOWN:
                return self.random.choice(KNOWN[lower])
            if "size" in lower:
                return self.random.choice(SIZES)
            if lower in ("offset", "coord", "point", "block", "span", "tl", "tr", "bl"):
                return self.random.choice(POINTS)
            return self.random.choice((*POINTS, *SIZES, "1", "5", "a"))
        if roll < 0.97:
            return self.random.choice(HOSTILE)
        return "".join(
            chr(self.random.randrange(1, 0x2FF)) for _ in range(self.random.randrange(12))
        )

    def body(self) -> tuple[bytes, dict[str, str]]:
        """Return a body and the headers that go with it."""
        data = self.random.choice(JUNK)
        roll = self.random.random()
        if roll < 0.1 and data:
            data = bytearray(data)
            for _ in range(5):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
            data = bytes(data)
        if roll > 0.95:
            return gzip.compress(data, 1), {"Content-Encoding": "gzip"}
        if roll > 0.92:
            return data, {"Content-Encoding": self.random.choice(("gzip", "br", "x", "identity"))}
        return data, {}

    def request(self) -> tuple[str, str, bytes, dict[str, str]]:
        """Make up a request."""
        method, path, parameters, takes, types = self.random.choice(self.operations)
        query = {}
        for each in parameters:
            name = each["name"]
            if each["in"] == "path":
                path = path.replace("{" + name + "}", quote(self.value(each, types), safe=""))
            elif each["in"] == "query" and self.random.random() < 0.4:
                query[name] = self.value(each, types)
        if query:
            path += "?" + urlencode(query)
        if self.random.random() < 0.03:
            method = self.random.choice(
                ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")
            )
        data, headers = self.body() if takes or self.random.random() < 0.1 else (b"", {})
        if self.random.random() < 0.05:
            ranges = ("bytes=0-1", "bytes=-5", "bytes=9-1", "x", "bytes=0-0,1-1")
            headers["Range"] = self.random.choice(ranges)
        return method, path, data, headers

    def run(self, count: int) -> None:
        """Make so many requests."""
        for number in range(count):
            if number % 2000 == 1999:
                self._furnish()
            method, path, data, headers = self.request()
            if "settings" in path or ("/api/repo/" in path and method == "DELETE"):
                continue  # these are meant to change what all others rely on
            try:
                status, found = self.send(method, path, data, headers)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{method} {path} with {len(data)} bytes: {error!r}")
                self.connection.close()
                continue
            self.statuses[status] += 1
            if status >= 500:
                self.failures.append(
                    f"{method} {path} with {data[:80]!r}: {status} {found[:200]!r}"
                )


def resident(pid: int) -> int:
    """Return a process's memory in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(text.partition("VmRSS:")[2].split()[0])


def fuzz(netloc: str, count: int, seed: int) -> Fuzzer:
    """Make so many requests of a server; return what came of it."""
    fuzzer = Fuzzer(netloc, seed)
    try:
        fuzzer.run(count)
    finally:
        fuzzer.connection.close()
    return fuzzer


def main() -> int:
    """Fuzz a server of its own, and print."""
    from serving import serving

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    with serving("memory://fuzz") as server:
        fuzzer = fuzz(server.netloc, args.requests, args.seed)
        server.get("repos/info")
    for each in fuzzer.failures[:20]:
        print(each)
    print(", ".join(f"{status}: {n}" for status, n in sorted(fuzzer.statuses.items())))
    print(
        f"requests={sum(fuzzer.statuses.values())} seed={args.seed}"
        f" seconds={time.monotonic() - began:.0f} failures={len(fuzzer.failures)}"
    )
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
