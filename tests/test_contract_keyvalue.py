"""DVID's reference, row by row: keyvalue."""

import io
import json
import tarfile

import pytest
from contract import hold

OCTETS = "application/octet-stream"


@pytest.fixture
def kv(server):
    """The path of an instance with some keys."""
    uuid = server.repo()
    server.instance(uuid, "keyvalue", "kv")
    for key, value in (("a", b'{"n":1}'), ("b", b"0123456789"), ("b2", b""), ("c", b"[1]")):
        server.post(f"node/{uuid}/kv/key/{key}", value)
    return f"node/{uuid}/kv"


def field(number, data):
    return bytes([8 * number + 2, len(data)]) + data


def pairs(*found):
    """A KeyValues message of short keys and values; what is empty is left out."""
    return b"".join(
        field(1, field(1, key.encode()) + (field(2, value) if value else b""))
        for key, value in found
    )


def part(key, first, last):
    """A KeyRange as it stands in a Keys message."""
    return field(2, field(1, key.encode()) + bytes([0x10, first, 0x18, last]))


# -- one key -------------------------------------------------------------------------------

KEYS = [
    ("GET {p}/key/b", None, b"0123456789"),
    ("GET {p}/key/b2", None, b""),
    ("GET {p}/key/none", None, (404, b'Key "none" not found\n')),
    ("HEAD {p}/key/b", None, 200),
    ("HEAD {p}/key/b2", None, 200),
    ("HEAD {p}/key/none", None, 404),
    ("POST {p}/key/new", b"\0\xff", b""),
    ("GET {p}/key/new", None, b"\0\xff"),
    ("POST {p}/key/new", b"other", b""),
    ("GET {p}/key/new", None, b"other"),
    ("DELETE {p}/key/new", None, b""),
    ("DELETE {p}/key/new", None, b""),  # it is not there any more
    ("GET {p}/key/new", None, 404),
    ("GET {p}/key", None, 400),
    ("POST {p}/key", b"x", 400),
    # All of a path is the key; DVID cuts it at a slash.
    ("POST {p}/key/x%2Fy", b"deep", b""),
    ("GET {p}/key/x%2Fy", None, b"deep"),
    ("GET {p}/key/x/y", None, b"deep"),
    ("GET {p}/key/x", None, 404),
    ("DELETE {p}/key/x/y", None, b""),
    # As clients of 2014 ask.
    ("POST {p}/bare", b"1", b""),
    ("GET {p}/bare", None, b"1"),
    ("DELETE {p}/bare", None, b""),
    ("GET {p}/keys", None, ["a", "b", "b2", "c"]),
]


def test_keys_one_by_one(server, kv):
    hold(server, KEYS, p=kv)


def test_headers_of_a_value(server, kv):
    reply = server.get(f"{kv}/key/b")
    assert reply.headers["content-type"] == OCTETS
    assert reply.headers["content-length"] == "10"
    assert reply.headers["accept-ranges"] == "bytes"
    reply = server.ask("HEAD", f"{kv}/key/b")
    assert reply.headers["accept-ranges"] == "bytes" and reply.body == b""


PARTS = [
    ("byte_start=0&byte_end=0", b"0"), ("byte_start=2&byte_end=5", b"2345"),
    ("byte_start=0&byte_end=9", b"0123456789"), ("byte_start=9&byte_end=9", b"9"),
    *((query, 400) for query in (
        "byte_start=1", "byte_end=1", "byte_start=0&byte_end=10", "byte_start=10&byte_end=10",
        "byte_start=5&byte_end=4", "byte_start=-1&byte_end=2", "byte_start=a&byte_end=b",
        "byte_start=&byte_end=",
    )),
]  # fmt: skip
RANGES = {
    "bytes=2-5": "2-5", "bytes=7-": "7-9", "bytes=-3": "7-9", "bytes=0-99": "0-9",
    "bytes=-99": "0-9", "bytes=9-9": "9-9", "bytes=10-": None, "bytes=10-20": None,
    "bytes=-0": None,
}  # fmt: skip


def test_parts_of_a_value(server, kv):
    hold(server, [(f"GET {{p}}/key/b?{query}", None, wanted) for query, wanted in PARTS], p=kv)
    for asked, found in RANGES.items():
        reply = server.ask("GET", f"{kv}/key/b", headers={"Range": asked})
        if found is None:
            assert (reply.status, reply.headers["content-range"]) == (416, "bytes */10")
            continue
        first, last = map(int, found.split("-"))
        assert (reply.status, reply.body) == (206, b"0123456789"[first : last + 1])
        assert reply.headers["content-range"] == f"bytes {found}/10"
        assert reply.headers["content-length"] == str(last + 1 - first)
    whole = [("GET {p}/key/b", None, b"0123456789")]
    for ignored in ("bytes=0-1,3-4", "bytes=5-2", "bytes=", "bytes=x-", "chars=0-1", "0-1"):
        hold(server, whole, {"Range": ignored}, p=kv)
    both = [("GET {p}/key/b?byte_start=0&byte_end=1", None, 400)]
    hold(server, both, {"Range": "bytes=0-1"}, p=kv)
    hold(server, [("GET {p}/key/none", None, 404)], {"Range": "bytes=0-1"}, p=kv)


# -- many keys -----------------------------------------------------------------------------

LISTS = [
    ("GET {p}/keys", None, b'["a","b","b2","c"]'),
    ("GET {p}/keys/0/z", None, b'["a","b","b2","c"]'),
    ("GET {p}/keys/anything", None, b'["a","b","b2","c"]'),
    ("GET {p}/keyrange/a/b", None, b'["a","b"]'),  # both ends are in it
    ("GET {p}/keyrange/b/b2", None, b'["b","b2"]'),
    ("GET {p}/keyrange/b1/c", None, b'["b2","c"]'),
    ("GET {p}/keyrange/%20/%7F", None, b'["a","b","b2","c"]'),
    ("GET {p}/keyrange/x/z", None, b"[]"),
    ("GET {p}/keyrange/c/a", None, b"[]"),
    ("GET {p}/keyrange/a", None, 400),
    ("GET {p}/keyrange", None, 400),
    ("GET {p}/keyrangevalues/a", None, 400),
]
A, B, B2, C = ("a", b'{"n":1}'), ("b", b"0123456789"), ("b2", b""), ("c", b"[1]")
VALUES = [
    ("GET {p}/keyrangevalues/a/b2", None, pairs(A, B, B2)),
    ("GET {p}/keyrangevalues/a/b2?protobuf=true", None, pairs(A, B, B2)),
    ("GET {p}/keyrangevalues/a/a?json=true", None, b'{"a":{"n":1}}'),
    ("GET {p}/keyrangevalues/b2/z?json=true", None, b'{"b2":{},"c":[1]}'),
    ("GET {p}/keyrangevalues/x/z?json=true", None, b"{}"),
    ("GET {p}/keyrangevalues/x/z", None, b""),
    ("GET {p}/keyrangevalues/a/c?tar=true&json=true", None, 400),
    ("GET {p}/keyrangevalues/a/c?jsontar=true&json=true", None, 400),
    # Only "true" counts: neuroglancer's helper says jsontar=false.
    *((f"GET {{p}}/keyrangevalues/a/a?{query}", None, pairs(A))
      for query in ("json=false", "jsontar=false", "tar=1", "json=on", "json=", "check=false")),
    ("GET {p}/keyvalues", field(1, b"b") + field(1, b"none") + field(1, b"a"),
     pairs(B, ("none", b""), A)),
    ("GET {p}/keyvalues", b"", b""),
    ("GET {p}/keyvalues", part("b", 2, 4), pairs(("b", b"234"))),
    ("GET {p}/keyvalues", part("none", 2, 4), pairs(("none", b""))),
    ("GET {p}/keyvalues", part("b", 2, 10), 400),
    ("GET {p}/keyvalues", b"not protobuf", 400),
    ("GET {p}/keyvalues?json=true", ["c", "none", "b2", "a"],
     b'{"c":[1],"none":{},"b2":{},"a":{"n":1}}'),
    ("GET {p}/keyvalues?json=true", '[{{"key": "b", "byte_start": 1, "byte_end": 2}}, "c"]',
     b'{"b":12,"c":[1]}'),
    ("GET {p}/keyvalues?json=true", [], b"{}"),
    ("GET {p}/keyvalues?json=true", b"", 400),
    ("GET {p}/keyvalues?json=true", {"key": "a"}, 400),
    ("GET {p}/keyvalues?json=true", [5], 400),
]  # fmt: skip


def test_lists_of_keys_and_values(server, kv):
    hold(server, LISTS, p=kv)
    hold(server, VALUES, p=kv)
    assert server.get(f"{kv}/keyrangevalues/a/b").headers["content-type"] == OCTETS
    assert server.get(f"{kv}/keys").headers["content-type"] == "application/json"


def test_json_is_checked_unless_told_otherwise(server, kv):
    # DVID's help says it checks, its code does not unless check=true.
    server.post(f"{kv}/key/bad", b"no json")
    rows = [
        (f"GET {{p}}/keyrangevalues/bad/bad?json=true{query}", None, wanted)
        for query, wanted in (("", 400), ("&check=true", 400), ("&check=false", b'{"bad":no json}'))
    ]
    hold(server, rows, p=kv)


@pytest.mark.parametrize("flag", ["tar", "jsontar"])
def test_tar(server, kv, flag):
    for request, body, wanted in (
        (f"{kv}/keyrangevalues/b/c?{flag}=true", None, [B, B2, C]),
        (f"{kv}/keyvalues?{flag}=true", ["c", "none", "a"], [C, ("none", b""), A]),
    ):
        reply = server.get(request, body=body)
        assert reply.headers["content-type"] == "application/tar"
        with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
            members = tar.getmembers()
            assert {each.mode for each in members} == {0o755}
            assert [(each.name, tar.extractfile(each).read()) for each in members] == wanted


def test_posting_many(server, kv):
    hold(
        server,
        [
            ("POST {p}/keyvalues", pairs(("a", b"new"), ("d", b"1"), ("e", b"")), b""),
            ("GET {p}/key/a", None, b"new"),
            ("GET {p}/key/e", None, b""),
            ("POST {p}/keyvalues", pairs(("f", b"1")) + b"\x0a\x50", 400),
            ("GET {p}/key/f", None, 404),  # all or nothing, unlike DVID
            ("GET {p}/keys", None, ["a", "b", "b2", "c", "d", "e"]),
        ],
        p=kv,
    )


# -- the instance --------------------------------------------------------------------------


def test_info_help_and_tags(server, kv):
    info = server.get(f"{kv}/info").body
    assert json.loads(info)["Extended"] == {}
    hold(
        server,
        [
            *((f"{method} {{p}}/info", b"", info) for method in ("POST", "PUT", "DELETE")),
            ("POST {p}/info", {"Tags": {"x": "y"}}, info),
            ("HEAD {p}/info", None, 200),
            ("GET {p}/help", None, "keyrangevalues"),
            ("GET {p}/tags", None, {"Tags": {}}),
            ("POST {p}/tags", {"a": "1", "b": "2"}, b""),
            ("POST {p}/tags", {"b": "3"}, b""),
            ("GET {p}/tags", None, {"Tags": {"a": "1", "b": "3"}}),
            ("POST {p}/tags?replace=true", {"c": "4"}, b""),
            ("GET {p}/tags", None, {"Tags": {"c": "4"}}),
            ("POST {p}/tags", {"c": 4}, 400),
            ("POST {p}/tags", b"", 400),
            *((f"POST {{p}}/{word}", b"x", 400)
              for word in ("help", "mutations", "metadata", "blobstore/a", "keyrange/a", "keys")),
            ("GET {p}/keys", None, ["a", "b", "b2", "c"]),
        ],
        p=kv,
    )  # fmt: skip


def test_mutations(server, kv):
    uuid = kv.split("/")[1]
    server.ask("DELETE", f"{kv}/key/a?u=ann")
    found = server.get(f"{kv}/mutations").json
    assert [(each["Action"], each["Key"]) for each in found] == [
        ("postkv", "a"), ("postkv", "b"), ("postkv", "b2"), ("postkv", "c"), ("delete", "a"),
    ]  # fmt: skip
    assert [each.get("Bytes") for each in found[1:]] == [10, 0, 3, None]
    assert all(each["UUID"] == uuid and each["Timestamp"] for each in found)
    assert server.get(f"{kv}/mutations-range/{uuid}/{uuid}").json == found
    assert server.get(f"{kv}/mutations?userid=ann").json == found[-1:]
    hold(
        server,
        [
            ("GET {p}/mutations?userid=nobody", None, b"[]"),
            ("GET {p}/mutations-range/{u}", None, 400),
            ("GET {p}/mutations-range/{u}/0000", None, 400),
        ],
        p=kv, u=uuid,
    )  # fmt: skip
