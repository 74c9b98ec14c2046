"""DVID's reference, row by row: roi."""

import json

import numpy as np
import pytest
from contract import hold

SPANS = [[0, 0, 0, 1], [0, 0, 2, 3], [0, 1, -1, 0], [2, 0, 5, 5]]  # z, y, x0, x1
FACTS = ["NumTotalBlocks", "NumActiveBlocks", "NumSubvolumes", "ROI", "Subvolumes"]
VOLUME = ["MinPoint", "MaxPoint", "MinChunk", "MaxChunk", "TotalBlocks", "ActiveBlocks"]


@pytest.fixture
def roi(server):
    """The path of an instance of blocks of 8 voxels."""
    uuid = server.repo()
    server.instance(uuid, "roi", "area", BlockSize="8,8,8")
    return f"node/{uuid}/area"


def inside(x, y, z):
    """Tell whether a voxel is in SPANS."""
    block = [each // 8 for each in (z, y, x)]
    return any(span[:2] == block[:2] and span[2] <= block[2] <= span[3] for span in SPANS)


def test_info(server, roi):
    def extended():
        return server.get(f"{roi}/info").json["Extended"]

    empty = {"BlockSize": [8, 8, 8], "MinZ": 2147483647, "MaxZ": -2147483648}
    assert extended() == empty
    server.post(f"{roi}/roi", SPANS)
    assert extended() == {"BlockSize": [8, 8, 8], "MinZ": 0, "MaxZ": 2}
    uuid = server.repo()
    server.instance(uuid, "roi", "usual")
    assert server.get(f"node/{uuid}/usual/info").json["Extended"]["BlockSize"] == [32, 32, 32]


COMPACT = json.dumps(SPANS, separators=(",", ":")).encode()
ROWS = [
    ("GET {p}/roi", None, b"[]"),
    ("POST {p}/roi", SPANS[::-1], b""),
    ("GET {p}/roi", None, COMPACT),  # sorted, and not joined
    *(("POST {p}/roi", body, 400) for body in (
        b"", b"{", b"{}", [[0, 0, 1, 0]], [[0, 0, 0]], [[0, 0, 0, 1, 2]], [0, 0, 0, 1],
        [[0, 0, 0, "1"]], [[0, 0, 0, 0.5]], [[0, 0, 0, 2**31]],
    )),
    ("GET {p}/roi", None, COMPACT),
    ("POST {p}/roi", [[5, 5, 5, 5]], b""),
    ("GET {p}/roi", None, b"[[5,5,5,5]]"),
    ("DELETE {p}/roi", None, b""),
    ("GET {p}/roi", None, b"[]"),
    ("DELETE {p}/roi", None, b""),
    ("POST {p}/roi", [], b""),
    ("GET {p}/roi", None, b"[]"),
    ("GET {p}/partition?batchsize=2", None, '"NumSubvolumes": 0'),
    ("POST {p}/ptquery", [[0, 0, 0]], [False]),
    ("GET {p}/mask/0_1_2/2_1_1/0_0_0", None, bytes(2)),
    ("PUT {p}/roi", [], (400, "Bad API call")),
    ("GET {p}/ptquery", None, 400),
    ("GET {p}/keys", None, (400, "/api/help/roi")),
]  # fmt: skip


def test_spans(server, roi):
    hold(server, ROWS, p=roi)


def test_points(server, roi):
    server.post(f"{roi}/roi", SPANS)
    points = [[x, y, z] for z in (-1, 0, 7, 8, 16) for y in (-1, 0, 7, 8, 15, 16)
              for x in (-9, -8, -1, 0, 7, 31, 32, 40, 47, 48)]  # fmt: skip
    wanted = [inside(*each) for each in points]
    assert any(wanted) and not all(wanted)
    hold(
        server,
        [
            ("POST {p}/ptquery", points, wanted),
            ("POST {p}/ptquery", [], []),
            *(("POST {p}/ptquery", body, 400)
              for body in (b"", b"{}", [[0, 0]], [0, 0, 0], [["0", 0, 0]])),
        ],
        p=roi,
    )  # fmt: skip


@pytest.mark.parametrize("offset", [(0, 0, 0), (-10, -3, 5), (3, 1, -2), (60, 60, 60)])
def test_masks(server, roi, offset):
    server.post(f"{roi}/roi", SPANS)
    size = (30, 20, 13)
    x, y, z = (np.arange(a, a + n) for a, n in zip(offset, size, strict=True))
    wanted = bytes(inside(a, b, c) for c in z.tolist() for b in y.tolist() for a in x.tolist())
    names = "_".join(map(str, offset))
    reply = server.get(f"{roi}/mask/0_1_2/30_20_13/{names}")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.body == wanted


@pytest.mark.parametrize(
    "path",
    ["mask/0_1/4_4/0_0_0", "mask/xy/4_4/0_0_0", "mask/0_1_2/4_4/0_0_0", "mask/0_1_2/0_4_4/0_0_0",
     "mask/0_1_2/4_4_4/0_0", "mask/0_1_2/4_4_4", "mask/0_1_2/a_b_c/0_0_0", "partition?batchsize=0",
     "partition?batchsize=x", "partition?batchsize=-3"],
)  # fmt: skip
def test_what_is_refused(server, roi, path):
    server.post(f"{roi}/roi", SPANS)
    hold(server, [(f"GET {{p}}/{path}", None, 400)], p=roi)


@pytest.mark.parametrize("query", ["", "&optimized=true", "&optimized=on"])
def test_partitions(server, roi, query):
    server.post(f"{roi}/roi", SPANS)
    reply = server.get(f"{roi}/partition?batchsize=2{query}")
    assert b"\n" in reply.body  # it is indented
    found = reply.json
    assert list(found) == FACTS
    volumes = found["Subvolumes"]
    assert found["NumSubvolumes"] == len(volumes)
    assert found["NumActiveBlocks"] == sum(each["ActiveBlocks"] for each in volumes) == 7
    assert found["NumTotalBlocks"] >= sum(each["TotalBlocks"] for each in volumes)
    assert found["ROI"] == {"MinChunk": [-1, 0, 0], "MaxChunk": [5, 1, 2]}
    covered = np.zeros((20, 20, 24), int)  # blocks from (-8, -8, -8) on
    for each in volumes:
        assert list(each) == VOLUME
        low, high = each["MinChunk"], each["MaxChunk"]
        assert each["MinPoint"] == [8 * a for a in low]
        assert each["MaxPoint"] == [8 * b + 7 for b in high]
        assert each["ActiveBlocks"] > 0  # those without are left out
        box = tuple(slice(a + 8, b + 9) for a, b in zip(low[::-1], high[::-1], strict=True))
        assert each["TotalBlocks"] == covered[box].size
        covered[box] += 1
    assert covered.max() == 1
    for z, y, first, last in SPANS:
        assert covered[z + 8, y + 8, first + 8 : last + 9].all()


def test_batches_are_8_unless_told_otherwise(server, roi):
    # DVID's help says so, its code wants the parameter.
    server.post(f"{roi}/roi", [[z, y, 0, 15] for z in range(8) for y in range(8)])
    assert server.get(f"{roi}/partition").json == server.get(f"{roi}/partition?batchsize=8").json
    assert server.get(f"{roi}/partition").json["NumSubvolumes"] == 2


def test_versions(server, roi):
    uuid = roi.split("/")[1]
    server.post(f"{roi}/roi", SPANS)
    server.post(f"node/{uuid}/commit", {})
    child = server.post(f"node/{uuid}/newversion").json["child"]
    hold(
        server,
        [
            ("GET node/{c}/area/roi", None, COMPACT),
            ("DELETE node/{c}/area/roi", None, b""),
            ("GET node/{c}/area/roi", None, b"[]"),
            ("GET {p}/roi", None, COMPACT),
            ("POST node/{c}/area/roi", [[1, 1, 1, 1]], b""),
            ("GET {p}/roi", None, COMPACT),
            ("DELETE {p}/roi", None, (400, 'Cannot do DELETE on endpoint "roi" of locked node')),
            ("POST {p}/ptquery", [[0, 0, 0]], [True]),
        ],
        p=roi, c=child,
    )  # fmt: skip
