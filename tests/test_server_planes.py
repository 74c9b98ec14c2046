"""Planes that are resampled over HTTP: ``arb`` and ``isotropic``."""

import io

import numpy as np
import pytest
from PIL import Image

from diced.server.datatype import Settings, find_type


class Data:
    """An instance with noise in it, of voxels of 4 x 4 x 8 (XYZ)."""

    def __init__(self, server, typename="uint8blk", voxel_size="4,4,8"):
        server.store.create_repo("planes")
        repo = server.store.open_repo("planes")
        given = {"VoxelSize": voxel_size, "BlockSize": "32,32,32"}
        self.array = find_type(typename).create(repo, "data", Settings(given), True)
        self.server = server
        self.path = f"node/{repo.uuid}/data"
        info = np.iinfo(self.array.dtype)
        self.values = np.random.default_rng(0).integers(0, info.max, (50, 60, 70), self.array.dtype)
        self.array[:50, :60, :70] = self.values

    def picture(self, path):
        reply = self.server.get(f"{self.path}/{path}")
        assert reply.headers["content-type"] == "image/png"
        return np.asarray(Image.open(io.BytesIO(reply.body)))


@pytest.fixture
def data(server):
    return Data(server)


def test_arb_along_the_axes_gives_voxels(data):
    # 4 units per voxel: 10 to 29 along x, 5 to 20 along y, at z = 7.
    found = data.picture("arb/40_20_56/116_20_56/40_80_56/4")
    assert np.array_equal(found, data.values[7, 5:21, 10:30])
    found = data.picture("arb/40,20,56/40,80,56/40,20,120/4.0/png")  # columns along y, rows along z
    assert found.shape == (17, 16)
    assert np.array_equal(found[::2], data.values[7:16, 5:21, 10])
    between = (data.values[7:15, 5:21, 10].astype(float) + data.values[8:16, 5:21, 10]) / 2
    assert np.abs(found[1::2] - between).max() <= 0.5


def test_arb_at_an_angle_is_a_plane_of_the_array(data):
    found = data.picture("arb/10.5_20_40/150.5_120_200/30_150_90/3.25")
    corner, right, below = (np.array(each)[::-1] for each in
                            ((10.5, 20, 40), (150.5, 120, 200), (30, 150, 90)))  # fmt: skip
    size = np.array([8, 4, 4])
    across, down = right - corner, below - corner
    columns = int(np.linalg.norm(across) // 3.25) + 1
    rows = int(np.linalg.norm(down) // 3.25) + 1
    wanted = data.array.plane(
        corner / size,
        down / np.linalg.norm(down) * 3.25 / size,
        across / np.linalg.norm(across) * 3.25 / size,
        (rows, columns),
    )
    assert found.shape == (rows, columns) and np.array_equal(found, wanted)
    raw = data.server.get(f"{data.path}/arb/10.5_20_40/150.5_120_200/30_150_90/3.25/raw")
    assert raw.body == wanted.tobytes()
    jpeg = data.server.get(f"{data.path}/arb/10.5_20_40/150.5_120_200/30_150_90/3.25/jpg:90")
    assert Image.open(io.BytesIO(jpeg.body)).size == (columns, rows)


def test_arb_of_one_pixel_and_outside(data):
    assert data.picture("arb/4_8_8/4_8_8/4_8_8/1").tolist() == [[data.values[1, 2, 1]]]
    assert not data.picture("arb/-400_-400_0/-300_-400_0/-400_-300_0/10").any()


@pytest.mark.parametrize(
    "path",
    [
        "1_2/1_2_3/1_2_3/1", "1_2_x/1_2_3/1_2_3/1", "nan_0_0/1_2_3/1_2_3/1",
        "0_0_0/inf_2_3/1_2_3/1", "0_0_0/1_0_0/0_1_0/0", "0_0_0/1_0_0/0_1_0/-1",
        "0_0_0/1_0_0/0_1_0/nan", "0_0_0/1_0_0/0_1_0/x", "0_0_0/1e308_0_0/0_-1e308_0/1",
        "0_0_0/1e308_1e308_1e308/0_1_0/1e-300", "0_0_0/100000_0_0/0_100000_0/1",
        "1e12_0_0/1e12_1_0/1e12_0_1/1", "0_0_0/1_0_0/0_1_0/1/gif", "0_0_0/1_0_0/0_1_0/1/png:9",
        "0_0_0/1_0_0/0_1_0/1e-320", "0_0_0_0/1_0_0/0_1_0/1", "__/__/__/_",
    ],
)  # fmt: skip
def test_arb_refuses(data, path):
    assert len(data.server.refused("GET", f"{data.path}/arb/{path}")) < 1000
    data.server.refused("POST", f"{data.path}/arb/0_0_0/1_0_0/0_1_0/1", b"x")


def test_arb_of_other_types(server):
    data = Data(server, "uint16blk", "8,8,8")
    found = data.picture("arb/80_40_56/232_40_56/80_160_56/8")
    assert np.array_equal(found, data.values[7, 5:21, 10:30])
    flat = data.array._repo.create_array("flat", dims=2)
    server.refused("GET", f"node/{flat._repo.uuid}/flat/arb/0_0_0/1_0_0/0_1_0/1")


def test_arb_and_isotropic_are_throttled(data):
    with data.server.app.site.throttle.slot():
        for path in ("arb/0_0_0/1_0_0/0_1_0/1", "isotropic/xy/4_4/0_0_0"):
            data.server.refused("GET", f"{data.path}/{path}?throttle=true", status=503)


def test_isotropic_stretches_the_coarse_axis(data):
    # Voxels are twice as high as wide: 40 pixels along z are 20 voxels.
    found = data.picture("isotropic/xz/30_40/5_7_10")
    assert found.shape == (40, 30)
    box = data.values[9:31, 7, 5:35].astype(float)
    first = 0.25 * box[:-2] + 0.75 * box[1:-1]
    second = 0.75 * box[1:-1] + 0.25 * box[2:]
    assert np.abs(found[::2] - first).max() <= 0.51
    assert np.abs(found[1::2] - second).max() <= 0.51
    assert data.picture("isotropic/yz/30_40/5_7_10").shape == (40, 30)
    assert np.array_equal(data.picture("isotropic/xy/30_40/5_7_10"), data.values[10, 7:47, 5:35])
    assert np.array_equal(data.picture("xz/isotropic/30_40/5_7_10"), found)
    raw = data.server.get(f"{data.path}/isotropic/xz/30_40/5_7_10/raw").body
    assert raw == found.tobytes()


def test_isotropic_volumes_are_raw(data):
    body = data.server.get(f"{data.path}/isotropic/0_1_2/3_4_5/1_2_3").body
    assert body == data.values[3:8, 2:6, 1:4].tobytes()
    data.server.refused("POST", f"{data.path}/isotropic/0_1_2/3_4_5/1_2_3", b"x" * 60)
    data.server.refused("GET", f"{data.path}/isotropic/xy/30000_30000/1_2_3")
    data.server.refused("GET", f"{data.path}/isotropic/xz/30_40/5_7_-2147483648")
