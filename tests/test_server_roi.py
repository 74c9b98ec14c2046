"""The data type roi over HTTP."""

import json
import secrets

import numpy as np
import pytest
from serving import serving
from test_roi import SPANS

from diced._compress import lz4_decompress


def compact(value):
    return json.dumps(value, separators=(",", ":"))


@pytest.fixture
def node(server):
    """The path of an instance ``roi`` of a new repo."""
    uuid = server.repo()
    server.instance(uuid, "roi", "roi")
    return f"node/{uuid}/roi"


def test_spans_come_back_as_they_were_posted(server, node):
    assert server.get(f"{node}/roi").text == "[]"
    server.post(f"{node}/roi", compact(SPANS[::-1]).encode())
    reply = server.get(f"{node}/roi")
    assert reply.text == compact(SPANS)
    assert reply.headers["content-type"] == "application/json"
    server.post(f"{node}/roi", b" [ ] ")
    assert server.get(f"{node}/roi").text == "[]"


def test_delete(server, node):
    server.post(f"{node}/roi", SPANS)
    assert server.ask("DELETE", f"{node}/roi").status == 200
    assert server.get(f"{node}/roi").text == "[]"


def test_info(server, node):
    extended = server.get(f"{node}/info").json["Extended"]
    assert extended == {"BlockSize": [32, 32, 32], "MinZ": 2147483647, "MaxZ": -2147483648}
    server.post(f"{node}/roi", SPANS)
    extended = server.get(f"{node}/info").json["Extended"]
    assert (extended["MinZ"], extended["MaxZ"]) == (100, 103)
    assert server.get(f"{node}/info").json["Base"]["TypeName"] == "roi"


def test_block_size_is_xyz(server):
    uuid = server.repo()
    server.instance(uuid, "roi", "small", BlockSize="15,16,17")
    assert server.get(f"node/{uuid}/small/info").json["Extended"]["BlockSize"] == [15, 16, 17]
    server.post(f"node/{uuid}/small/roi", [[1, 2, 3, 3]])
    inside = server.post(f"node/{uuid}/small/ptquery", [[45, 32, 17], [44, 32, 17], [59, 47, 33]])
    assert inside.json == [True, False, True]
    assert server.store.open_repo(uuid=uuid)["small"].block_shape == (17, 16, 15)


def test_points_as_dvid_tests_them(server, node):
    server.post(f"{node}/roi", SPANS)
    points = [
        [6400, 3232, 3167], [6400, 3232, 3200], [6719, 3232, 3200], [6720, 3232, 3200],
        [6720, 4100, 3263], [6720, 3233, 3201], [6720, 3234, 3200],
    ]  # fmt: skip
    reply = server.post(f"{node}/ptquery", points)
    assert reply.text == "[false,true,true,true,false,true,true]"
    assert server.post(f"{node}/ptquery", []).text == "[]"


def mask_of(reply, x, y, z):
    return np.frombuffer(reply.body, np.uint8).reshape(z, y, x)


def test_masks_as_dvid_tests_them(server, node):
    server.post(f"{node}/roi", SPANS)
    reply = server.get(f"{node}/mask/0_1_2/100_100_100/10_40_70")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.body == bytes(10**6)
    mask = mask_of(server.get(f"{node}/mask/0_1_2/100_100_100/6350_3232_3200"), 100, 100, 100)
    assert set(np.unique(mask)) == {0, 1}
    first = np.zeros((100, 100), np.uint8)
    first[:64, 50:] = 1
    first[64:96, 82:] = 1
    np.testing.assert_array_equal(mask[0, :96], first[:96])
    last = mask[96]
    assert last[:32, 50:].all() and not last[:, :50].any() and not last[32:64].any()
    assert last[64:96, 50:].all()


def test_masks_of_negative_coordinates(server, node):
    server.post(f"{node}/roi", [[-1, -2, -3, -3]])
    mask = mask_of(server.get(f"{node}/mask/0_1_2/98_66_34/-98_-66_-33"), 98, 66, 34)
    expected = np.zeros((34, 66, 98), np.uint8)
    expected[1:33, 2:34, 2:34] = 1
    np.testing.assert_array_equal(mask, expected)


def test_masks_compressed(server, node):
    server.post(f"{node}/roi", SPANS)
    path = f"{node}/mask/0_1_2/64_64_64/6350_3232_3200"
    out = bytearray(64**3)
    lz4_decompress(server.get(f"{path}?compression=lz4").body, out)
    assert out == server.get(path).body


@pytest.mark.parametrize(
    "path",
    [
        "0_1/10_10/0_0", "0_1_2/10_10/0_0_0", "0_1_2/10_0_10/0_0_0", "0_1_2/a_b_c/0_0_0",
        "0_1_2/10_10_10/0_0_2147483640", "0_1_2/10_10_10/0_0_99999999999", "xy/10_10/0_0_0",
        "0_1_2/100000_100000_100000/0_0_0", "0_2_1/10_10_10/0_0_0", "0_1_2/10_10_10",
    ],
)  # fmt: skip
def test_bad_masks(server, node, path):
    server.refused("GET", f"{node}/mask/{path}")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[", b"]", b"[[1,2,3]]", b"[[1,2,3,4.5]]", b"[[1,2,3,true]]", b"[1,2,3,4]",
        b"[[1,2,3,4],]", b"[[1,2,3,4]", b"[[1,2,3,4] [1,2,3,4]]", b"[[1,2,4,3]]", b"[[[1,2,3,4]]]",
        b'[["1",2,3,4]]', b"[[1,2,3,99999999999]]", b"[[1,2,3,99999999999999999999]]",
        b"[[1,2,3,4],[1,2]]", b"\xff", b"[" * 100_000 + b"]" * 100_000, b"[[-,1,2,3]]", b"null",
        b"[[1,2,3,NaN]]", b"[,[1,2,3,4]]",
    ],
)  # fmt: skip
def test_bad_spans_change_nothing(server, node, body):
    server.post(f"{node}/roi", SPANS)
    server.refused("POST", f"{node}/roi", body)
    assert server.get(f"{node}/roi").json == SPANS
    if body != b"[[1,2,3]]":
        server.refused("POST", f"{node}/ptquery", body)


def test_many_spans(disk_server):
    uuid = disk_server.repo()
    disk_server.instance(uuid, "roi", "roi")
    x = np.arange(0, 400_000, 2)
    rows = np.c_[np.repeat(np.arange(100), 4000)[: len(x)], x * 0 - 5, x, x]
    body = compact(rows.tolist()).replace("],[", "] ,\n [").encode()
    assert len(body) > 2**21  # it is parsed in several parts
    disk_server.post(f"node/{uuid}/roi/roi", body)
    reply = disk_server.get(f"node/{uuid}/roi/roi")
    assert reply.json == rows.tolist()
    cut = body[:-40] + b"]"
    disk_server.refused("POST", f"node/{uuid}/roi/roi", cut)
    disk_server.refused("POST", f"node/{uuid}/roi/roi", body[:-1] + b",]")


def test_locked_versions_answer_points_and_take_no_spans(server, node):
    server.post(f"{node}/roi", SPANS)
    uuid = node.split("/")[1]
    server.store.open_repo(uuid=uuid).lock_node("done")
    assert server.post(f"{node}/ptquery", [[6400, 3232, 3200]]).json == [True]
    server.refused("POST", f"{node}/roi", [])
    server.refused("DELETE", f"{node}/roi")
    assert server.get(f"{node}/roi").json == SPANS


def test_two_servers_on_one_store(tmp_path):
    place = tmp_path / "store"
    with serving(place) as one, serving(place) as two:
        uuid = one.repo()
        one.instance(uuid, "roi", "roi")
        for number in range(5):
            one.post(f"node/{uuid}/roi/roi", [[number, 0, 0, 1]])
            assert two.get(f"node/{uuid}/roi/roi").json == [[number, 0, 0, 1]]
            two.post(f"node/{uuid}/roi/roi", [[0, number, 0, 1]])
            assert one.get(f"node/{uuid}/roi/roi").json == [[0, number, 0, 1]]


def test_unversioned(server):
    uuid = server.repo()
    server.instance(uuid, "roi", "all", versioned="false")
    server.store.open_repo(uuid=uuid).lock_node("done")
    server.post(f"node/{uuid}/all/roi", SPANS)
    assert server.get(f"node/{uuid}/all/roi").json == SPANS


# -- partitions ----------------------------------------------------------------------------


def volume(first, last, total, active):
    """A subvolume of blocks of 32 cubed, XYZ."""
    return {
        "MinPoint": [each * 32 for each in first],
        "MaxPoint": [each * 32 + 31 for each in last],
        "MinChunk": first,
        "MaxChunk": last,
        "TotalBlocks": total,
        "ActiveBlocks": active,
    }


def test_simple_partition(server, node):
    server.post(f"{node}/roi", SPANS)
    reply = server.get(f"{node}/partition?batchsize=5")
    cubes = [
        (199, 99, 98, 25), (204, 99, 98, 40), (209, 99, 98, 30), (214, 99, 98, 8),
        (203, 104, 98, 5), (208, 104, 98, 5), (213, 104, 98, 5),
        (199, 101, 103, 11), (204, 101, 103, 15), (209, 101, 103, 8),
    ]  # fmt: skip
    assert reply.json == {
        "NumTotalBlocks": 1375,
        "NumActiveBlocks": 152,
        "NumSubvolumes": 10,
        "ROI": {"MinChunk": [0, 0, 100], "MaxChunk": [217, 105, 103]},
        "Subvolumes": [
            volume([x, y, z], [x + 4, y + 4, z + 4], 125, active) for x, y, z, active in cubes
        ],
    }
    assert reply.text.startswith('{\n    "NumTotalBlocks": 1375,\n    "NumActiveBlocks": 152,')
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("flag", ["true", "on"])
def test_optimized_partition(server, node, flag):
    server.post(f"{node}/roi", SPANS)
    found = server.get(f"{node}/partition?batchsize=5&optimized={flag}").json
    assert found == {
        "NumTotalBlocks": 450,
        "NumActiveBlocks": 152,
        "NumSubvolumes": 3,
        "ROI": {"MinChunk": [0, 0, 100], "MaxChunk": [217, 105, 103]},
        "Subvolumes": [
            volume([200, 101, 100], [205, 105, 104], 150, 61),
            volume([206, 101, 100], [211, 105, 104], 150, 67),
            volume([212, 101, 100], [217, 105, 104], 150, 24),
        ],
    }


def test_partition_of_nothing_and_bad_ones(server, node):
    assert server.get(f"{node}/partition").json == {
        "NumTotalBlocks": 0,
        "NumActiveBlocks": 0,
        "NumSubvolumes": 0,
        "ROI": {"MinChunk": [0, 0, 2147483647], "MaxChunk": [0, 0, -2147483648]},
        "Subvolumes": [],
    }
    server.post(f"{node}/roi", [[0, 0, -(2**31), 2**31 - 1]])
    for batch in ("0", "-3", "x", "", "1", str(2**70)):
        server.refused("GET", f"{node}/partition?batchsize={batch}")


def test_any_path_is_answered(server, node):
    for path in ("roi/more", "mask", "ptquery/x", secrets.token_hex(4)):
        server.refused("GET", f"{node}/{path}")
    server.refused("GET", f"{node}/ptquery")
