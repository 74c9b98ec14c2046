"""What a hostile review of the server found, so that it does not come back."""

import contextlib
import json
import secrets
import socket
import struct
import threading
import time

import numpy as np
import pytest
from served import served
from serving import serving

from diced import protobuf
from diced._compress import lz4_decompress
from diced.errors import InvalidError
from diced.server.datatype import find_type
from diced.server.routes import Route

GROWTH = 64 * 2**20
PLACE = "0_1_2/{0}_{0}_{0}/0_0_0"


def bearer(name):
    return {"Authorization": f"Bearer {name}"}


# -- memory, time, the end -----------------------------------------------------------------


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A server of its own, whose patience is short."""
    folder = tmp_path_factory.mktemp("findings")
    (folder / "server.toml").write_text(
        "[server]\nrequestSeconds = 2\nidleSeconds = 2\n"
        '[store]\nlocation = "store"\ndurability = "process"\n'
    )
    with served(folder / "server.toml") as server:
        server.furnish()
        yield server


def test_who_takes_nothing_of_an_answer_is_broken_off_and_costs_no_memory_then(outside):
    before = outside.memory()
    host, port = outside.netloc.split(":")
    path = f"/api/node/{outside.uuid}/gray/raw/"
    with contextlib.ExitStack() as stack:
        for side in (400, 400, 400, 400, 1000):  # whole, and in pieces
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(f"GET {path}{PLACE.format(side)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        end = time.monotonic() + 30
        while outside.memory() - before > GROWTH and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(3)
        assert outside.memory() - before <= GROWTH * 1.5
    assert outside.get(f"node/{outside.uuid}/status") == {"Locked": False}


def numbered(count):
    return b'{"Vertices":[' + b"1000," * count + b"{}]}"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "kv/tags", b'{"a":[' + b"0.5," * 3_000_000 + b"1]}"),
        ("POST", "gray/extents", b'{"a":[' + b"0.5," * 3_000_000 + b"1]}"),
        ("POST", "graph/subgraph", numbered(6_000_000)),
        ("GET", "kv/keyvalues?json=true", b"[" + b'"",' * 10_000_000 + b'""]'),
        (
            "POST", "gray/diced/batch",
            struct.pack("<I", 9_000_003) + b"[" + b"[]," * 3_000_000 + b"0]",
        ),
        ("GET", "graph/propertytransaction/vertices/k",
         struct.pack("<Q", 2_000_000) + bytes(32_000_008)),
    ],
)  # fmt: skip
def test_bodies_of_very_many_values_are_refused_and_cost_little(outside, method, path, body):
    before = outside.memory()
    outside.forget_peak()
    status, said = outside.ask(method, f"node/{outside.uuid}/{path}", body)
    assert 400 <= status < 500, said
    assert outside.memory("VmHWM") - before < GROWTH + len(body)


def test_a_message_of_very_many_keys_is_refused_as_soon_as_there_are_too_many():
    with pytest.raises(InvalidError, match="at most 8"):
        protobuf.read_keys(b"\x0a\x00" * 9 + b"damaged", 8)
    assert protobuf.read_keys(b"\x0a\x00" * 8, 8) == ([""] * 8, [])


def test_a_mask_is_sent_in_pieces_and_a_picture_refused_before_it_is_read(outside):
    node = f"node/{outside.uuid}"
    before = outside.memory()
    outside.forget_peak()
    assert len(outside.ask("GET", f"{node}/mask/mask/{PLACE.format(640)}")[1]) == 640**3
    status, said = outside.ask("GET", f"{node}/gray/raw/xy/16000_16000/0_0_0")
    assert (status, b"too large" in said) == (400, True)
    assert outside.memory("VmHWM") - before < GROWTH


def test_a_compressed_mask_is_made_in_parts_and_bounded(outside):
    node = f"node/{outside.uuid}"
    # Blocks of a voxel take 8 bytes each while a mask is made of them.
    settings = {"typename": "roi", "dataname": "fine", "BlockSize": "1,1,1"}
    outside.post(f"repo/{outside.uuid}/instance", settings)
    outside.post(f"{node}/fine/roi", b"[[0,0,0,5],[300,7,2,9],[399,399,399,399]]")
    before = outside.memory()
    outside.forget_peak()
    packed = outside.ask("GET", f"{node}/fine/mask/{PLACE.format(400)}?compression=lz4")[1]
    assert outside.memory("VmHWM") - before < 400**3 * 2.2 + GROWTH
    mask = np.empty((400, 400, 400), np.uint8)
    lz4_decompress(packed, mask)
    assert mask.sum() == 15 and mask[0, 0, :6].all() and mask[300, 7, 2:10].all()
    assert mask[399, 399, 399]
    place = "0_1_2/512_512_1025/0_0_0"
    status, said = outside.ask("GET", f"{node}/fine/mask/{place}?compression=LZ4")
    assert (status, b"without compression" in said) == (400, True)


@pytest.mark.parametrize(("tiny", "huge"), [(1e-320, 1e308), (1e308, 1e-320)])
def test_resolutions_whose_ratio_is_no_float_are_refused(server, tiny, huge):
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray")
    server.instance(uuid, "imagetile", "t", Source="gray")
    levels = {
        str(number): {"Resolution": [each] * 3, "TileSize": [1, 1, 1]}
        for number, each in enumerate((tiny, huge))
    }
    path = f"node/{uuid}/t/metadata"
    assert "magnifications" in server.refused("POST", path, {"Levels": levels})


@pytest.mark.parametrize("typename", ["uint8blk", "labelblk"])
def test_blocks_of_gigabytes_are_refused(server, typename):
    uuid = server.repo()
    for path, body in (
        ("instance", {"typename": typename, "dataname": "a", "BlockSize": "1024,1024,1024"}),
        ("array", {"name": "a", "kind": "image", "options": {"block_shape": [1024] * 3}}),
    ):
        assert "voxels" in server.refused("POST", f"repo/{uuid}/{path}", body)


def test_it_ends_although_a_handler_does_not(monkeypatch):
    monkeypatch.setattr("diced.server.serve.GRACE_SECONDS", 1)
    monkeypatch.setattr("diced.server.app.END_SECONDS", 1.0)
    go_on, begun = threading.Event(), threading.Event()

    def never(_call):
        begun.set()
        go_on.wait(60)

    with serving(f"memory://{secrets.token_hex(8)}") as server:
        uuid = server.repo()
        server.app.site.table.add(Route("GET", "/api/repo/{uuid}/never", never, "Never ends."))
        host, port = server.netloc.split(":")
        sock = socket.create_connection((host, int(port)))
        sock.sendall(f"GET /api/repo/{uuid}/never HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert begun.wait(10)
        began = time.monotonic()
    try:  # `serving` waited for its end
        assert time.monotonic() - began < 20
        assert server.app.stuck
    finally:
        go_on.set()
        sock.close()


# -- rights --------------------------------------------------------------------------------


@pytest.fixture
def closed():
    access = {
        "users": {
            "ann": {"token": "ann", "rights": {"open": "write"}},
            "root": {"token": "root", "rights": "admin"},
        }
    }
    with serving(f"memory://{secrets.token_hex(8)}", access=access) as server:
        roots = {}
        for alias in ("open", "private"):
            made = server.post("repos", {"alias": alias}, headers=bearer("root"))
            roots[alias] = made.json["root"]
            body = {"typename": "roi", "dataname": f"{alias}-secret"}
            server.post(f"repo/{roots[alias]}/instance", body, headers=bearer("root"))
        yield server, roots


def test_names_in_a_repo_that_one_may_not_read_are_not_told(closed):
    server, roots = closed
    for headers, status in (({}, 401), (bearer("ann"), 403)):
        for name in ("private-secre", "private-secret", "nothing"):
            for rest in ("info", "none/such", "key/x"):
                path = f"node/{roots['private']}/{name}/{rest}"
                said = server.refused("GET", path, status=status, headers=headers)
                assert "did you mean" not in said
                assert "roi" not in said
                server.refused("POST", path, b"", status=status, headers=headers)


def test_what_is_ambiguous_does_not_list_versions_of_others(closed):
    server, roots = closed
    root = roots["private"]
    server.post(f"node/{root}/commit", {"note": "x"}, headers=bearer("root"))
    for number in range(2):
        body = {"note": "x", "uuid": f"abcdef{number}" + secrets.token_hex(13)[1:] + "0"}
        body["uuid"] = body["uuid"].ljust(32, "0")[:32]
        server.post(f"node/{root}/branch", body, headers=bearer("root"))
    for path in (
        "node/abcdef/status", f"node/{roots['open']}/open-secret/mutations-range/abcdef/abcdef",
    ):  # fmt: skip
        said = server.refused("GET", path, headers=bearer("ann"))
        assert "more than one" in said
        assert "abcdef0" not in said
    assert "abcdef0" in server.refused("GET", "node/abcdef/status", headers=bearer("root"))


def test_latencies_of_others_are_not_told(closed):
    server, _ = closed
    server.get("repos/info", headers=bearer("root"))
    server.get("repos/info", headers=bearer("ann"))
    assert set(server.get("user-latencies", headers=bearer("ann")).json) <= {"ann"}
    assert "root" not in server.get("user-latencies").json
    assert "ann" in server.get("user-latencies", headers=bearer("root")).json


def test_pages_of_other_origins_change_nothing_where_they_are_not_named():
    evil, named = {"Origin": "http://evil.example"}, {"Origin": "https://viewer.lab.org"}
    with serving(f"memory://{secrets.token_hex(8)}", cors=("lab.org",)) as server:
        uuid = server.repo()
        server.instance(uuid, "keyvalue", "kv")
        own = {"Origin": server.url}
        for method, path in (("POST", "key/a"), ("DELETE", "key/a"), ("POST", "tags")):
            server.refused(method, f"node/{uuid}/kv/{path}", b"{}", status=403, headers=evil)
            server.refused(
                method, f"node/{uuid}/kv/{path}", b"{}", status=403, headers={"Origin": "null"}
            )
            for headers in (own, named, {}):
                assert server.ask(method, f"node/{uuid}/kv/{path}", b"{}", headers).status == 200
        server.get(f"node/{uuid}/status", headers=evil)


def test_no_page_of_another_origin_deletes_a_repo_unless_it_is_named(server):
    uuid = server.repo()
    server.instance(uuid, "keyvalue", "kv")
    evil = {"Origin": "http://evil.example"}
    server.refused("DELETE", f"repo/{uuid}/kv?imsure=true", status=403, headers=evil)
    server.refused("DELETE", f"repo/{uuid}?imsure=true", status=403, headers=evil)
    own = {"Origin": server.url}
    assert server.ask("DELETE", f"repo/{uuid}?imsure=true", headers=own).status == 200


# -- answers -------------------------------------------------------------------------------


def test_paths_that_are_no_utf8_are_not_all_the_same_key(server):
    uuid = server.repo()
    server.instance(uuid, "keyvalue", "kv")
    for key in ("%ff", "%fe", "a%c3"):
        server.refused("POST", f"node/{uuid}/kv/key/{key}", b"x")
    server.post(f"node/{uuid}/kv/key/%EF%BF%BD", b"itself")
    assert server.get(f"node/{uuid}/kv/keys").json == ["\ufffd"]


def test_compressed_answers_say_what_they_depend_on(server):
    headers = {"Origin": "https://viewer.lab.org", "Accept-Encoding": "gzip"}
    with serving(f"memory://{secrets.token_hex(8)}", cors=("lab.org",)) as other:
        reply = other.get("help", headers=headers, decode=False)
        assert reply.headers["content-encoding"] == "gzip"
        vary = {each.strip() for each in reply.headers["vary"].split(",")}
        assert vary == {"Accept-Encoding", "Origin"}
    plain = server.get("help", headers={"Accept-Encoding": "gzip;q=0, br"}, decode=False)
    assert "content-encoding" not in plain.headers
    assert plain.headers["x-content-type-options"] == "nosniff"


@pytest.fixture
def masked(server):
    """Voxels of a block size other than the ROI's, and both."""
    uuid = server.repo()
    server.instance(uuid, "roi", "mask", BlockSize="8,8,8")
    spans = [[0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]]
    server.post(f"node/{uuid}/mask/roi", json.dumps(spans).encode())
    inside = np.zeros((32,) * 3, bool)
    for z, y, first, last in spans:
        inside[8 * z : 8 * z + 8, 8 * y : 8 * y + 8, 8 * first : 8 * last + 8] = True
    data = np.random.default_rng(1).integers(1, 255, (32,) * 3, np.uint8)
    for name, size in (("cubes", "8,8,8"), ("flat", "8,8,16")):
        server.instance(uuid, "uint8blk", name, BlockSize="16,16,16", VoxelSize=size, Background=7)
        server.post(f"node/{uuid}/{name}/raw/{PLACE.format(32)}", data.tobytes())
    return server, f"node/{uuid}", data, inside


@pytest.mark.parametrize(("dims", "axes"), [("xy", (1, 2)), ("xz", (0, 2)), ("2_1", (1, 0))])
def test_isotropic_honours_the_roi(masked, dims, axes):
    server, node, data, inside = masked
    box = [slice(4, 5)] * 3
    offset = [4, 4, 4]
    for axis in axes:
        box[axis] = slice(0, 32)
        offset[2 - axis] = 0
    path = f"{dims}/32_32/{'_'.join(map(str, offset))}/raw"
    plain = server.get(f"{node}/cubes/isotropic/{path}").body
    assert plain == server.get(f"{node}/cubes/raw/{path}").body
    seen = np.frombuffer(server.get(f"{node}/cubes/isotropic/{path}?roi=mask").body, np.uint8)
    wanted = np.where(inside, data, 7)[tuple(box)]
    wanted = wanted.reshape(32, 32) if axes[0] < axes[1] else wanted.reshape(32, 32).T
    assert (seen.reshape(32, 32) == wanted).all()
    shifted = server.get(f"{node}/cubes/isotropic/{path}?roi=mask&attenuation=3").body
    assert shifted == server.get(f"{node}/cubes/raw/{path}?roi=mask&attenuation=3").body


def test_isotropic_honours_the_roi_where_pixels_are_finer_than_voxels(masked):
    server, node, _, inside = masked
    path = "xz/32_32/0_4_0/raw"
    reply = server.get(f"{node}/flat/isotropic/{path}?roi=mask")
    seen = np.frombuffer(reply.body, np.uint8).reshape(-1, 32)
    free = np.frombuffer(server.get(f"{node}/flat/isotropic/{path}").body, np.uint8)
    free = free.reshape(seen.shape)
    lines = np.minimum(((np.arange(len(seen)) + 0.5) * 32 / len(seen)).astype(int), 31)
    lines = ((np.arange(len(seen)) + 0.5) * 0.5).astype(int) if len(seen) == 32 else lines
    wanted = np.where(inside[:, 4, :][lines], free, 7)
    assert (seen == wanted).all()


def test_an_roi_does_not_mask_other_levels_wrongly(masked):
    server, node, _, _ = masked
    said = server.refused("GET", f"{node}/cubes/raw/{PLACE.format(16)}?roi=mask&scale=1")
    assert "scale" in said


def test_an_answer_in_pieces_is_of_one_state_of_its_roi(server):
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray", Background=1)
    server.instance(uuid, "roi", "mask")
    node, rows = f"node/{uuid}", [[0, 0, 0, 15]]
    server.post(f"{node}/mask/roi", json.dumps([[z, y, 0, 15] for z in range(16)
                                                for y in range(16)]).encode())  # fmt: skip
    site = server.app.site
    repo = site.find_node(uuid)
    frozen = site.find_array(repo, "mask")[0].snapshot()
    server.post(f"{node}/mask/roi", json.dumps(rows).encode())
    assert frozen.mask((0, 0, 0), (512, 512, 512)).all()
    assert len(frozen) == 256
    assert not site.find_array(repo, "mask")[0].mask((32, 0, 0), (64, 64, 64)).any()


def test_syncs_posted_at_once_are_all_kept(server):
    uuid = server.repo()
    names = [f"seg{number}" for number in range(8)]
    for name in ("seg", *names):
        server.instance(uuid, "labelblk", name)

    def post(name):
        server.post(f"node/{uuid}/seg/sync", {"sync": name})

    threads = [threading.Thread(target=post, args=(name,)) for name in names]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(server.get(f"node/{uuid}/seg/info").json["Base"]["Syncs"]) == names


def test_commands_from_a_page_are_refused_before_their_body_comes(server):
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray")
    host, port = server.netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(
            f"POST /api/node/{uuid}/gray/command HTTP/1.1\r\nHost: x\r\nOrigin: http://a.b\r\n"
            "Content-Length: 200000000\r\n\r\n".encode()
        )
        assert sock.recv(12) == b"HTTP/1.1 403"


def test_long_commands_leave_threads_for_others(server, monkeypatch):
    """As many commands as there are threads for requests: a read beside them is answered."""
    uuid = server.repo()
    server.instance(uuid, "uint8blk", "gray")
    begun, end = threading.Semaphore(0), threading.Event()

    def wait(site, array, words, settings, stdin):
        begun.release()
        end.wait(30)
        return "done"

    kind = type(find_type("uint8blk"))
    monkeypatch.setattr(kind, "commands", property(lambda self: {"wait": wait}))
    path, body = f"node/{uuid}/gray/command", {"words": ["wait"]}
    threads = [threading.Thread(target=server.post, args=(path, body)) for _ in range(6)]
    for each in threads:
        each.start()
    try:
        for _ in range(4):
            assert begun.acquire(timeout=30)
        assert server.get(f"node/{uuid}/gray/raw/0_1_2/8_8_8/0_0_0").body == bytes(512)
        assert not end.is_set()
    finally:
        end.set()
        for each in threads:
            each.join()


def test_planes_through_too_many_blocks_are_refused(server):
    uuid = server.repo()
    server.instance(uuid, "uint32blk", "a")
    path = f"node/{uuid}/a/arb/64_64_64/2147483647_0_0/-5_-6_-7"
    assert "crosses more blocks" in server.refused("GET", f"{path}/111")
    assert "resolution" in server.refused("GET", f"{path}/1_1_1")
