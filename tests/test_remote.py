"""The client of DVID servers: addresses, requests, retries, refusals, processes."""

import datetime
import os
import pickle
import re
import secrets
import ssl
import subprocess
import sys
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_dvid import serving
from fake_dvid_case import fake, ramp, repo, store  # noqa: F401

import diced
from diced import (
    AccessError,
    AlreadyExistsError,
    AmbiguousError,
    BadIndexError,
    CorruptError,
    DicedStore,
    EngineError,
    InvalidError,
    LocationError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from diced.remote import address, failures, http

# -- addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "web", "url"),
    [
        ("dvid://host", "http://host:8000", "dvid://host:8000"),
        ("dvid://host:81/", "http://host:81", "dvid://host:81"),
        ("DVID://Host:81", "http://host:81", "dvid://host:81"),
        ("dvids://host", "https://host:443", "dvid+https://host:443"),
        ("dvid+https://host:8/a/b/", "https://host:8/a/b", "dvid+https://host:8/a/b"),
        ("dvid://https://host", "https://host:443", "dvid+https://host:443"),
        ("dvid://host:7/api/", "http://host:7", "dvid://host:7"),
        ("dvid://[::1]:7", "http://[::1]:7", "dvid://[::1]:7"),
    ],
)
def test_addresses(location, web, url):
    found = address.parse(location)
    assert (found.web, found.url) == (web, url)
    assert address.parse(found.url) == found


def test_the_port_may_be_an_argument():
    assert address.parse("dvid://host", 12).port == 12
    assert address.parse("dvid://host:13", 12).port == 13


@pytest.mark.parametrize(
    "location",
    ["dvid://", "dvid://:80", "dvid://host:99999", "dvid://host:0", "dvid://host:x",
     "dvid://me:secret@host", "dvid://host?token=secret", "dvid://[::1"],
)  # fmt: skip
def test_what_is_no_address(location):
    with pytest.raises(LocationError) as caught:
        address.parse(location)
    if "secret" in location:
        assert "secret" not in str(caught.value)


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(http.Server, "REACH", 0.3)
    with pytest.raises(LocationError, match=r"no server answers.*127\.0\.0\.1:9/api/server/info"):
        DicedStore("dvid://127.0.0.1:9")


def test_what_answers_is_no_dvid(fake):
    fake.fail(1, "GET", "server/info", 200, b"<html>hello</html>")
    with pytest.raises(LocationError, match="no DVID server"):
        DicedStore(fake.url)
    fake.fail(1, "GET", "server/info", 200, b'{"hello": "there"}')
    with pytest.raises(LocationError, match="no DVID server"):
        DicedStore(fake.url)


def test_unknown_schemes_are_still_refused():
    with pytest.raises(LocationError, match="scheme"):
        DicedStore("dvidd://host")


@pytest.fixture
def secure(tmp_path):
    """A fake with a certificate that it signed itself: its location, and the certificate's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with serving(tls=context) as fake:
        yield fake.url.replace("dvid://127.0.0.1", "dvids://localhost"), str(file)


def test_https(secure, monkeypatch):
    location, authority = secure
    with pytest.raises(LocationError, match="CERTIFICATE_VERIFY_FAILED"):
        DicedStore(location)
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    with DicedStore(location) as store:
        store.create_repo("r").upload_filedata("f", b"secret")
        assert store.open_repo("r").download_filedata("f") == b"secret"
        assert store.url.startswith("dvid+https://localhost:")


# -- every request -------------------------------------------------------------------------


def test_every_request_says_who_asks(fake):
    with DicedStore(fake.url, user="ann") as store:
        store.create_repo("r").upload_filedata("f", b"1")
        with store.acting("bob"):
            store.list_repos()
    assert all(query["app"] == "diced" for _, _, query in fake.log)
    assert {query["u"] for _, _, query in fake.log[:-1]} == {"ann"}
    assert fake.log[-1][2]["u"] == "bob"


def test_tokens(tmp_path):
    with serving(token="t0ken", admin_token="adm1n") as fake:
        with pytest.raises(AccessError, match="no valid token"):
            DicedStore(fake.url)
        with DicedStore(fake.url, token="t0ken") as store:
            with pytest.raises(AccessError, match="admin"):
                store.create_repo("r")
            assert "t0ken" not in repr(store)
        file = tmp_path / "token"
        file.write_text("t0ken\n")
        with DicedStore(fake.url, permissionfile=str(file), admin_token="adm1n") as store:
            store.create_repo("r")
            with pytest.raises(NotFoundError) as caught:
                store.open_repo("other")
            assert "adm1n" not in str(caught.value)
            again = pickle.loads(pickle.dumps(store))
            assert again.list_repos() == store.list_repos()
            again.close()


def test_a_file_without_a_token(tmp_path, fake):
    (tmp_path / "token").write_text("two words")
    with pytest.raises(InvalidError, match="token"):
        DicedStore(fake.url, permissionfile=str(tmp_path / "token"))
    with pytest.raises(diced.DicedException, match="missing"):
        DicedStore(fake.url, permissionfile=str(tmp_path / "missing"))


def test_connections_are_kept(fake, repo):
    connections = set()
    original = fake.fault

    def remember(method, path):
        connections.add(threading.current_thread().ident)  # a thread per connection
        return original(method, path)

    fake.fault = remember
    for _ in range(30):
        repo.list_files()
    assert len(connections) == 1


# -- retries -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [503, 429, 502, 504, "reset", "lost", "cut"])
def test_reads_and_whole_writes_are_repeated(fake, repo, how):
    array = repo.create_array("a", "uint8")
    data = ramp((64, 64, 64))
    fake.fail(2, "POST", "/raw/", how)
    array[0:64, 0:64, 0:64] = data
    fake.fail(2, "GET", "/raw/", how)
    assert (array[0:64, 0:64, 0:64] == data).all()
    fake.fail(1, "POST", "/key/", how)
    repo.upload_filedata("f", b"some data")
    fake.fail(1, "GET", "/key/", how)
    assert repo.download_filedata("f") == b"some data"


def test_retry_after_is_honoured(fake, repo):
    fake.fail(1, "GET", "/note", 503, b"busy", {"Retry-After": "1"})
    before = time.monotonic()
    assert fake.repos[repo.root] and repo.store.server.get_json(f"node/{repo.uuid}/note")
    assert time.monotonic() - before >= 1.0


def test_patience_ends(fake):
    with DicedStore(fake.url, patience=0.3) as store:
        fake.fail(10**6, "GET", "repos/info", 503, b"Server already running 1 throttled operations")
        with pytest.raises(EngineError, match=r"given up after \d+ tries.*throttled.*repos/info"):
            store.list_repos()


def test_blocked_users_are_told_at_once(fake, store):
    fake.fail(1, "GET", "repos/info", 429, b'User "ann" is blocked: too many requests')
    with pytest.raises(AccessError, match="too many requests"):
        store.list_repos()
    assert fake.count("GET", "repos/info") == 1


@pytest.mark.parametrize("how", ["lost", "reset", 502, 503])
def test_what_must_happen_once_happens_once(fake, store, how):
    fake.fail(1, "POST", "repos$", how)
    repo = store.create_repo("r")
    assert len(fake.repos) == 1 and repo.root in fake.repos
    fake.fail(1, "POST", "instance$", how)
    repo.create_array("a", "uint8")
    fake.fail(1, "POST", "commit$", how)
    root = repo.uuid
    assert repo.lock_node("done") == root and repo.note == "done"
    fake.fail(1, "POST", "tag$", how)
    repo.tag("v1")
    assert repo.tags() == {"v1": root}
    fake.fail(1, "POST", "newversion$", how)
    child = repo.create_branch("next")
    fake.fail(1, "POST", "branch$", how)
    side = repo.create_branch("side", branch="side")
    assert [each.uuid for each in repo.versions()] == [root, child, side]
    assert repo.branches() == {"master": child, "side": side}
    repo.change_version(child)
    fake.fail(1, "POST", "log$", how)
    repo.add_log("a line")
    assert [line.partition("  ")[2] for line in repo.log] == ["a line"]


def test_somebody_else_locked_it(fake, repo):
    # The answer to ours is lost, and so is its effect: another one's lock is not taken for it.
    fake.fail(1, "POST", "commit$", "reset")
    original = fake.fault

    def meanwhile(method, path):
        found = original(method, path)
        if found:
            node = fake.repos[repo.root].nodes[repo.root]
            node.locked, node.note = True, "theirs"
        return found

    fake.fault = meanwhile
    with pytest.raises(LockedError, match="somebody else"):
        repo.lock_node("ours")


def test_a_restarted_server_is_found_again(fake, store, repo):
    port = int(fake.url.rpartition(":")[2])
    repo.list_files()
    # All kept connections break; each is tried anew.
    fake.fail(3, "GET", "keys", "reset")
    assert repo.list_files() == []
    assert store.server.address.port == port


def test_a_body_that_ends_early_is_not_taken(fake, repo):
    array = repo.create_array("a", "uint8")
    array[0:64, 0:64, 0:64] = 9
    fake.fail(1, "GET", "/raw/", 200, bytes(64**3 - 1))
    with pytest.raises(EngineError, match="262143 bytes, not 262144"):
        array[0:64, 0:64, 0:64]


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "could not find UUID with partial match to abc (/api/x).", NotFoundError),
        (400, 'invalid data instance name "x" (/api/x).', NotFoundError),
        (400, "more than one UUID matches ab (/api/x).", AmbiguousError),
        (400, 'Cannot do POST on endpoint "key" of locked node abc (/api/x).', LockedError),
        (400, "can't branch an unlocked node abc (/api/x).", LockedError),
        (400, "data instance a already exists in this repo (/api/x).", AlreadyExistsError),
        (400, "branch already exists with given name (/api/x).", AlreadyExistsError),
        (400, "Server in read-only mode and will only accept GET (/api/x).", ReadOnlyError),
        (400, "POST repos requires admin privileges (/api/x).", AccessError),
        (400, "Bad API call (/api/x) for data", UnsupportedError),
        (400, "voxels data was 3 bytes, expected 4 (/api/x).", InvalidError),
        (400, "bad size (/api/node/abc/admin token required/raw).", InvalidError),
        (401, "", AccessError),
        (403, "", AccessError),
        (404, 'Key "k" not found', NotFoundError),
        (413, "too much", InvalidError),
        (500, "internal error", EngineError),
        (500, "block is corrupt", CorruptError),
    ],
)
def test_refusals(status, text, kind):
    error = failures.failure(status, text.encode(), "GET http://host/api/x")
    assert type(error) is kind
    assert all(each in str(error) for each in (text, "GET http://host/api/x", str(status)))


def test_our_server_names_the_error():
    error = failures.failure(400, b"of locked node", "GET u", "BadIndexError")
    assert type(error) is BadIndexError
    assert type(failures.failure(400, b"locked node", "GET u", "os")) is LockedError
    assert type(failures.failure(400, b"locked node", "GET u", "near_matches")) is LockedError


def test_messages_of_the_server_reach_the_user(store, repo):
    with pytest.raises(NotFoundError, match=r"could not find UUID.*api/repo/feedbeef/info"):
        store.open_repo(uuid="feedbeef")
    repo.lock_node("m")
    with pytest.raises(LockedError, match="locked already"):
        repo.lock_node("m")
    child = repo.create_branch("c")
    with pytest.raises(LockedError, match=child):
        repo.create_array("late", "uint8")
    with pytest.raises(LockedError, match=child):
        repo.upload_filedata("f", b"")
    with pytest.raises(LockedError, match="locked node"):
        repo.set_note("n")


# -- processes -----------------------------------------------------------------------------


def test_pickles(repo):
    array = repo.create_array("a", "uint8")
    array[0:64, 0:64, 0:64] = 5
    repo.upload_filedata("f", b"1")
    again = pickle.loads(pickle.dumps(array))
    assert again[0, 0, 0] == 5 and again._repo.uuid == repo.uuid
    files = pickle.loads(pickle.dumps(repo.files))
    assert files["f"] == b"1" and files._repo.store is again._repo.store
    other = pickle.loads(pickle.dumps(repo))
    assert other.get_array("a")[1, 1, 1] == 5
    again._repo.store.close()


def test_an_array_of_the_same_name_is_another_one(fake, repo):
    data = pickle.dumps(repo.create_array("a", "uint8"))
    fake.repos[repo.root].instances["a"].uuid = secrets.token_hex(16)
    with pytest.raises(NotFoundError, match="another"):
        pickle.loads(data)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_children_of_a_fork_have_connections_of_their_own(repo):
    array = repo.create_array("a", "uint8")
    array[0:64, 0:64, 0:64] = 5
    pid = os.fork()
    if pid == 0:
        os._exit(0 if int(array[0:64, 0:64, 0:64].sum()) == 5 * 64**3 else 1)
    assert array[0, 0, 0] == 5
    assert os.waitpid(pid, 0)[1] == 0


def test_a_closed_store(store, repo):
    store.close()
    with pytest.raises(EngineError, match="closed"):
        repo.list_files()


def test_importing_diced_imports_no_client():
    code = "import sys, diced; print([m for m in sys.modules if 'urllib3' in m or 'remote' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_descriptions(store, repo):
    array = repo.create_array("a", "uint8")
    assert repr(store) == f"<RemoteStore {store.url}>"
    assert re.fullmatch("<RemoteRepo 'r' at open version [0-9a-f]{12}>", repr(repo))
    assert "'a'" in repr(array) and "uint8" in repr(array)
    assert ".files" in repr(repo.files)
