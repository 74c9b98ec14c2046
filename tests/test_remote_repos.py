"""Repos, versions and files at a server as strict as Janelia's."""

import pytest
from fake_dvid_case import fake, ramp, repo, store  # noqa: F401

from diced import (
    AlreadyExistsError,
    AmbiguousError,
    CorruptError,
    DicedStore,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

# -- repos ---------------------------------------------------------------------------------


def test_repos(fake, store):
    store.create_repo("one", "first")
    two = store.create_repo("two")
    with pytest.raises(AlreadyExistsError):
        store.create_repo("one")
    assert [name for name, _ in store.list_repos()] == ["one", "two"]
    info = store.repo_info("one")
    assert (info["name"], info["description"]) == ("one", "first")
    store.rename_repo("two", "zwei")
    store.describe_repo("zwei", "second")
    assert (two.name, two.description) == ("zwei", "second")
    with pytest.raises(AlreadyExistsError):
        store.rename_repo("one", "zwei")
    with pytest.raises(NotFoundError, match="did you mean 'zwei'"):
        store.get_repouuid("zwe")
    fake.repos[two.root].alias = "one"  # DVID has no objection
    with pytest.raises(AmbiguousError, match=two.root):
        store.open_repo("one")
    fake.repos[two.root].alias = ""
    assert store.open_repo(two.root).name == two.root
    assert dict(store.list_repos())[two.root] == two.root


def test_damaged_repos_do_not_hide_others(fake, store, repo):
    original = fake.answer

    def answer(method, pieces, query, body):
        found = original(method, pieces, query, body)
        if pieces == ["repos", "info"]:
            nodes = {"Root": "f" * 32, "Nodes": {}}
            found["f" * 32] = {
                "Root": "f" * 32, "Alias": "bad", "DAG": nodes, "Problem": "a page is damaged",
            }  # fmt: skip
        return found

    fake.answer = answer
    assert [name for name, _ in store.list_repos()] == ["bad", "r"]
    assert store.open_repo("r").uuid == repo.uuid
    with pytest.raises(CorruptError, match="a page is damaged"):
        store.open_repo("bad")


def test_a_version_that_is_hidden(fake, repo):
    repo.lock_node("m")
    repo.change_version(repo.create_branch("c"))
    del fake.repos[repo.root].nodes[repo.uuid]
    with pytest.raises(NotFoundError, match=repo.uuid):
        repo.list_instances()


def test_names_that_do_not_fit_paths(repo):
    for name in ("a/b", ".", ".."):
        with pytest.raises(InvalidError, match="paths"):
            repo.create_array(name, "uint8")


def test_deleting_is_not_dvids_over_http(store, repo):
    repo.create_array("a", "uint8")
    with pytest.raises(UnsupportedError, match=f"dvid repo {repo.root} delete a"):
        repo.delete_array("a")
    with pytest.raises(UnsupportedError, match=f"dvid repos delete {repo.root}"):
        store.delete_repo("r")
    with pytest.raises(InvalidError):
        repo.delete_array(".files")
    assert "a" in repo


def test_repos_that_diced_did_not_make(fake, store):
    root = store.server.post_json("repos", {"alias": "plain"}).json()["root"]
    repo = store.open_repo("plain")
    assert repo.list_files() == [] and repo.list_instances(showhidden=True) == []
    assert repo.files.get("f") is None and "f" not in repo.files and len(repo.files) == 0
    with pytest.raises(NotFoundError):
        repo.download_filedata("f")
    with pytest.raises(NotFoundError):
        repo.delete_file("f")
    repo.upload_filedata("f", b"1")
    assert repo.list_files() == ["f"] and list(fake.repos[root].instances) == [".files"]
    flat = repo.create_array("flat", "uint8", dims=2)
    assert flat.numdims == 2 and ".meta" in repo


def test_versions_branches_tags(store, repo):
    root = repo.uuid
    repo.set_note("begun")
    assert repo.note == "begun"
    repo.add_log("one")
    repo.add_log("two")
    assert [each.partition("  ")[2] for each in repo.log] == ["one", "two"]
    with pytest.raises(LockedError):
        repo.create_branch()
    repo.lock_node("first")
    first = repo.create_branch("a")
    second = repo.create_branch("b")  # master has gone on: a branch of its own
    assert {each.uuid: each.branch for each in repo.versions()} == {
        root: "master", first: "master", second: second[:12],
    }  # fmt: skip
    with pytest.raises(AlreadyExistsError):
        repo.create_branch("again", uuid=first)
    mine = repo.create_branch("c", branch="side", uuid="ab" * 16)
    assert mine == "ab" * 16
    repo.tag("v1.0")
    assert repo.tags() == {"v1.0": root} and "v1.0" not in {v.uuid for v in repo.versions()}
    assert store.open_repo("r", version="side").uuid == mine
    assert store.open_repo("r", version="v1.0").uuid == root
    assert store.open_repo(uuid=mine[:20]).uuid == mine
    repo.change_version("side~1")
    assert repo.uuid == root
    assert repo.get_commit_log() == [(root, "first")]


def test_arrays_of_other_branches_are_not_shown(repo):
    repo.lock_node("m")
    root = repo.uuid
    one, two = repo.create_branch(branch="one"), repo.create_branch(branch="two")
    repo.change_version(one)
    array = repo.create_array("a", "uint8")
    free = repo.create_array("free", "uint8", versioned=False)
    free[0:64, 0:64, 0:64] = 3
    repo.change_version(two)
    assert [name for name, _ in repo.list_instances()] == ["free"]
    with pytest.raises(NotFoundError, match="'a'"):
        repo.get_array("a")
    repo.change_version(root)
    free = repo.get_array("free")
    assert free[0, 0, 0] == 3 and not free.locked and repo.locked
    repo.change_version(one)
    assert array.bounds is None


def test_attributes_are_kept_in_meta(store, repo):
    array = repo.create_array("a", "uint8", attrs={"x": [1, 2]})
    array.attrs["y"] = None
    assert dict(store.open_repo("r").get_array("a").attrs) == {"x": [1, 2], "y": None}
    del array.attrs["x"]
    assert dict(array.attrs) == {"y": None}
    with pytest.raises(InvalidError):
        array.attrs["z"] = object()


def test_other_kinds_are_listed(repo):
    repo.create_array("places", kind="roi")
    assert ("places", "roi") in repo.list_instances(showhidden=True)
    assert repo.list_instances() == []
    found = repo.get_array("places")
    assert (found.name, found.kind, found.locked) == ("places", "roi", False)
    with pytest.raises(UnsupportedError, match="nonsense"):
        repo.create_array("n", kind="nonsense")


def test_what_needs_the_store_itself(store, repo):
    array = repo.create_array("a", "uint8")
    for call in (
        lambda: array.session(), lambda: list(array.blocks()), lambda: repo.operations("a"),
        lambda: repo.reserve_ids(3), lambda: store.engine, lambda: store.info.update(a=1),
        lambda: array.snapshot(), lambda: array.write_plane((0,) * 3, (1, 0, 0), (0, 1, 0), 1),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError):
            call()
    assert array.sessions() == [] and store.sweep() == 0
    assert store.info["Datastore Version"] == "0.11.0"
    assert not hasattr(store, "something_else")


def test_read_only(fake, repo):
    repo.create_array("a", "uint8")
    with DicedStore(fake.url, readonly=True) as store:
        opened = store.open_repo("r")
        fake.log.clear()
        for call in (
            lambda: store.create_repo("x"), lambda: store.delete_repo("r"),
            lambda: opened.create_array("b"), lambda: opened.lock_node("m"),
            lambda: opened.set_note("n"), lambda: opened.add_log("l"), lambda: opened.tag("t"),
            lambda: opened.upload_filedata("f", b""), lambda: opened.create_branch(),
        ):  # fmt: skip
            with pytest.raises(ReadOnlyError):
                call()
        array = opened.get_array("a")
        with pytest.raises(ReadOnlyError):
            array[0:64, 0:64, 0:64] = 1
        assert fake.count("POST") == fake.count("DELETE") == 0


def test_metadata_may_be_believed_for_a_time(fake):
    with DicedStore(fake.url, max_age=60) as store:
        repo = store.create_repo("r")
        repo.branches()
        fake.log.clear()
        repo.branches()
        assert repo.name == "r" and not fake.log
        repo.lock_node("m")  # what this store did itself is seen
        assert repo.versions()[0].locked


# -- files ---------------------------------------------------------------------------------


def test_files(fake, repo):
    files = repo.files
    files.put_many({"b": b"2", "a/1": b"1", "é": "text", "empty": b""})
    assert list(files) == ["a/1", "b", "empty", "é"] and len(files) == 4
    assert files["é"] == b"text" and files["empty"] == b"" and files["a/1"] == b"1"
    assert dict(files.items("a")) == {"a/1": b"1"}
    assert list(files.keys(start="b", stop="é")) == ["b", "empty"]
    assert list(files.keys("e", stop="f")) == ["empty"]
    assert "a/1" in files and "a/2" not in files and "zz" not in files and "" not in files
    assert files.get("a/2", 5) == 5
    files["x/y"] = b"slash"
    files["."] = b"dot"
    assert files["x/y"] == b"slash" and files["."] == b"dot"
    assert dict(files.get_many(["b", "none"])) == {"b": b"2", "none": None}
    assert dict(files.sizes(["b", "empty", "a/1", "none"])) == {
        "b": 1, "empty": 0, "a/1": 1, "none": None,
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match="x/y"):
        del files["x/y"]
    del files["b"]
    with pytest.raises(NotFoundError, match="'b'"):
        del files["b"]
    files.delete_many(["empty", "never there"])
    assert list(files) == [".", "a/1", "x/y", "é"]
    for wrong in ("", "k" * 5000, 5, "\ud800"):
        with pytest.raises(InvalidError):
            files[wrong] = b""
    with pytest.raises(InvalidError):
        files["k"] = 5
    with pytest.raises(InvalidError):
        files["k"] = "\ud800"


def test_ranges_of_keys_are_asked_for_as_such(fake, repo):
    files = repo.files
    files.put_many({f"k{n:03}": b"v" for n in range(50)} | {"z": b"", "\U0010ffff": b""})
    fake.log.clear()
    assert list(files.keys("k00")) == [f"k{n:03}" for n in range(10)]
    assert fake.log[-1][1].endswith("keyrange/k00/k01")
    assert list(files.keys("\U0010ffff")) == ["\U0010ffff"]
