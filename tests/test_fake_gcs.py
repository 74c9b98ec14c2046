"""The fake Google Cloud Storage server does what the real one is documented to do.

What is not about faults runs against any server that DICED_TEST_GCS_ENDPOINT names.
"""

import base64
import hashlib
import io
import json
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import google_crc32c
import pytest
import urllib3
from fake_gcs.raw import Raw
from google.api_core.exceptions import NotFound, NotModified, PreconditionFailed
from google.cloud import storage

ALPHABET = b"abcdefghijklmnopqrstuvwxyz"


def base64_crc(data):
    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()


def base64_md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.fixture
def pool():
    with urllib3.PoolManager(maxsize=16) as pool:
        yield pool


@pytest.fixture
def raw(gcs, pool):
    return Raw(gcs, pool)


@pytest.fixture
def client(gcs):
    client = storage.Client(project="diced")
    yield client
    client.close()


@pytest.fixture
def bucket(gcs, client):
    return client.bucket(gcs.bucket)


@pytest.fixture
def prefix(gcs):
    """A prefix that no other test of this bucket has."""
    return urlsplit(gcs.url()).path[1:] + "/"


# What the client library does


def test_an_object_comes_back_with_its_fields(bucket, prefix):
    blob = bucket.blob(prefix + "a b/ü?#%2F")
    blob.metadata, blob.cache_control = {"token": "x1"}, "no-store"
    blob.upload_from_string(ALPHABET, content_type="text/x-abc", if_generation_match=0)
    again = bucket.get_blob(blob.name)
    assert again.download_as_bytes() == ALPHABET
    assert (again.metadata, again.cache_control) == ({"token": "x1"}, "no-store")
    assert (again.size, again.content_type) == (26, "text/x-abc")
    assert again.generation == blob.generation > 0
    assert again.metageneration == 1
    assert again.crc32c == base64_crc(ALPHABET)
    assert again.md5_hash == base64_md5(ALPHABET)
    assert again.time_created.year >= 2024
    assert bucket.get_blob(prefix + "none") is None
    with pytest.raises(NotFound):
        bucket.blob(prefix + "none").download_as_bytes()


@pytest.mark.parametrize("round_", range(3))
def test_one_of_8_wins_a_create_only_race(bucket, prefix, round_):
    barrier = threading.Barrier(8)

    def create(number):
        barrier.wait()
        try:
            blob = bucket.blob(prefix + "race")
            blob.upload_from_string(f"{number}", if_generation_match=0)
        except PreconditionFailed:
            return None
        return str(number).encode()

    with ThreadPoolExecutor(8) as threads:
        won = [data for data in threads.map(create, range(8)) if data is not None]
    assert won == [bucket.blob(prefix + "race").download_as_bytes()]


def test_a_compare_and_swap_counter_counts_all(raw, prefix):
    name = prefix + "counter"
    assert raw.put(name, b"0").status == 200

    def add(_):
        for _ in range(5):
            while True:
                found = raw.get(name)
                generation = found.headers["x-goog-generation"]
                text = str(int(found.data) + 1).encode()
                answer = raw.put(name, text, ifGenerationMatch=generation)
                if answer.status == 200:
                    break
                assert answer.status == 412

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    assert raw.get(name).data == b"40"


def test_a_stale_conditional_delete_is_refused(bucket, prefix):
    blob = bucket.blob(prefix + "a")
    blob.upload_from_string(b"old")
    stale = blob.generation
    bucket.blob(blob.name).upload_from_string(b"new")
    with pytest.raises(PreconditionFailed):
        bucket.blob(blob.name).delete(if_generation_match=stale)
    current = bucket.get_blob(blob.name)
    assert current.generation > stale
    assert current.download_as_bytes() == b"new"
    bucket.blob(blob.name).delete(if_generation_match=current.generation)
    with pytest.raises(NotFound):
        bucket.blob(blob.name).delete()


def test_what_was_not_changed_is_not_sent_again(bucket, prefix):
    blob = bucket.blob(prefix + "a")
    blob.upload_from_string(b"x")
    with pytest.raises(NotModified):
        bucket.blob(blob.name).download_as_bytes(if_generation_not_match=blob.generation)
    assert bucket.blob(blob.name).download_as_bytes(if_generation_not_match=1) == b"x"
    with pytest.raises(PreconditionFailed):
        bucket.blob(blob.name).download_as_bytes(if_generation_match=1)


def test_metadata_changes_count_metagenerations(bucket, prefix):
    blob = bucket.blob(prefix + "a")
    blob.upload_from_string(b"x")
    blob.metadata = {"k": "v", "l": "w"}
    blob.patch(if_metageneration_match=1)
    blob.metadata = {"k": None}
    blob.patch(if_metageneration_match=2)
    again = bucket.get_blob(blob.name)
    assert (again.metadata, again.metageneration) == ({"l": "w"}, 3)
    assert again.generation == blob.generation
    with pytest.raises(PreconditionFailed):
        blob.patch(if_metageneration_match=1)


def test_pages_follow_each_other(client, bucket, gcs, prefix):
    names = [f"{prefix}{name}" for name in ("a", "b/1", "b/2", "c", "c-", "d/", "é")]
    for name in reversed(names):
        bucket.blob(name).upload_from_string(b"")

    def listed(**options):
        found = client.list_blobs(gcs.bucket, prefix=prefix, **options)
        return [blob.name for blob in found], sorted(found.prefixes)

    assert listed(page_size=2) == (names, [])
    assert listed(start_offset=names[2]) == (names[2:], [])
    assert listed(end_offset=names[2]) == (names[:2], [])
    some = [prefix + name for name in ("a", "c", "c-", "é")]
    both = (some, [prefix + "b/", prefix + "d/"])
    assert listed(delimiter="/") == both
    assert listed(delimiter="/", page_size=1) == both
    assert gcs.keys(prefix) == names


def test_resumable_uploads_arrive_whole(bucket, prefix):
    data = os.urandom(700_000)
    blob = bucket.blob(prefix + "a", chunk_size=1 << 18)
    blob.metadata = {"token": "t"}
    blob.upload_from_file(io.BytesIO(data), if_generation_match=0, checksum="crc32c")
    again = bucket.get_blob(blob.name)
    assert (again.download_as_bytes(), again.metadata) == (data, {"token": "t"})
    with pytest.raises(PreconditionFailed):
        blob.upload_from_file(io.BytesIO(data), if_generation_match=0)


def test_objects_are_composed_and_copied(bucket, prefix):
    parts = [bucket.blob(f"{prefix}{number}") for number in range(3)]
    for part in parts:
        part.upload_from_string(part.name[-1].encode() * 3)
    whole = bucket.blob(prefix + "whole")
    whole.compose(parts, if_generation_match=0)
    assert whole.download_as_bytes() == b"000111222"
    assert (whole.component_count, whole.md5_hash) == (3, None)
    with pytest.raises(PreconditionFailed):
        whole.compose(parts, if_generation_match=0)
    copy = bucket.blob(prefix + "copy")
    token, done, size = copy.rewrite(whole, if_generation_match=0)
    assert (token, done, size) == (None, 9, 9)
    assert copy.download_as_bytes() == b"000111222"
    with pytest.raises(PreconditionFailed):
        copy.rewrite(whole, if_source_generation_match=1)


# What goes over the wire


def test_ranges(raw, prefix):
    assert raw.put(prefix + "a", ALPHABET).status == 200

    def asked(text):
        found = raw.get(prefix + "a", {"Range": text})
        return found.status, found.data, found.headers.get("Content-Range")

    assert asked("bytes=0-0") == (206, b"a", "bytes 0-0/26")
    assert asked("bytes=3-5") == (206, b"def", "bytes 3-5/26")
    assert asked("bytes=24-") == (206, b"yz", "bytes 24-25/26")
    assert asked("bytes=24-99") == (206, b"yz", "bytes 24-25/26")
    assert asked("bytes=-3") == (206, b"xyz", "bytes 23-25/26")
    assert asked("bytes=-99") == (206, ALPHABET, "bytes 0-25/26")
    assert asked("bytes=26-")[0] == asked("bytes=90-99")[0] == 416
    whole = raw.get(prefix + "a")
    assert (whole.status, whole.data) == (200, ALPHABET)


def test_answers_carry_generation_hash_and_type(raw, gcs, prefix):
    made = raw.put(prefix + "a", ALPHABET).json()
    for path in (raw.path(prefix + "a"), "/download" + raw.path(prefix + "a")):
        found = raw("GET", path, alt="media")
        assert found.headers["x-goog-generation"] == made["generation"]
        assert f"crc32c={base64_crc(ALPHABET)}" in found.headers["x-goog-hash"]
        assert f"md5={base64_md5(ALPHABET)}" in found.headers["x-goog-hash"]
        assert found.headers["Content-Type"] == "application/x-test"
        assert found.headers["ETag"]
    assert made["size"] == "26" and made["bucket"] == gcs.bucket


@pytest.mark.parametrize("field", ["crc32c", "md5Hash"])
def test_a_wrong_hash_is_refused(raw, prefix, field):
    right = {"crc32c": base64_crc, "md5Hash": base64_md5}[field]

    def insert(data, stated):
        resource = json.dumps({"name": prefix + "a", field: right(stated)}).encode()
        head = b"--==b\r\nContent-Type: application/json\r\n\r\n" + resource
        head += b"\r\n--==b\r\nContent-Type: text/plain\r\n\r\n"
        kind = {"Content-Type": 'multipart/related; boundary="==b"'}
        path = f"/upload/storage/v1/b/{raw.bucket}/o"
        return raw("POST", path, head + data + b"\r\n--==b--", kind, uploadType="multipart")

    assert insert(b"other", ALPHABET).status == 400
    assert raw.stat(prefix + "a").status == 404
    answer = insert(b"\r\n--==\r\n", b"\r\n--==\r\n")
    assert (answer.status, answer.json()["contentType"]) == (200, "text/plain")
    assert raw.get(prefix + "a").data == b"\r\n--==\r\n"


def test_bodies_in_chunks_arrive_whole(raw, prefix):
    data = os.urandom(300_000)
    pieces = (data[at : at + size] for at, size in ((0, 1), (1, 99_999), (100_000, 200_000)))
    assert raw.put(prefix + "a", pieces).status == 200
    assert raw.get(prefix + "a").data == data


def test_a_large_object_comes_back(raw, prefix):
    data = os.urandom(1 << 20) * 24
    assert raw.put(prefix + "a", data).status == 200
    assert raw.get(prefix + "a").data == data
    assert raw.get(prefix + "a", {"Range": "bytes=1048570-20000000"}).data == data[1048570:20000001]


def test_errors_are_json(raw, prefix):
    lacking = raw.stat(prefix + "none")
    assert lacking.status == lacking.json()["error"]["code"] == 404
    assert raw.put(prefix + "a", b"", ifGenerationMatch=0).status == 200
    refused = raw.put(prefix + "a", b"", ifGenerationMatch=0)
    assert refused.status == refused.json()["error"]["code"] == 412
    assert raw("GET", "/storage/v1/b/no-such-bucket-anywhere/o").status == 404
    assert raw.delete(prefix + "none").status == 404


def test_an_upload_tells_how_far_it_got(raw, prefix):
    path = f"/upload/storage/v1/b/{raw.bucket}/o"
    data, half = os.urandom(1 << 19), 1 << 18
    begun = raw("POST", path, b"", uploadType="resumable", name=prefix + "a")
    place = urlsplit(begun.headers["Location"])
    query = dict(pair.split("=", 1) for pair in place.query.split("&"))

    def send(text, body=b""):
        answer = raw("PUT", place.path, body, {"Content-Range": text}, **query)
        return answer.status, answer.headers.get("Range")

    assert send("bytes */*") == (308, None)
    assert send(f"bytes 0-{half - 1}/*", data[:half]) == (308, f"bytes=0-{half - 1}")
    assert send("bytes */*") == (308, f"bytes=0-{half - 1}")
    assert raw.stat(prefix + "a").status == 404
    assert send(f"bytes {half}-{2 * half - 1}/{2 * half}", data[half:])[0] == 200
    assert send(f"bytes */{2 * half}")[0] == 200
    assert raw.get(prefix + "a").data == data
