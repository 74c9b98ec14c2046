"""Access to buckets: credentials, what is said when they are refused, and https."""

import datetime
import http.server
import json
import ssl
import threading
import time

import pytest
from engine_contract import run_forked, run_together

from diced.engine import open_engine
from diced.engine.gcs import GcsEngine
from diced.engine.gcs_auth import find_credentials
from diced.engine.gcs_http import Tries, Wire
from diced.errors import AccessError, EngineError, ReadOnlyError


@pytest.fixture
def hurry(monkeypatch):
    """Waits between tries are short."""
    monkeypatch.setattr(Tries, "PAUSE", 0.002)
    monkeypatch.setattr(Tries, "LONGEST", 0.02)


class Token:
    """Credentials that say `token`, and fetch `next_token` when they are refreshed."""

    def __init__(self, token, next_token=None):
        self.token = token
        self.next_token = next_token
        self.refreshed = 0

    @property
    def valid(self):
        return self.token is not None

    def refresh(self, request):
        self.refreshed += 1
        time.sleep(0.02)
        self.token = self.next_token

    def before_request(self, request, method, url, headers):
        assert url.startswith("http://")
        headers["authorization"] = f"Bearer {self.token}"


def engine_with(gcs, bucket, credentials):
    return GcsEngine(
        Wire(gcs.endpoint, bucket, credentials, "the test's token"),
        bucket,
        "p",
        durability="power",
        readonly=False,
        max_age=0,
    )


def test_token(gcs):
    bucket = gcs.new_bucket(access="private", tokens={"good": "write", "look": "read"})
    with engine_with(gcs, bucket, Token("good")) as engine:
        assert engine.put_if_absent("a", b"1", b"t")
        assert engine.get("a") == b"1"
    with engine_with(gcs, bucket, Token("look")) as engine:
        assert engine.get("a") == b"1"
        with pytest.raises(AccessError, match=rf"{bucket}.*store 'b'.*the test's token.*40"):
            engine.put_if_absent("b", b"1", b"t")
    with engine_with(gcs, bucket, Token("stale", "good")) as engine:
        assert engine.get("a") == b"1"
    with engine_with(gcs, bucket, Token("stale", "stale")) as engine:
        with pytest.raises(AccessError, match="permissionfile="):
            engine.get("a")
        assert engine._wire._credentials.refreshed == 1


def test_threads_fetch_one_token(gcs):
    bucket = gcs.new_bucket(access="private", tokens={"good": "write"})
    token = Token(None, "good")
    with engine_with(gcs, bucket, token) as engine:
        run_together(8, lambda who: engine.put_if_absent(f"a{who}", b"1", b"t"))
    assert token.refreshed == 1


def test_public_bucket(gcs):
    bucket = gcs.new_bucket(access="public", tokens={"good": "write"})
    with engine_with(gcs, bucket, Token("good")) as engine:
        engine.put_if_absent("a", b"1", b"t")
    with open_engine(f"gs://{bucket}/p", readonly=True) as engine:
        assert engine.get("a") == b"1"
        assert list(engine.list("")) == ["a"]
        with pytest.raises(ReadOnlyError):
            engine.delete("a")
    with open_engine(f"gs://{bucket}/p") as engine, pytest.raises(AccessError, match="gcloud auth"):
        engine.put_if_absent("b", b"1", b"t")


def test_private_bucket_without_credentials(gcs):
    bucket = gcs.new_bucket(access="private", tokens={"good": "write"})
    with pytest.raises(AccessError, match=f"{bucket}.*no credentials"):
        open_engine(f"gs://{bucket}/p", readonly=True)
    with open_engine(f"gs://{bucket}/p") as engine:
        for call in (
            lambda: engine.get("a"),
            lambda: engine.exists("a"),
            lambda: engine.delete("a"),
            lambda: engine.put_unique("a", [b""]),
            lambda: list(engine.list("")),
        ):
            with pytest.raises(AccessError, match=bucket):
                call()


def test_threads_replace_one_token(gcs):
    bucket = gcs.new_bucket(access="private", tokens={"good": "write"})
    token = Token("stale", "good")
    with engine_with(gcs, bucket, token) as engine:
        gcs.latency(0.05)
        run_together(8, lambda who: engine.put_if_absent(f"a{who}", b"1", b"t"))
    assert token.refreshed == 1


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """The machine has no credentials."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    return tmp_path


def test_no_credentials(nobody):
    with pytest.raises(AccessError) as caught:
        open_engine("gs://some-bucket/p")
    for words in (
        "some-bucket",
        "gcloud auth application-default login",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "permissionfile=",
        "readonly=True",
    ):
        assert words in str(caught.value)
    endpoint, credentials, _ = find_credentials("some-bucket", None, readonly=True)
    assert endpoint == "https://storage.googleapis.com"
    assert credentials is None


@pytest.mark.parametrize("text", [None, "no json", "[]", "{}", '{"type": "service_account"}'])
@pytest.mark.parametrize("readonly", [False, True])
def test_key_file_of_no_use(nobody, monkeypatch, text, readonly):
    path = nobody / "key.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AccessError, match=r"key\.json"):
        open_engine("gs://some-bucket/p", permissionfile=str(path), readonly=readonly)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(AccessError, match=r"some-bucket.*gcloud auth"):
        open_engine("gs://some-bucket/p", readonly=readonly)


@pytest.fixture
def key_file(nobody):
    """The key of a service account whose tokens a server here hands out: (path, its answers)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    answers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            status, found = answers.pop(0)
            body = json.dumps(found).encode()
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = nobody / "key.json"
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "p",
                    "private_key_id": "1",
                    "private_key": key.decode(),
                    "client_email": "writer@p.iam.gserviceaccount.com",
                    "token_uri": f"http://127.0.0.1:{server.server_address[1]}/token",
                }
            )
        )
        yield path, answers
        server.shutdown()
        thread.join()


def test_service_account(gcs, key_file, hurry):
    path, answers = key_file
    bucket = gcs.new_bucket(access="private", tokens={"first": "write", "second": "write"})

    def token(name):
        return 200, {"access_token": name, "expires_in": 3600, "token_type": "Bearer"}

    endpoint, credentials, who = find_credentials(bucket, str(path), readonly=False)
    assert endpoint == "https://storage.googleapis.com"
    assert "key.json" in who
    with engine_with(gcs, bucket, credentials) as engine:
        answers[:] = [token("ended"), token("first")]
        assert engine.put_if_absent("a", b"1", b"t")
        assert answers == []  # the first was refused
        assert engine.get("a") == b"1"
        credentials.expiry = credentials.expiry.replace(year=2020)
        answers[:] = [(503, {}), (503, {}), (503, {}), (503, {}), token("second")]
        assert engine.get("a") == b"1"
        credentials.expiry = credentials.expiry.replace(year=2020)
        answers[:] = [(400, {"error": "invalid_grant", "error_description": "no such account"})]
        with pytest.raises(AccessError, match="no such account"):
            engine.get("a")


def test_permissionfile_with_an_emulator(gcs, key_file, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.endpoint)
    with open_engine(gcs.url(), permissionfile=str(key_file[0])) as engine:
        assert engine.put_if_absent("a", b"1", b"t")


# ---- https


@pytest.fixture
def secure(tmp_path):
    """A server of one object over TLS: (its endpoint, the file of the authority to trust)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    authority, private = tmp_path / "authority.pem", tmp_path / "private.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        rbufsize = 0

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request, client_address):
            pass  # a client that does not trust us

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1], str(authority)
        server.shutdown()
        thread.join()


def secure_engine(host, port):
    wire = Wire(f"https://{host}:{port}", "bucket", None, "no credentials")
    return GcsEngine(wire, "bucket", "p", durability="power", readonly=True, max_age=0)


def test_https(secure, monkeypatch):
    port, authority = secure
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
    with secure_engine("localhost", port) as engine:
        assert engine.get("a") == b"data"
        assert run_forked(lambda: engine.get("b"), timeout=10) == 0
        assert engine.get("a") == b"data"
        assert engine._wire._pool.num_connections == 1
    with secure_engine("127.0.0.1", port) as engine, pytest.raises(EngineError, match="127"):
        engine.get("a")


def test_https_with_a_certificate_nobody_signed(secure, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    engine = secure_engine("localhost", secure[0])
    with engine, pytest.raises(EngineError, match="CERTIFICATE_VERIFY_FAILED"):
        engine.get("a")


def test_authorities_that_are_not_there(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file.pem")
    with pytest.raises(EngineError, match=r"/no/such/file\.pem"):
        secure_engine("localhost", 443)
