"""The tutorial of DVIDCloudStore: one array on a server, sliced ZYX."""

import threading

import numpy as np
import pytest
from serving import serving

from diced.errors import InvalidError, NotFoundError


def test_the_tutorial(server):
    from DVIDVolume import DVIDVolume

    uuid = server.repo("cloud")
    vol = DVIDVolume(server.netloc, uuid, "dataname", DVIDVolume.uint8)
    z0, z1, y0, y1, x0, x1 = 10, 74, -5, 90, 100, 131
    numpydata = np.random.default_rng(3).integers(0, 255, (64, 95, 31), np.uint8)
    vol[z0:z1, y0:y1, x0:x1] = numpydata
    assert np.array_equal(vol[z0:z1, y0:y1, x0:x1], numpydata)
    assert np.array_equal(vol[20, 0:5, 110], numpydata[10, 5:10, 10])
    again = DVIDVolume(server.netloc, uuid[:8], "dataname", DVIDVolume.uint8)
    assert np.array_equal(again[z0:z1, y0:y1, x0:x1], numpydata)
    stored = server.store.open_repo("cloud")["dataname"]
    assert np.array_equal(stored[z0:z1, y0:y1, x0:x1], numpydata)


@pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "uint64"])
def test_its_types(server, name):
    from DVIDVolume import DVIDVolume

    vol = DVIDVolume(server.netloc, server.repo(), "a", getattr(DVIDVolume, name))
    top = np.iinfo(name).max
    vol[0:2, 0:2, 0:2] = np.full((2, 2, 2), top, name)
    assert (vol[0:2, 0:2, 0:2] == top).all() and vol[0:1, 0:1, 0:1].dtype == name


def test_versions_are_locked_and_branched_elsewhere(server):
    from DVIDVolume import DVIDVolume

    uuid = server.repo()
    vol = DVIDVolume(server.netloc, uuid, "a", DVIDVolume.uint8)
    vol[0:4, 0:4, 0:4] = 1
    server.post(f"node/{uuid}/commit", {"note": "done"})
    child = server.post(f"node/{uuid}/newversion", {}).json["child"]
    later = DVIDVolume(server.netloc, child, "a", DVIDVolume.uint8)
    later[0:4, 0:4, 0:4] = 2
    assert (vol[0:4, 0:4, 0:4] == 1).all() and (later[0:4, 0:4, 0:4] == 2).all()
    with pytest.raises(Exception, match="locked"):
        vol[0:4, 0:4, 0:4] = 3


def test_several_servers_over_one_store_and_parallel_unaligned_writes(tmp_path):
    from DVIDVolume import DVIDVolume

    with serving(tmp_path / "s") as one, serving(tmp_path / "s") as two:
        uuid = one.repo()
        DVIDVolume(one.netloc, uuid, "a", DVIDVolume.uint16)
        data = np.random.default_rng(4).integers(0, 2**16, (4, 40, 50, 60), np.uint16)

        def work(number):
            vol = DVIDVolume((one, two)[number % 2].netloc, uuid, "a", DVIDVolume.uint16)
            vol[40 * number : 40 * number + 40, 7:57, 3:63] = data[number]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        vol = DVIDVolume(two.netloc, uuid, "a", DVIDVolume.uint16)
        assert np.array_equal(vol[0:160, 7:57, 3:63], data.reshape(160, 50, 60))


def test_mistakes(server):
    from DVIDVolume import DVIDVolume

    uuid = server.repo()
    server.instance(uuid, "uint8blk", "flat", BlockSize="64,64")
    DVIDVolume(server.netloc, uuid, "a", DVIDVolume.uint8)
    with pytest.raises(InvalidError, match="wanted 3-D uint16"):
        DVIDVolume(server.netloc, uuid, "a", DVIDVolume.uint16)
    with pytest.raises(InvalidError, match="2-D"):
        DVIDVolume(server.netloc, uuid, "flat", DVIDVolume.uint8)
    with pytest.raises(NotFoundError):
        DVIDVolume(server.netloc, "0000000000", "a", DVIDVolume.uint8)
