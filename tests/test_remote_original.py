"""What users of the first DICED rely on, over HTTP: our own server, and a strict fake of DVID."""

import secrets

import pytest
import test_diced_original as original
from fake_dvid import serving as fake_serving

from diced import DicedStore
from diced.remote.store import RemoteStore

# Of a store at a path; and what DVID itself does not do over HTTP.
NOT_REMOTE = {
    "test_opening_a_path_makes_an_empty_store", "test_old_constructor_arguments_are_accepted",
    "test_everything_is_there_after_a_restart",
}  # fmt: skip
DELETES = {"test_repos_are_unique_and_deletable", "test_delete_and_make_again"}


@pytest.fixture(scope="module")
def served():
    from serving import serving

    with serving(f"memory://{secrets.token_hex(8)}") as running:
        yield running


def pytest_generate_tests(metafunc):
    if "store" in metafunc.fixturenames:
        servers = ["ours"] if metafunc.function.__name__ in DELETES else ["ours", "dvid"]
        metafunc.parametrize("store", servers, indirect=True)


@pytest.fixture
def store(request):
    """A store on an empty server."""
    if request.param == "dvid":
        with fake_serving() as fake, DicedStore(fake.url) as store:
            yield store
        return
    running = request.getfixturevalue("served")
    for name, _ in running.store.list_repos():
        running.store.delete_repo(name)
    with DicedStore(running.url.replace("http", "dvid")) as store:
        yield store


@pytest.fixture
def repo(store):
    return store.create_repo("myrepo", "a repo to try things in")


def test_a_server_is_a_store(store):
    assert isinstance(store, RemoteStore) and isinstance(store, DicedStore)


for _name, _test in vars(original).items():
    if _name.startswith("test_") and _name not in NOT_REMOTE:
        globals()[_name] = _test
