"""The data type keyvalue over HTTP."""

import io
import json
import secrets
import tarfile
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import serving

from diced import protobuf
from diced.errors import InvalidError
from diced.server.keyvalue import parse_range

ALPHABET = b"abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def node(server):
    """The path of an instance ``kv`` of a new repo."""
    uuid = server.repo()
    server.instance(uuid, "keyvalue", "kv")
    return f"node/{uuid}/kv"


def key_values(*pairs):
    """A KeyValues message, made without the code under test; all lengths are below 128."""
    out = b""
    for key, value in pairs:
        name = key.encode()
        inner = b"\x0a" + bytes([len(name)]) + name
        inner += b"\x12" + bytes([len(value)]) + value if value else b""
        out += b"\x0a" + bytes([len(inner)]) + inner
    return out


# -- one key -------------------------------------------------------------------------------


def test_a_value(server, node):
    server.post(f"{node}/key/a.dat", b"\0one\xff")
    reply = server.get(f"{node}/key/a.dat")
    assert reply.body == b"\0one\xff"
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["content-length"] == "5"
    server.post(f"{node}/key/a.dat", b"")
    assert server.get(f"{node}/key/a.dat").body == b""


def test_a_key_that_is_not_there(server, node):
    assert server.refused("GET", f"{node}/key/k", status=404) == 'Key "k" not found\n'
    assert server.ask("HEAD", f"{node}/key/k").status == 404
    assert server.ask("DELETE", f"{node}/key/k").status == 200


def test_head(server, node):
    server.post(f"{node}/key/k", b"x" * 1000)
    reply = server.ask("HEAD", f"{node}/key/k")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["accept-ranges"] == "bytes"


def test_delete(server, node):
    server.post(f"{node}/key/k", b"x")
    assert server.ask("DELETE", f"{node}/key/k").status == 200
    server.refused("GET", f"{node}/key/k", status=404)


@pytest.mark.parametrize(
    "key", ["a/b/c", "a b", "ä/ö", "instance:x:0f", "a..b", "a?b#c%d", "keys", "a//b", "x" * 4096]
)
def test_odd_keys(server, node, key):
    server.post(f"{node}/key/{quote(key)}", b"v")
    assert server.get(f"{node}/key/{quote(key)}").body == b"v"
    assert server.get(f"{node}/keys").json == [key]


def test_bad_keys(server, node):
    server.refused("POST", f"{node}/key", b"v")
    server.refused("POST", f"{node}/key/", b"v")
    server.refused("POST", f"{node}/key/{'x' * 4097}", b"v")


def test_a_large_value(disk_server):
    uuid = disk_server.repo()
    disk_server.instance(uuid, "keyvalue", "kv")
    path = f"node/{uuid}/kv/key/large"
    for value in (secrets.token_bytes(6 * 2**20), b"compressible" * 2**19):
        disk_server.post(path, value)
        reply = disk_server.get(path)
        assert reply.body == value
        assert reply.headers["content-length"] == str(len(value))
        part = disk_server.ask("GET", path, headers={"Range": "bytes=5000000-5000009"})
        assert (part.status, part.body) == (206, value[5000000:5000010])


def test_too_large_a_value_is_refused_before_it_is_sent(server, node):
    assert (
        server.ask("POST", f"{node}/key/k", headers={"Content-Length": str(2**30 + 1)}).status
        == 413
    )


# -- parts of a value ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("0-0", 0, 0), ("2-5", 2, 5), ("20-", 20, 25), ("-3", 23, 25), ("5-999", 5, 25),
        ("-999", 0, 25), ("25-25", 25, 25),
    ],
)  # fmt: skip
def test_range(server, node, asked, first, last):
    server.post(f"{node}/key/k", ALPHABET)
    reply = server.ask("GET", f"{node}/key/k", headers={"Range": f"bytes={asked}"})
    assert (reply.status, reply.body) == (206, ALPHABET[first : last + 1])
    assert reply.headers["content-range"] == f"bytes {first}-{last}/26"
    assert reply.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", ["26-", "26-30", "-0"])
def test_a_range_beyond_the_end(server, node, asked):
    server.post(f"{node}/key/k", ALPHABET)
    reply = server.ask("GET", f"{node}/key/k", headers={"Range": f"bytes={asked}"})
    assert (reply.status, reply.headers["content-range"]) == (416, "bytes */26")


@pytest.mark.parametrize(
    "asked", ["bytes=1-2,4-5", "bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "lines=1-2", "x"]
)
def test_a_range_that_is_not_understood_is_ignored(server, node, asked):
    server.post(f"{node}/key/k", ALPHABET)
    reply = server.ask("GET", f"{node}/key/k", headers={"Range": asked})
    assert (reply.status, reply.body) == (200, ALPHABET)


def test_range_of_an_empty_value(server, node):
    server.post(f"{node}/key/k", b"")
    assert server.ask("GET", f"{node}/key/k", headers={"Range": "bytes=0-"}).status == 416


@given(st.text(), st.integers(0, 99))
def test_any_range_header(text, size):
    for asked in (text, f"bytes={text}"):
        found = parse_range(asked, size)
        assert found is None or (found[0] >= 0 and found[1] < size) or found[0] > found[1]


def test_byte_start_and_byte_end(server, node):
    server.post(f"{node}/key/k", ALPHABET)
    reply = server.get(f"{node}/key/k?byte_start=2&byte_end=5")
    assert (reply.status, reply.body) == (200, b"cdef")
    assert server.get(f"{node}/key/k?byte_start=0&byte_end=25").body == ALPHABET
    for query in (
        "byte_start=2", "byte_end=2", "byte_start=5&byte_end=2", "byte_start=0&byte_end=26",
        "byte_start=-1&byte_end=2", "byte_start=x&byte_end=2",
    ):  # fmt: skip
        server.refused("GET", f"{node}/key/k?{query}")
    both = {"Range": "bytes=1-2"}
    server.refused("GET", f"{node}/key/k?byte_start=2&byte_end=5", headers=both)


# -- keys ----------------------------------------------------------------------------------


def test_keys(server, node):
    assert server.get(f"{node}/keys").text == "[]"
    for key in ("b", "a", "ä", "B", "a0"):
        server.post(f"{node}/key/{quote(key)}", b"v")
    assert server.get(f"{node}/keys").json == ["B", "a", "a0", "b", "ä"]
    assert server.get(f"{node}/keys/0/z").json == ["B", "a", "a0", "b", "ä"]
    assert server.get(f"{node}/keyrange/a/b").json == ["a", "a0", "b"]
    assert server.get(f"{node}/keyrange/a1/b").json == ["b"]
    assert server.get(f"{node}/keyrange/z/a").text == "[]"
    server.refused("GET", f"{node}/keyrange/a")


def test_so_many_keys_that_they_are_streamed(disk_server):
    uuid = disk_server.repo()
    disk_server.instance(uuid, "keyvalue", "kv")
    names = [f"{number}" + "n" * 100 for number in range(100_000, 120_000)]
    kv = disk_server.store.open_repo(uuid=uuid)["kv"]
    kv.put_many({name: name[:6] for name in names})
    assert disk_server.get(f"node/{uuid}/kv/keys").json == names
    reply = disk_server.get(f"node/{uuid}/kv/keyrangevalues/0/9?check=false&json=true")
    assert list(reply.json) == names
    found = dict(
        protobuf.read_key_values(disk_server.get(f"node/{uuid}/kv/keyrangevalues/0/9").body)
    )
    assert found == {name: name[:6].encode() for name in names}


# -- many values ---------------------------------------------------------------------------


def test_keyrangevalues(server, node):
    server.post(f"{node}/keyvalues", key_values(("a", b'{"x":1}'), ("b", b""), ("c", b"[2]")))
    reply = server.get(f"{node}/keyrangevalues/a/b")
    assert reply.body == key_values(("a", b'{"x":1}'), ("b", b""))
    assert reply.headers["content-type"] == "application/octet-stream"
    assert server.get(f"{node}/keyrangevalues/a/b?protobuf=true").body == reply.body
    reply = server.get(f"{node}/keyrangevalues/a/z?json=true")
    assert reply.text == '{"a":{"x":1},"b":{},"c":[2]}'
    assert reply.headers["content-type"] == "application/json"
    server.refused("GET", f"{node}/keyrangevalues/a/z?json=true&tar=true")
    assert server.get(f"{node}/keyrangevalues/x/z?json=true").text == "{}"
    assert server.get(f"{node}/keyrangevalues/x/z").body == b""


def test_values_that_are_no_json(server, node):
    server.post(f"{node}/keyvalues", key_values(("good", b"1"), ("text", b"not json")))
    message = server.refused("GET", f"{node}/keyrangevalues/a/z?json=true")
    assert "text" in message
    reply = server.get(f"{node}/keyrangevalues/a/z?json=true&check=false")
    assert reply.text == '{"good":1,"text":not json}'


def files_of(reply):
    assert reply.headers["content-type"] == "application/tar"
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        members = tar.getmembers()
        assert all(each.mode == 0o755 and each.isfile() for each in members)
        return [(each.name, tar.extractfile(each).read()) for each in members]


@pytest.mark.parametrize("flag", ["tar", "jsontar"])
def test_tar(server, node, flag):
    pairs = [("a", b"one"), ("b/c" * 30, b""), ("ä" * 60, b"x" * 100)]
    for key, value in pairs:
        server.post(f"{node}/key/{quote(key)}", value)
    assert files_of(server.get(f"{node}/keyrangevalues/a/%C3%BF?{flag}=true")) == pairs
    asked = [pairs[2][0], "none", "a"]
    found = files_of(server.get(f"{node}/keyvalues?{flag}=true", body=asked))
    assert found == [pairs[2], ("none", b""), ("a", b"one")]


def test_keyvalues_as_protobuf(server, node):
    server.post(f"{node}/keyvalues", key_values(("a", b"one"), ("b", ALPHABET)))
    asked = b"\x0a\x01b\x0a\x04none\x0a\x01a"
    expected = key_values(("b", ALPHABET), ("none", b""), ("a", b"one"))
    assert server.get(f"{node}/keyvalues", body=asked).body == expected
    # A KeyRange: key 1, byte_start 2, byte_end 3; fields of value 0 may be left out.
    ranges = b"\x12\x07\x0a\x01b\x10\x02\x18\x05" + b"\x12\x05\x0a\x01b\x18\x01"
    expected = key_values(("a", b"one"), ("b", b"cdef"), ("b", b"ab"))
    assert server.get(f"{node}/keyvalues", body=ranges + b"\x0a\x01a").body == expected
    for end in (b"\x1a", b"\x01"):
        bad = b"\x12\x07\x0a\x01b\x10\x02\x18" + end
        server.refused("GET", f"{node}/keyvalues", bad)
    assert server.get(f"{node}/keyvalues").body == b""


def test_keyvalues_as_json(server, node):
    server.post(f"{node}/keyvalues", key_values(("a", b'{"x":1}'), ("n", b"1234")))
    asked = ["n", {"key": "n", "byte_start": 1, "byte_end": 2}, "none", {"key": "a"}]
    reply = server.get(f"{node}/keyvalues?json=true", body=asked)
    assert reply.text == '{"n":1234,"n":23,"none":{},"a":{"x":1}}'
    missing = [{"key": "none", "byte_start": 1, "byte_end": 2}]
    assert server.get(f"{node}/keyvalues?json=true", body=missing).text == '{"none":{}}'
    for bad in (
        [1], [{"key": 1}], [{"key": "n", "byte_start": 1}], [{"byte_start": 1, "byte_end": 2}],
        [{"key": "n", "byte_start": 1, "byte_end": 4}], {"key": "n"}, [["n"]], [""], None,
    ):  # fmt: skip
        server.refused("GET", f"{node}/keyvalues?json=true", body=json.dumps(bad).encode())
    # Only "true" asks for another form.
    assert server.get(f"{node}/keyvalues?jsontar=false", body=b"\x0a\x01n").body == (
        key_values(("n", b"1234"))
    )


def test_posting_many_is_one_commit(server, node):
    server.post(f"{node}/keyvalues", key_values(*((f"k{each}", b"v") for each in range(300))))
    repo = server.store.open_repo(uuid=node.split("/")[1])
    assert [each["operation"] for each in repo.operations("kv")] == ["put 300 keys"]
    assert len(server.get(f"{node}/keys").json) == 300
    # Of bad messages nothing is stored.
    good = key_values(("new", b"v"))
    for bad in (good + b"\x0a\x7f", good + b"\x0a", good + key_values(("", b"v")), good + b"\x0b"):
        server.refused("POST", f"{node}/keyvalues", bad)
    server.refused("GET", f"{node}/key/new", status=404)
    server.post(f"{node}/keyvalues", b"")


# -- protobuf ------------------------------------------------------------------------------


def test_messages_byte_by_byte():
    assert protobuf.key_value_head("key", 3) + b"abc" == bytes.fromhex("0a0a0a036b65791203616263")
    head = protobuf.key_value_head("k", 300)
    assert head == bytes.fromhex("0ab2020a016b12ac02")
    assert list(protobuf.read_key_values(head + b"v" * 300)) == [("k", b"v" * 300)]
    assert protobuf.varint(2**64 - 1) == b"\xff" * 9 + b"\x01"
    # Unknown fields of each wire type are skipped, and the last of a field counts.
    extra = b"\x18\x05" + b"\x21" + bytes(8) + b"\x2d" + bytes(4) + b"\x32\x02xy"
    inner = b"\x0a\x01a" + extra + b"\x0a\x01b\x12\x01v"
    message = extra + b"\x0a" + bytes([len(inner)]) + inner
    assert list(protobuf.read_key_values(message)) == [("b", b"v")]


@given(st.lists(st.tuples(st.text(max_size=200), st.binary(max_size=400)), max_size=5))
def test_key_values_there_and_back(pairs):
    try:
        message = b"".join(protobuf.key_value_head(key, len(value)) + value for key, value in pairs)
    except UnicodeEncodeError:
        return
    assert list(protobuf.read_key_values(message)) == pairs


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    for read in (protobuf.read_keys, lambda data: list(protobuf.read_key_values(data))):
        try:
            read(data)
        except InvalidError as error:
            assert "protobuf" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x05abc", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x", b"\x80" * 11, b"\x0a",
        b"\x08\x01", b"\x00\x00", b"\x0b", b"\x0a\x02\x0a\x05", b"\x0a\x03\x0a\x01\xff",
        b"\x09\x00",
    ],
)  # fmt: skip
def test_bad_messages(data):
    with pytest.raises(InvalidError):
        list(protobuf.read_key_values(data))


# -- the rest ------------------------------------------------------------------------------


def test_paths_of_2014(server, node):
    server.post(f"{node}/mykey", b"old")
    assert server.get(f"{node}/mykey").body == b"old"
    assert server.get(f"{node}/key/mykey").body == b"old"
    server.post(f"{node}/a/b", b"deep")
    assert server.get(f"{node}/keys").json == ["a/b", "mykey"]
    server.refused("GET", f"{node}/none", status=404)
    for word in ("keyrange/a", "keyrangevalues", "mutations-range/x", "key"):
        server.refused("POST", f"{node}/{word}", b"x")
    assert server.get(f"{node}/keys").json == ["a/b", "mykey"]


def test_info_and_help(server, node):
    for method in ("GET", "POST"):
        info = server.ask(method, f"{node}/info").json
        assert (info["Base"]["TypeName"], info["Extended"]) == ("keyvalue", {})
    assert "keyrangevalues/{first}/{last}" in server.get(f"{node}/help").text


def test_versions(server, node):
    server.post(f"{node}/key/k", b"one")
    repo = server.store.open_repo(uuid=node.split("/")[1])
    repo.lock_node("done")
    server.refused("POST", f"{node}/key/k", b"two")
    server.refused("POST", f"{node}/bare", b"two")
    server.refused("DELETE", f"{node}/key/k")
    server.refused("POST", f"{node}/keyvalues", key_values(("k", b"x")))
    assert server.ask("POST", f"{node}/info").status == 200
    child = f"node/{repo.create_branch('child')}/kv"
    assert server.get(f"{child}/key/k").body == b"one"
    assert server.ask("DELETE", f"{child}/key/k").status == 200
    server.refused("GET", f"{child}/key/k", status=404)
    assert server.get(f"{node}/key/k").body == b"one"


def test_unversioned(server):
    uuid = server.repo()
    server.instance(uuid, "keyvalue", "all", versioned="0")
    server.store.open_repo(uuid=uuid).lock_node("done")
    server.post(f"node/{uuid}/all/key/k", b"v")
    assert server.get(f"node/{uuid}/all/key/k").body == b"v"


def test_put_of_the_old_command_line(server, node):
    repo = server.store.open_repo(uuid=node.split("/")[1])
    kv = repo["kv"]
    site = server.app.site
    from diced.server.keyvalue import TYPE

    put = TYPE.commands["put"]
    assert (
        put(site, kv, ["name"], None, b"data") == 'Put 4 bytes into key "name" for keyvalue "kv"\n'
    )
    assert kv["name"] == b"data"
    for words, stdin in (([], b"x"), (["a", "b"], b"x"), (["a"], b"")):
        with pytest.raises(InvalidError):
            put(site, kv, words, None, stdin)


def test_two_servers_on_one_store(tmp_path):
    place = tmp_path / "store"
    with serving(place) as one, serving(place) as two:
        uuid = one.repo()
        one.instance(uuid, "keyvalue", "kv")
        path = f"node/{uuid}/kv"
        for number in range(8):
            value = str(number).encode() * (300 if number % 2 else 1)
            one.post(f"{path}/key/k", value)
            assert two.get(f"{path}/key/k").body == value
            two.post(f"{path}/keyvalues", key_values(("k", b"other"), (f"n{number}", b"")))
            assert one.get(f"{path}/key/k").body == b"other"
        assert len(one.get(f"{path}/keys").json) == 9
