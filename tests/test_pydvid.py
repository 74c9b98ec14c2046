"""The face of pydvid: its quickstart, its slicing, its errors."""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from diced.errors import BadIndexError, InvalidError
from diced.pydvid import DvidConnection, errors, general, keyvalue, labelgraph, voxels


@pytest.fixture
def connection(server):
    connection = http.client.HTTPConnection(server.netloc, timeout=30.0)
    yield connection
    connection.close()


@pytest.fixture
def uuid(server):
    return server.repo()


def make(connection, uuid, shape=(1, 0, 0, 0), dtype=np.uint8, name="vol"):
    metadata = voxels.VoxelsMetadata.create_default_metadata(shape, dtype, "cxyz", 1.0, "")
    voxels.create_new(connection, uuid, name, metadata)
    return voxels.VoxelsAccessor(connection, uuid, name)


def test_the_quickstart(server, connection, uuid):
    dataset_details = general.get_datasets_info(connection)
    assert json.loads(json.dumps(dataset_details, indent=4))[uuid]["Root"] == uuid

    voxels_metadata = voxels.VoxelsMetadata.create_default_metadata(
        (4, 0, 0, 0), np.uint8, "cxyz", 1.0, ""
    )
    voxels.create_new(connection, uuid, "my_volume", voxels_metadata)

    dvid_volume = voxels.VoxelsAccessor(connection, uuid, "my_volume")
    assert dvid_volume.axiskeys == "cxyz"
    assert dvid_volume.dtype == np.uint8
    assert dvid_volume.minindex == (0, 0, 0, 0)
    assert dvid_volume.shape == (4, 0, 0, 0)

    updated_data = np.ones((4, 100, 100, 100), dtype=np.uint8)
    dvid_volume[:, 10:110, 20:120, 30:130] = updated_data
    # OR:
    dvid_volume.post_ndarray((0, 10, 20, 30), (4, 110, 120, 130), updated_data)

    cutout_array = dvid_volume[:, 10:110, 20:120, 30:130]
    # OR:
    cutout_array = dvid_volume.get_ndarray((0, 10, 20, 30), (4, 110, 120, 130))
    assert isinstance(cutout_array, np.ndarray)
    assert cutout_array.shape == (4, 100, 100, 100)
    assert (cutout_array == 1).all()

    start, stop = dvid_volume.minindex, dvid_volume.shape
    whole = dvid_volume.get_ndarray(start, stop)
    assert whole.shape == tuple(np.array(stop) - start)
    assert whole.sum() == 4 * 100**3


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "u1"), (1, "u2"), (1, "u4"), (1, "u8"), (1, "f4"), (4, "u1")]
)
def test_every_voxel_is_where_dvid_has_it(server, connection, uuid, channels, dtype):
    volume = make(connection, uuid, (channels, 0, 0, 0), dtype)
    rng = np.random.default_rng(7)
    data = rng.integers(0, 200, (channels, 7, 6, 5)).astype(dtype)
    volume[:, 3:10, -2:4, 60:65] = data
    array = server.store.open_repo(uuid=uuid)["vol"]
    stored = array[60:65, -2:4, 3:10]
    axes = (3, 2, 1, 0) if channels > 1 else (2, 1, 0)
    assert np.array_equal(stored, (data if channels > 1 else data[0]).transpose(axes))
    found = volume.get_ndarray((0, 3, -2, 60), (channels, 10, 4, 65))
    assert np.array_equal(found, data) and found.flags.f_contiguous
    assert volume.minindex[0] == 0 and volume.shape[0] == channels
    assert all(a <= b for a, b in zip(volume.minindex, (0, 3, -2, 60), strict=True))


def test_slicing(server, connection, uuid):
    volume = make(connection, uuid, (4, 0, 0, 0))
    data = np.random.default_rng(1).integers(0, 255, (4, 64, 64, 64), np.uint8)
    volume[:, 0:64, 0:64, 0:64] = data
    assert volume.shape == data.shape
    for index in (
        slice(None), ..., (..., 10, slice(None)), 2, (slice(None), slice(10), slice(10)),
        (slice(None), slice(10), slice(10), slice(None, None, 2)), (0, 5), [1, 2, 3, 4],
        (slice(1, 3), ..., 7), (slice(None), 3, slice(5, 9)),
    ):  # fmt: skip
        wanted = data[tuple(index) if isinstance(index, list) else index]
        assert np.array_equal(volume[index], wanted), index
    volume[..., 2] = data[..., 3]
    assert np.array_equal(volume[..., 2], data[..., 3])
    volume[:, 1:3, 1:3, 1:3] = 9
    assert (volume[:, 1:3, 1:3, 1:3] == 9).all()


def test_what_cannot_be_sliced(server, connection, uuid):
    volume = make(connection, uuid, (4, 0, 0, 0))
    volume[:, 0:8, 0:8, 0:8] = 1
    for index in ((..., ...), (0, 0, 0, 0, 0), (None, 1), "x", (True,)):
        with pytest.raises(BadIndexError):
            volume[index]
    with pytest.raises(BadIndexError, match="channels"):
        volume[1, 0:8, 0:8, 0:8] = 1
    with pytest.raises(BadIndexError, match="steps"):
        volume[:, 0:8:2, 0:8, 0:8] = 1
    with pytest.raises(InvalidError, match="do not fit"):
        volume[:, 0:8, 0:8, 0:8] = np.zeros((4, 3, 3, 3), np.uint8)
    with pytest.raises(InvalidError, match="cannot be stored"):
        volume[:, 0:8, 0:8, 0:8] = np.full((4, 8, 8, 8), 300)
    with pytest.raises(InvalidError, match="empty"):
        volume.get_ndarray((0, 5, 5, 5), (4, 5, 6, 6))
    with pytest.raises(InvalidError, match="channels"):
        volume.get_ndarray((1, 5, 5, 5), (4, 6, 6, 6))
    with pytest.raises(InvalidError, match="entries"):
        volume.get_ndarray((0, 5, 5), (4, 6, 6))
    assert (volume[:, 0:8, 0:8, 0:8] == 1).all()


def test_keys(server, connection, uuid):
    keyvalue.create_new(connection, uuid, "kv")
    keyvalue.put_value(connection, uuid, "kv", "a b", b"\x00\x01")
    keyvalue.put_value(connection, uuid, "kv", "c", "text")
    assert keyvalue.get_value(connection, uuid, "kv", "a b") == b"\x00\x01"
    assert keyvalue.get_keys(connection, uuid, "kv") == ["a b", "c"]
    keyvalue.del_value(connection, uuid, "kv", "c")
    with pytest.raises(errors.DvidHttpError) as caught:
        keyvalue.get_value(connection, uuid, "kv", "c")
    assert caught.value.status_code == 404 and caught.value.method == "GET"
    assert "/key/c" in str(caught.value)


def test_a_label_graph(server, connection, uuid):
    labelgraph.create_new(connection, uuid, "graph")
    labelgraph.update_vertex(connection, uuid, "graph", 5, 2)
    labelgraph.update_edge(connection, uuid, "graph", 5, 6, 1.5)
    found = server.get(f"node/{uuid}/graph/neighbors/5").json
    assert {each["Id"] for each in found["Vertices"]} >= {5}
    assert [(each["Id1"], each["Id2"]) for each in found["Edges"]] == [(5, 6)]


def test_facts_about_the_server(server, connection, uuid):
    make(connection, uuid)
    assert "DVID Version" in general.get_server_info(connection)
    assert "uint8blk" in general.get_server_types(connection)


def test_the_servers_message_is_in_the_error(server, connection):
    with pytest.raises(errors.DvidHttpError, match="could not find UUID") as caught:
        voxels.VoxelsAccessor(connection, "abcd", "x")
    assert caught.value.status_code == 400


def test_descriptions_are_checked():
    make = voxels.VoxelsMetadata.create_default_metadata
    good = make((1, 5, 6), np.uint16, "cxy", 2.5, "nanometers")
    assert voxels.VoxelsMetadata(good.to_json()) == good
    assert good.determine_dvid_typename() == "uint16blk"
    with pytest.raises(errors.UnexpectedResponseError, match="Units"):
        voxels.VoxelsMetadata.create_default_metadata((1, 5), np.uint8, "cx", 1.0, "furlongs")
    with pytest.raises(errors.UnexpectedResponseError, match="Axes"):
        voxels.VoxelsMetadata({"Properties": {"Values": [{"DataType": "uint8"}]}})
    with pytest.raises(InvalidError):
        voxels.VoxelsMetadata.create_default_metadata((5, 1), np.uint8, "xc", 1.0, "")
    with pytest.raises(InvalidError, match="no data type"):
        voxels.VoxelsMetadata.create_default_metadata(
            (2, 5), np.uint8, "cx", 1.0, ""
        ).determine_dvid_typename()


def test_a_connection_for_every_thread(server, uuid):
    connection = DvidConnection(server.netloc, timeout=30)
    make(connection, uuid)
    wrong = []

    def work(number):
        volume = voxels.VoxelsAccessor(connection, uuid, "vol")
        box = (slice(None), slice(64 * number, 64 * number + 64), slice(64), slice(64))
        volume[box] = number
        wrong.extend([number] if (volume[box] != number).any() else [])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    connection.close()
    assert not wrong


class Busy(BaseHTTPRequestHandler):
    """Answers 503 to the first requests for voxels, and closes its connections."""

    refusals = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, body = 200, bytes(8)
        if "metadata" in self.path:
            axis = {"Resolution": 1, "Units": "", "Size": 8, "Offset": 0}
            axes = [{"Label": each, **axis} for each in "XYZ"]
            values = [{"DataType": "uint8", "Label": ""}]
            body = json.dumps({"Axes": axes, "Properties": {"Values": values}}).encode()
        elif Busy.refusals:
            Busy.refusals -= 1
            status, body = 503, b"busy"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "raw" in self.path  # without having said so

    def log_message(self, *_):
        pass


@pytest.fixture
def busy():
    server = HTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_busy_server_is_asked_again(busy):
    connection = http.client.HTTPConnection(busy, timeout=10)
    volume = voxels.VoxelsAccessor(connection, "u", "x", retry_timeout=30, retry_interval=0.01)
    Busy.refusals = 3
    assert volume.get_ndarray((0, 0, 0, 0), (1, 2, 2, 2)).shape == (1, 2, 2, 2)
    assert Busy.refusals == 0
    assert volume[0, 0:2, 0:2, 0:2].shape == (2, 2, 2)  # on a connection that was closed meanwhile
    volume = voxels.VoxelsAccessor(connection, "u", "x", retry_timeout=0)
    Busy.refusals = 1
    with pytest.raises(voxels.VoxelsAccessor.ThrottleTimeoutException, match="too busy"):
        volume.get_ndarray((0, 0, 0, 0), (1, 2, 2, 2))
    with pytest.raises(errors.UnexpectedResponseError, match="gave 8 bytes; wanted 27"):
        volume.get_ndarray((0, 0, 0, 0), (1, 3, 3, 3))
    connection.close()
