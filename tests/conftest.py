"""Fixtures for all tests."""

import http.client
import json
import os
import secrets
import signal
from pathlib import Path
from urllib.parse import quote, urlsplit

import fake_gcs
import pytest

# A shell starts what it puts into the background with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test module imports it.
pytest.register_assert_rewrite("engine_contract")


# These take minutes: begun last, one process would be at work long after the others are done.
LONG = ("test_schedules", "test_schedule_mutants", "test_stateful", "test_linear", "test_crash")


def pytest_collection_modifyitems(items):
    """Put long modules first; ``--no-loadscope-reorder`` keeps them there."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; only the tests that ask for it are skipped without."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


class OutsideServer(fake_gcs.Server):
    """A server that is not our fake: no faults, no latency and no log."""

    fake = False

    def __init__(self, endpoint):
        super().__init__(endpoint.rstrip("/"), "diced-" + secrets.token_hex(6))
        self._call("POST", "/storage/v1/b?project=diced", json.dumps({"name": self.bucket}))

    def _call(self, method, path, body=None):
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=60)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} {path} answered {answer.status}: {found}")
        return found

    def _order(self, action, **order):
        pytest.skip(f"an outside server does not know {action}")

    def keys(self, prefix=""):
        path = f"/storage/v1/b/{self.bucket}/o?prefix={quote(prefix, safe='')}"
        found = self._call("GET", path)
        names = [item["name"] for item in found.get("items", ())]
        while "nextPageToken" in found:
            token = quote(found["nextPageToken"], safe="")
            found = self._call("GET", f"{path}&pageToken={token}")
            names += [item["name"] for item in found.get("items", ())]
        return sorted(names)


@pytest.fixture(scope="session")
def gcs_server():
    """A Google Cloud Storage server: our fake, or the one DICED_TEST_GCS_ENDPOINT names."""
    endpoint = os.environ.get("DICED_TEST_GCS_ENDPOINT")
    if endpoint:
        yield OutsideServer(endpoint)
        return
    with fake_gcs.start() as server:
        yield server


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """That server with an empty bucket, no faults and no latency, found by its clients."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    if not gcs_server.fake:
        yield gcs_server
        return
    gcs_server.calm()
    gcs_server.bucket = gcs_server.new_bucket()
    yield gcs_server
    gcs_server.drop_bucket(gcs_server.bucket)


@pytest.fixture
def store():
    """An empty store in memory."""
    from diced import DicedStore

    with DicedStore("memory://") as store:
        yield store


@pytest.fixture
def repo(store):
    """An empty repo of that store."""
    return store.create_repo("r")


@pytest.fixture
def server():
    """A server over an empty store in memory; see `serving.Serving`."""
    from serving import serving

    with serving(f"memory://{secrets.token_hex(8)}") as running:
        yield running


@pytest.fixture
def disk_server(tmp_path):
    """A server over an empty store on disk."""
    from serving import serving

    with serving(tmp_path / "store", store={"durability": "process"}) as running:
        yield running


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser with one tab; tests that need it are skipped where there is none."""
    from browser import browsing

    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def tab(browser):
    """The browser's tab; what its console complains of in a test fails the test."""
    browser.errors.clear()
    yield browser
    browser.goto("about:blank")
    assert browser.errors == []
