"""A small DVID server that is as strict as Janelia's where ours is lenient.

Unaligned and two-dimensional POSTs are refused, labels are packed with LZ4 on demand, paths that
DVID has not are refused, nearly every refusal is a 400 with the path, nothing is deleted over HTTP,
slashes cut keys. ``serving()`` runs one; `Fake` has what tests look at and how they make it fail.

    with serving() as fake:
        DicedStore(fake.url)
"""

import contextlib
import io
import json
import re
import struct
import threading
import time
import uuid as uuids
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import lz4.block
import numpy as np
from fake_dvid_state import (
    OTHERS,
    RESERVED,
    TYPES,
    Bad,
    Instance,
    Node,
    Repo,
    field,
    fields_of,
    ints,
    now,
    tiles,
)
from PIL import Image


class Fake:
    """The server's state, and its faults.

    ``fail(count, method, path, how)``: the next `count` requests that match (`path` is a regular
    expression) get a status (a number), are cut before any effect ("reset"), or have their effect
    and no answer ("lost"), or half of the body ("cut").
    """

    def __init__(self, admin_token="", token="", version="0.9.0-fake"):
        self.repos = {}
        self.admin_token, self.token, self.version = admin_token, token, version
        self.log = []  # (method, path, query)
        self.lock = threading.RLock()
        self.web = self.url = ""
        self.delay = 0.0
        self._faults = []

    def fail(self, count, method, path, how, body=b"busy", headers=()):
        self._faults.append([count, method, re.compile(path), how, body, dict(headers)])

    def fault(self, method, path):
        with self.lock:
            for each in self._faults:
                if each[0] and method == each[1] and each[2].search(path):
                    each[0] -= 1
                    return each[3:]
        return None

    def count(self, method, path=""):
        return sum(m == method and re.search(path, p) is not None for m, p, _ in self.log)

    # -- names -----------------------------------------------------------------------------

    def find(self, spec):
        found = [(r, n) for r in self.repos.values() for u, n in r.nodes.items()
                 if u.startswith(spec)]  # fmt: skip
        exact = [each for each in found if each[1].uuid == spec]
        found = exact or found
        if not found:
            raise Bad(f"could not find UUID with partial match to {spec}")
        if len(found) > 1:
            raise Bad(f"more than one UUID matches {spec}")
        return found[0]

    # -- requests --------------------------------------------------------------------------

    def answer(self, method, pieces, query, body):
        """Return a body (bytes, or what becomes JSON), or (status, body, headers)."""
        if self.admin_token and query.get("admintoken") not in (None, self.admin_token):
            raise Bad("admin token is wrong")
        match (method, *pieces):
            case ("GET", "server", "info"):
                return {"DVID Version": self.version, "Datastore Version": "0.11.0", "Cores": "2"}
            case ("GET", "repos", "info"):
                return {root: repo.json() for root, repo in self.repos.items()}
            case ("POST", "repos"):
                return self.new_repo(query, json.loads(body or b"{}"))
            case ("HEAD", "repo", spec):
                self.find(spec)
                return b""
            case (_, "repo", spec, *rest):
                return self.repo(method, *self.find(spec), rest, body)
            case (_, "node", spec, ("status" | "commit" | "note" | "log" | "newversion" | "branch"
                                    | "tag") as word):  # fmt: skip
                return self.node(method, *self.find(spec), word, body)
            case (_, "node", spec, name, *rest):
                repo, node = self.find(spec)
                if name not in repo.instances:
                    raise Bad(f'invalid data instance name "{name}"')
                return self.instance(method, node, repo.instances[name], rest, query, body)
        raise Bad("404 page not found", 404)

    def new_repo(self, query, fields):
        if self.admin_token and query.get("admintoken") != self.admin_token:
            raise Bad("creating a repo requires admin privileges")
        root = fields.get("root") or uuids.uuid4().hex
        if any(root in repo.nodes for repo in self.repos.values()):
            raise Bad("UUID already exists in datastore")
        self.repos[root] = Repo(root, fields.get("alias", ""), fields.get("description", ""))
        return {"root": root}

    def repo(self, method, repo, node, rest, body):
        match (method, *rest):
            case ("GET", "info"):
                return repo.json()
            case ("POST", "info"):
                fields = json.loads(body)
                repo.alias = fields.get("alias", repo.alias)
                repo.description = fields.get("description", repo.description)
                return b""
            case ("POST", "instance"):
                return self.new_instance(repo, node, json.loads(body))
        raise Bad("404 page not found", 404)

    def new_instance(self, repo, node, given):
        settings = {}
        for key, value in given.items():
            if key.lower() != "versioned" and not isinstance(value, str):
                raise Bad(f"setting {key} is not a string")
            settings[key.lower()] = value
        name, typename = settings["dataname"], settings["typename"]
        if node.locked:
            raise Bad(f"Cannot do post on locked node {node.uuid}")
        if name in repo.instances:
            raise Bad(f"data instance {name} already exists in this repo")
        if name in RESERVED or typename not in (*TYPES, *OTHERS):
            raise Bad(f"cannot make {name} of unknown data type {typename}")
        repo.instances[name] = Instance(typename, name, node, settings)
        return {"result": f"Added {name} [{typename}] to node {node.uuid}"}

    def node(self, method, repo, node, word, body):
        match (method, word):
            case ("GET", "status" | "commit"):
                return {"Locked": node.locked}
            case ("GET", "note"):
                return {"note": node.note}
            case ("GET", "log"):
                return {"log": node.log}
        if method != "POST":
            raise Bad("404 page not found", 404)
        if word in ("note", "log", "commit") and node.locked:
            raise Bad(f"Cannot do post on locked node {node.uuid}")
        if word not in ("newversion",) and not body:
            raise Bad("unexpected end of JSON input")
        fields = json.loads(body or b"{}")
        if word == "note":
            node.note = fields["note"]
            return b""
        if word == "log":
            node.log += [f"{now()}  {each}" for each in fields["log"]]
            return b""
        if word == "commit":
            node.note, node.locked = fields.get("note", ""), True
            node.log += fields.get("log", [])
            return {"committed": node.uuid}
        if not node.locked:
            raise Bad(f"can't branch an unlocked node {node.uuid}")
        if word == "tag":
            return self.child(repo, node, fields["tag"], "tag-" + fields["tag"], "", locked=True)
        uuid = fields.get("uuid") or uuids.uuid4().hex
        if not re.fullmatch("[0-9a-f]{32}", uuid):
            raise Bad(f"bad UUID {uuid}")
        branch = node.branch
        if word == "branch":
            branch = fields.get("branch", "")
            if branch in ("", "master"):
                raise Bad("Cannot create a master branch")
            if branch != node.branch and any(n.branch == branch for n in repo.nodes.values()):
                raise Bad("branch already exists with given name")
        if any(each.branch == branch for each in node.children):
            raise Bad("branch already exists with given name")
        return self.child(repo, node, uuid, branch, fields.get("note", ""))

    def child(self, repo, node, uuid, branch, note, locked=False):
        if any(uuid in each.nodes for each in self.repos.values()):
            raise Bad("UUID already exists in datastore")
        new = repo.nodes[uuid] = Node(uuid, len(repo.nodes) + 1, node, branch, note)
        new.locked = locked
        node.children.append(new)
        return {"child": uuid}

    # -- instances -------------------------------------------------------------------------

    def instance(self, method, node, data, rest, query, body):
        if method in ("POST", "DELETE") and data.versioned and node.locked:
            raise Bad(f'Cannot do {method} on endpoint "{rest[0]}" of locked node {node.uuid}')
        if (method, rest) == ("GET", ["info"]):
            return data.json(node)
        if data.type == "keyvalue":
            return self.keyvalue(method, node, data, rest, body)
        if data.type in TYPES and rest[0] == "raw" and 4 <= len(rest) <= 5:
            return self.raw(method, node, data, rest[1:], query, body)
        if data.type in TYPES and rest[0] == "subvolblocks" and method == "GET":
            return self.blocks(node, data, *map(ints, rest[1:3]), query)
        raise Bad(f'Bad API call for data "{data.name}".  See API help')

    def raw(self, method, node, data, rest, query, body):
        if rest[0] not in ("0_1_2", "vol"):
            raise Bad("DVID only permits 3D raw here" if method == "GET" else "can only POST 3d")
        size, offset = ints(rest[1]), ints(rest[2])
        if len(size) != 3 or len(offset) != 3 or min(size) < 1:
            raise Bad("illegal geometry")
        lo, shape = offset[::-1], size[::-1]
        tail = () if data.channels == 1 else (data.channels,)
        packed = query.get("compression") if data.type.startswith("label") else None
        if packed not in (None, "", "lz4"):
            raise Bad(f"unknown compression {packed}")
        if method == "GET":
            out = np.zeros((*shape, *tail), data.dtype)
            for coord, window, inside in tiles(lo, shape, data.block[::-1]):
                block = data.get(node, coord)
                if block is not None:
                    out[window] = block[inside]
            raw = out.tobytes()
            return lz4.block.compress(raw, store_size=False) if packed else raw
        blocks = data.block[::-1]
        if any(n % b or o % b for n, o, b in zip(shape, lo, blocks, strict=True)):
            raise Bad("cannot store voxels in non-block aligned geometry")
        count = int(np.prod(shape)) * data.dtype.itemsize * data.channels
        if packed:
            body = lz4.block.decompress(body, uncompressed_size=count)
        if len(body) != count:
            raise Bad(f"voxels data was {len(body)} bytes, expected {count}")
        values = np.frombuffer(body, data.dtype).reshape((*shape, *tail))
        for coord, window, _ in tiles(lo, shape, blocks):
            data.put(node, coord, values[window].copy())
        self.grow(data, node, offset, [o + n - 1 for o, n in zip(offset, size, strict=True)])
        return b""

    def grow(self, data, node, low, high):
        known = [data.extents[n.uuid] for n in data.at(node).line() if n.uuid in data.extents]
        if known:
            low = [min(a, b) for a, b in zip(low, known[0][0], strict=True)]
            high = [max(a, b) for a, b in zip(high, known[0][1], strict=True)]
        data.extents[data.at(node).uuid] = (list(low), list(high))

    def blocks(self, node, data, size, offset, query):
        if any(n % b or o % b for n, o, b in zip(size, offset, data.block, strict=True)):
            raise Bad("not block-aligned")
        if query.get("compression") != "jpeg" or not data.compression.startswith("jpeg"):
            raise Bad("data is not stored as JPEG")
        out = b""
        for coord, _, _ in tiles(offset[::-1], size[::-1], data.block[::-1]):
            block = data.get(node, coord)
            if block is not None:
                file = io.BytesIO()
                Image.fromarray(block.reshape(-1, block.shape[2])).save(file, "JPEG", quality=80)
                out += struct.pack("<4i", *coord[::-1], len(file.getvalue())) + file.getvalue()
        return out

    def keyvalue(self, method, node, data, rest, body):
        match (method, *rest):
            case ("GET", "keys", *_):
                return data.keys(node)
            case ("GET", "keyrange", first, last):
                ends = first.encode(), last.encode()
                return [each for each in data.keys(node) if ends[0] <= each.encode() <= ends[1]]
            case ("GET", "keyvalues"):
                names = [value.decode() for _, value in fields_of(body)]
                pairs = (field(1, name.encode()) + field(2, data.get(node, name) or b"")
                         for name in names)  # fmt: skip
                return b"".join(field(1, pair) for pair in pairs)
            case ("POST", "keyvalues"):
                for _, pair in fields_of(body):
                    found = dict(fields_of(pair))
                    data.put(node, found[1].decode(), found.get(2, b""))
                return b""
            case (_, "key", name, *_):  # what follows a slash is lost
                value = data.get(node, name)
                if method in ("GET", "HEAD"):
                    if value is None:
                        return 404, f'Key "{name}" not found'.encode(), {}
                    return 200, value, {"Accept-Ranges": "bytes"}
                data.put(node, name, body if method == "POST" else None)
                return b""
        raise Bad(f'Bad API call for data "{data.name}".  See API help')


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def setup(self):
        super().setup()
        self.server.open.add(self.connection)

    def finish(self):
        with contextlib.suppress(OSError):
            super().finish()
        self.server.open.discard(self.connection)

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def run(self):
        fake, parts = self.fake, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        path = unquote(parts.path)
        with fake.lock:
            fake.log.append((self.command, path, query))
        if fake.delay:
            time.sleep(fake.delay)
        fault = fake.fault(self.command, path)
        if fault and fault[0] == "reset":
            self.close_connection = True
            return
        if fault and isinstance(fault[0], int):
            self.reply(fault[0], fault[1], fault[2])
            return
        pieces = path.removeprefix("/api/").split("/")
        pieces = pieces[:-1] if pieces[-1] == "" else pieces
        try:
            if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
                raise Bad("no valid token", 401)
            if not path.startswith("/api/"):
                raise Bad("404 page not found", 404)
            with fake.lock:
                found = fake.answer(self.command, pieces, query, body)
            status, data, headers = 200, found, {}
            if isinstance(found, tuple):
                status, data, headers = found
        except Bad as error:
            status, data, headers = error.status, f"{error} ({path}).\n".encode(), {}
        except (ValueError, KeyError, TypeError) as error:
            status, data, headers = 400, f"{error!r} ({path}).\n".encode(), {}
        if fault and fault[0] == "lost":
            self.close_connection = True
            return
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
        self.reply(status, data, headers, cut=bool(fault) and fault[0] == "cut")

    def reply(self, status, data, headers, cut=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_DELETE = run

    def log_message(self, *_args):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of a client that does not trust us."""

    request_queue_size = 128

    def __init__(self, *args):
        super().__init__(*args)
        self.open = set()


@contextlib.contextmanager
def serving(tls=None, **options):
    """Run a fake until the block ends; `tls` is what wraps its socket."""
    fake = Fake(**options)
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    fake.web = f"http://127.0.0.1:{server.server_port}"
    fake.url = f"dvid://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        for each in list(server.open):
            with contextlib.suppress(OSError):
                each.shutdown(2)
        thread.join(10)
