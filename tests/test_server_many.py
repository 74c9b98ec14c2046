"""Several servers and an embedded writer over one store; a server that is killed amid writes."""

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from serving import serving

from diced import DicedStore

SIDE = 32


@pytest.fixture(params=["disk", "bucket"])
def location(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "store")
    return request.getfixturevalue("gcs").url()


def raw(place, size=(SIDE,) * 3):
    return "raw/0_1_2/" + "_".join(map(str, size)) + "/" + "_".join(map(str, place))


def test_a_post_to_one_is_seen_at_the_other(location):
    own = DicedStore(location, max_age=0)
    with own, serving(location) as one, serving(location) as two:
        uuid = one.repo("shared")
        one.instance(uuid, "uint8blk", "gray", BlockSize="32,32,32")
        one.instance(uuid, "keyvalue", "kv")
        embedded = own.open_repo("shared")
        for turn, (writer, reader) in enumerate([(one, two), (two, one)] * 4):
            data = np.full((SIDE,) * 3, turn + 1, np.uint8)
            writer.post(f"node/{uuid}/gray/{raw((0, 0, 0))}", data.tobytes())
            assert reader.get(f"node/{uuid}/gray/{raw((0, 0, 0))}").body == data.tobytes()
            assert (embedded["gray"][:SIDE, :SIDE, :SIDE] == turn + 1).all()
            writer.post(f"node/{uuid}/kv/key/k", f"{turn}".encode())
            assert reader.get(f"node/{uuid}/kv/key/k").text == f"{turn}"
            embedded["gray"][0, 0, 0] = 100 + turn
            assert reader.get(f"node/{uuid}/gray/{raw((0, 0, 0), (1, 1, 1))}").body[0] == 100 + turn
            embedded["kv"]["mine"] = f"{turn}"
            assert writer.get(f"node/{uuid}/kv/key/mine").text == f"{turn}"
        one.post(f"node/{uuid}/commit", {"note": "done"})
        assert two.get(f"node/{uuid}/status").json == {"Locked": True}
        two.refused("POST", f"node/{uuid}/kv/key/k", b"late")
        child = two.post(f"node/{uuid}/newversion", {"note": "next"}).json["child"]
        one.post(f"node/{child}/kv/key/k", b"in the child")
        assert two.get(f"node/{child}/kv/key/k").text == "in the child"
        assert two.get(f"node/{uuid}/kv/key/k").text == "7"
        assert own.open_repo("shared", version=child)["kv"]["k"] == b"in the child"


def test_overlapping_posts_never_mix(location):
    """Boxes that share blocks at their borders: each is there whole, in some order."""
    with serving(location) as one, serving(location) as two:
        uuid = one.repo("mixed")
        one.instance(uuid, "uint16blk", "a", BlockSize="32,32,32")
        size, errors = (80, 80, 80), []

        def work(number):
            server = (one, two)[number % 2]
            try:
                for turn in range(4):
                    data = np.full(size, 10 * number + turn + 1, "<u2")
                    server.post(f"node/{uuid}/a/{raw((5, 5, 5), size)}", data.tobytes())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for each in threads:
            each.start()
        seen = set()
        while any(each.is_alive() for each in threads):
            body = one.get(f"node/{uuid}/a/{raw((5, 5, 5), size)}").body
            values = np.unique(np.frombuffer(body, "<u2"))
            assert len(values) == 1, values
            seen.add(int(values[0]))
        for each in threads:
            each.join()
        assert not errors, errors[0]
        assert seen


def start(location, port):
    words = [sys.executable, "-m", "diced", "serve", location, "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/api/server/info")
            assert connection.getresponse().status == 200
            connection.close()
            return process
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def test_a_killed_server_loses_nothing(location):
    with DicedStore(location) as store:
        repo = store.create_repo("killed")
        repo.create_array("a", np.uint32, block_shape=(SIDE,) * 3)
        uuid = repo.uuid
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    acknowledged = {}
    rng = secrets.SystemRandom()

    def work(number):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            for turn in range(10_000):
                data = np.full((SIDE,) * 3, 1000 * number + turn + 1, "<u4").tobytes()
                path = f"/api/node/{uuid}/a/{raw((SIDE * turn, SIDE * number, 0))}"
                connection.request("POST", path, data)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    acknowledged[number, turn] = 1000 * number + turn + 1
        except (OSError, http.client.HTTPException):
            pass  # it was killed
        finally:
            connection.close()

    process = start(location, port)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for each in threads:
        each.start()
    began = time.monotonic()
    while not acknowledged and time.monotonic() - began < 60:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.3, 1.0))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for each in threads:
        each.join()
    assert acknowledged
    again = start(location, port)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for (number, turn), value in acknowledged.items():
            path = f"/api/node/{uuid}/a/{raw((SIDE * turn, SIDE * number, 0))}"
            connection.request("GET", path)
            found = np.frombuffer(connection.getresponse().read(), "<u4")
            assert (found == value).all(), (number, turn)
        connection.close()
    finally:
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 0
    with DicedStore(location) as store:
        array = store.open_repo("killed")["a"]
        array[0, 0, 0] = 5  # nothing that the dead server left stands in the way
        assert array[0, 0, 0] == 5
