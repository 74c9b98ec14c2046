"""Answers in pieces: what becomes of the rest when it is not wanted, or does not come."""

import gc
import socket
import threading

import pytest
from serving import serving

import diced.files
from diced import pool
from diced.roi import RoiArray

MASK = "roi/mask/0_1_2/512_512_{}/0_0_0?throttle=on"


def test_who_leaves_while_values_are_read_holds_up_nobody(server, monkeypatch):
    """As on a bucket, where they are read side by side and closing waits for those under way."""
    uuid = server.repo()
    server.instance(uuid, "keyvalue", "kv")
    for number in range(40):
        server.post(f"node/{uuid}/kv/key/k{number:02}", bytes(2**21))
    go, waiting, calls = threading.Event(), threading.Event(), []
    load = diced.files.load_value

    def slow(*args):
        calls.append(args)
        if len(calls) > 20:
            waiting.set()
            assert go.wait(60)
        return load(*args)

    monkeypatch.setattr(diced.files, "load_value", slow)
    monkeypatch.setattr(
        diced.files.KeyValueArray,
        "_side_by_side",
        lambda self, read, each: pool.map_ordered(read, each, 16),
    )
    host, port = server.netloc.split(":")
    answered = threading.Event()
    asks = threading.Thread(target=lambda: (server.get("load"), answered.set()), daemon=True)
    try:
        with socket.create_connection((host, int(port))) as client:
            path = f"/api/node/{uuid}/kv/keyrangevalues/k00/k99?tar=true"
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert client.recv(1000)
            assert waiting.wait(60)
        asks.start()
        assert answered.wait(20)
    finally:
        go.set()
    asks.join()


@pytest.mark.parametrize("how", ["late", "wrong", "left"])
def test_a_slot_of_the_throttle_is_given_back_when_a_later_piece_is_not_had(monkeypatch, how):
    go, count = threading.Event(), []
    mask = RoiArray.mask

    def odd(self, lo, hi):
        count.append(lo)
        if len(count) == 3 and how == "late":
            assert go.wait(60)
        if len(count) == 3 and how == "wrong":
            raise RuntimeError("a piece cannot be made")
        return mask(self, lo, hi)

    monkeypatch.setattr(RoiArray, "mask", odd)
    with serving("memory://", request_seconds=1, throttle=1) as server:
        uuid = server.repo()
        server.instance(uuid, "roi", "roi")
        server.post(f"node/{uuid}/roi/roi", b"[[0,0,0,5]]")
        gc.collect()
        gc.disable()  # it must not take a look for unreachable objects
        try:
            host, port = server.netloc.split(":")
            with socket.create_connection((host, int(port)), timeout=30) as client:
                path = f"/api/node/{uuid}/{MASK.format(128)}"
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                got = len(client.recv(2**16))
                while how != "left" and (more := len(client.recv(2**16))):
                    got += more
            assert 0 < got < 512 * 512 * 128
            go.set()
            for _ in range(100):
                status = server.ask("GET", f"node/{uuid}/{MASK.format(1)}").status
                if status == 200:
                    break
                threading.Event().wait(0.1)
            assert status == 200
        finally:
            gc.enable()
