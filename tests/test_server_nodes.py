"""Requests of version nodes: notes, logs, locks, children, tags."""

import re
import threading

import pytest
from serving import serving

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
MINE = "0123456789abcdef0123456789ABCDEF"


@pytest.fixture
def uuid(server):
    """An open version."""
    return server.repo()


@pytest.fixture
def locked(server, uuid):
    """A locked version."""
    server.post(f"node/{uuid}/commit", {"note": "first"})
    return uuid


def node(server, uuid):
    return server.get(f"repo/{uuid}/info").json["DAG"]["Nodes"][uuid]


class TestNotes:
    def test_a_note_is_replaced(self, server, uuid):
        assert server.get(f"node/{uuid}/note").body == b'{"note":""}'
        for text in ("one", "two: ä\n", ""):
            assert server.post(f"node/{uuid}/note", {"note": text}).body == b""
            assert server.get(f"node/{uuid}/note").json == {"note": text}
            assert node(server, uuid)["Note"] == text

    def test_a_log_grows(self, server, uuid):
        assert server.get(f"node/{uuid}/log").body == b'{"log":[]}'
        assert server.post(f"node/{uuid}/log", {"log": ["one", "two"]}).body == b""
        server.post(f"node/{uuid}/log", {"log": ["three"]})
        lines = server.get(f"node/{uuid}/log").json["log"]
        assert [line.split("  ", 1)[1] for line in lines] == ["one", "two", "three"]
        assert all(TIME.fullmatch(line.split("  ")[0]) for line in lines)
        assert node(server, uuid)["Log"] == lines
        assert server.get(f"repo/{uuid}/log").json == {"log": []}

    def test_changes_have_a_time(self, server, uuid):
        before = node(server, uuid)
        server.post(f"node/{uuid}/note", {"note": "later"})
        after = node(server, uuid)
        assert before["Created"] == after["Created"] == before["Updated"]
        assert after["Updated"] > before["Updated"]
        repo = server.get(f"repo/{uuid}/info").json
        assert repo["Updated"] >= after["Updated"]

    @pytest.mark.parametrize("what", ["note", "log"])
    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', {"note": 1, "log": 1}, b"\xff"])
    def test_what_is_refused(self, server, uuid, what, body):
        server.refused("POST", f"node/{uuid}/{what}", body)
        server.refused("POST", f"node/{uuid}/note", b'{"note": "\\udc00"}')
        server.refused("POST", f"node/{uuid}/log", b'{"log": ["\\udc00"]}')
        server.refused("POST", f"node/{uuid}/note", {"note": "x" * 2**20}, status=413)
        assert (node(server, uuid)["Note"], node(server, uuid)["Log"]) == ("", [])

    @pytest.mark.parametrize("what", ["note", "log"])
    def test_locked_versions_keep_theirs(self, server, locked, what):
        said = server.refused("POST", f"node/{locked}/{what}", {"note": "new", "log": ["new"]})
        assert said == f"Cannot do post on locked node {locked} (/api/node/{locked}/{what}).\n"
        assert (node(server, locked)["Note"], node(server, locked)["Log"]) == ("first", [])

    def test_who_may_change_locked_versions(self):
        with serving("memory://", admin_token="letmein") as server:
            uuid = server.repo()
            server.post(f"node/{uuid}/commit", {"note": "first"})
            server.refused("POST", f"node/{uuid}/note?admintoken=no", {"note": "new"})
            server.post(f"node/{uuid}/note?admintoken=letmein", {"note": "new"})
            assert server.get(f"node/{uuid}/note").json == {"note": "new"}
        with serving("memory://", mode="fullwrite") as server:
            uuid = server.repo()
            server.post(f"node/{uuid}/commit", {"note": "first"})
            server.post(f"node/{uuid}/log", {"log": ["new"]})
            assert len(server.get(f"node/{uuid}/log").json["log"]) == 1
            said = server.refused("POST", f"node/{uuid}/.files/key/a", b"x")
            assert "locked" in said


class TestLocks:
    def test_a_lock(self, server, uuid):
        for word in ("status", "commit"):
            assert server.get(f"node/{uuid}/{word}").body == b'{"Locked":false}'
        reply = server.post(f"node/{uuid[:8]}/commit", {"note": "done", "log": ["a", "b"]})
        assert reply.json == {"committed": uuid}
        for word in ("status", "commit"):
            assert server.get(f"node/{uuid}/{word}").body == b'{"Locked":true}'
        found = node(server, uuid)
        assert (found["Locked"], found["Note"]) == (True, "done")
        assert [line.split("  ")[1] for line in found["Log"]] == ["a", "b"]
        assert "locked node" in server.refused("POST", f"node/{uuid}/commit", {"note": "again"})
        assert node(server, uuid) == found

    @pytest.mark.parametrize("body", [b"", b"{", b"7", {"note": 1}, {"log": "x"}, {"log": [2]}])
    def test_what_is_refused(self, server, uuid, body):
        server.refused("POST", f"node/{uuid}/commit", body)
        assert server.get(f"node/{uuid}/status").json == {"Locked": False}

    def test_a_note_that_is_there_is_kept(self, server, uuid):
        server.post(f"node/{uuid}/note", {"note": "before"})
        server.post(f"node/{uuid}/commit", {})
        assert server.get(f"node/{uuid}/note").json == {"note": "before"}

    def test_at_once(self, disk_server):
        uuid = disk_server.repo()
        found = []

        def lock():
            found.append(disk_server.ask("POST", f"node/{uuid}/commit", {"note": "x"}).status)

        threads = [threading.Thread(target=lock) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert set(found) <= {200, 400}
        assert 200 in found
        assert disk_server.get(f"node/{uuid}/status").json == {"Locked": True}

    def test_what_is_read_and_written_at_locked_versions(self, server, uuid):
        server.instance(uuid, "keyvalue", "kv")
        server.instance(uuid, "keyvalue", "loose", versioned=False)
        server.post(f"node/{uuid}/kv/key/a", b"old")
        server.post(f"node/{uuid}/commit", {"note": ""})
        said = server.refused("POST", f"node/{uuid}/kv/key/a", b"new")
        path = f"/api/node/{uuid}/kv/key/a"
        assert said == f'Cannot do POST on endpoint "key" of locked node {uuid} ({path}).\n'
        said = server.refused("DELETE", f"node/{uuid}/kv/key/a")
        assert f'Cannot do DELETE on endpoint "key" of locked node {uuid}' in said
        assert server.get(f"node/{uuid}/kv/key/a").body == b"old"
        server.post(f"node/{uuid}/loose/key/a", b"new")
        assert server.get(f"node/{uuid}/loose/key/a").body == b"new"


class TestChildren:
    def test_a_new_version(self, server, uuid):
        assert "unlocked" in server.refused("POST", f"node/{uuid}/newversion", {"note": "n"})
        server.post(f"node/{uuid}/commit", {"note": ""})
        child = server.post(f"node/{uuid}/newversion", {"note": "next"}).json["child"]
        found = node(server, child)
        assert (found["Branch"], found["Note"], found["Locked"]) == ("", "next", False)
        said = server.refused("POST", f"node/{uuid}/newversion")
        assert "branch already exists with given name" in said
        server.post(f"node/{child}/commit", {"note": ""})
        assert set(server.post(f"node/{child}/newversion").json) == {"child"}

    def test_new_versions_at_once_are_one(self, disk_server):
        uuid = disk_server.repo()
        disk_server.post(f"node/{uuid}/commit", {"note": ""})
        found = []

        def go_on():
            found.append(disk_server.ask("POST", f"node/{uuid}/newversion").status)

        threads = [threading.Thread(target=go_on) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert sorted(found) == [200] + [400] * 5

    def test_a_branch(self, server, locked):
        body = {"branch": "proof/read", "note": "side"}
        child = server.post(f"node/{locked}/branch", body).json["child"]
        found = node(server, child)
        assert (found["Branch"], found["Note"]) == ("proof/read", "side")
        versions = server.get(f"repo/{locked}/branch-versions/proof/read").json
        assert versions == [child, locked]
        said = server.refused("POST", f"node/{locked}/branch", body)
        assert "branch already exists with given name" in said
        said = server.refused("POST", f"node/{child}/branch", {"branch": "x"})
        assert "can't branch an unlocked node" in said
        server.post(f"node/{child}/commit", {"note": ""})
        # The name of the branch it is on: it goes on.
        tip = server.post(f"node/{child}/branch", body).json["child"]
        assert node(server, tip)["Branch"] == "proof/read"
        assert "exists" in server.refused("POST", f"node/{child}/branch", body)

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{}", b"{", {"branch": ""}, {"branch": "master"}, {"branch": None}, {"branch": 5},
            {"branch": "", "note": "n"}, {"branch": "a~1"}, {"branch": "a:b"}, {"branch": "a\n"},
            {"branch": "x", "uuid": "abc"}, {"branch": "x", "uuid": "g" * 32},
            {"branch": "x", "uuid": MINE + "0"}, {"branch": "x", "note": 3},
            {"branch": "x" * 2000}, b'{"branch": "\\ud800"}',
        ],
    )  # fmt: skip
    def test_what_is_refused(self, server, locked, body):
        server.refused("POST", f"node/{locked}/branch", body)
        assert len(server.get(f"repo/{locked}/info").json["DAG"]["Nodes"]) == 1

    def test_as_of_old_a_note_will_do(self, server, locked):
        made = [
            server.post(f"node/{locked}/branch", {"note": f"n{i}"}).json["child"] for i in range(3)
        ]
        nodes = server.get(f"repo/{locked}/info").json["DAG"]["Nodes"]
        assert [nodes[each]["Note"] for each in made] == ["n0", "n1", "n2"]
        assert nodes[made[0]]["Branch"] == ""
        assert len({nodes[each]["Branch"] for each in made}) == 3

    def test_a_uuid_of_ones_own(self, server, locked):
        body = {"branch": "mine", "uuid": MINE}
        assert server.post(f"node/{locked}/branch", body).json == {"child": MINE}
        assert server.get(f"node/{MINE}/status").json == {"Locked": False}
        said = server.refused("POST", f"node/{locked}/newversion", {"uuid": MINE})
        assert "UUID already exists in datastore" in said
        other = server.repo("other")
        server.post(f"node/{other}/commit", {"note": ""})
        server.refused("POST", f"node/{other}/newversion", {"uuid": MINE})
        server.refused("POST", f"node/{other}/newversion", {"uuid": "short"})
        new = MINE.lower()
        assert server.post(f"node/{other}/newversion", {"uuid": new}).json == {"child": new}


class TestTags:
    def test_a_tag_is_a_locked_child(self, server, uuid):
        server.instance(uuid, "keyvalue", "kv")
        server.post(f"node/{uuid}/kv/key/a", b"text")
        assert "unlocked" in server.refused("POST", f"node/{uuid}/tag", {"tag": "v1.0"})
        server.post(f"node/{uuid}/commit", {"note": ""})
        reply = server.post(f"node/{uuid}/tag", {"tag": "v1.0", "note": "release"})
        assert reply.json == {"child": "v1.0"}
        found = node(server, "v1.0")
        assert found["Locked"] is True
        assert found["Branch"] == "tag-v1.0"
        assert found["Note"].startswith(f'Tag of version {uuid} with "v1.0"')
        assert "release" in found["Note"]
        assert server.get("node/v1.0/kv/key/a").body == b"text"
        server.refused("POST", "node/v1.0/kv/key/a", b"new")
        server.refused("POST", f"node/{uuid}/tag", {"tag": "v1.0"})
        assert server.post(f"node/{uuid}/newversion").json["child"] != "v1.0"

    @pytest.mark.parametrize(
        "tag", ["", "a/b", "..", ".", "a:b", "a~1", "a\x00", "x" * 2000, 5, None, ["a"]]
    )
    def test_what_is_refused(self, server, locked, tag):
        server.refused("POST", f"node/{locked}/tag", {"tag": tag})
        server.refused("POST", f"node/{locked}/tag", b"")
        assert len(server.get(f"repo/{locked}/info").json["DAG"]["Nodes"]) == 1

    def test_tags_of_other_repos_are_taken(self, server, locked):
        server.post(f"node/{locked}/tag", {"tag": "v1"})
        other = server.repo("other")
        server.post(f"node/{other}/commit", {"note": ""})
        assert "exists" in server.refused("POST", f"node/{other}/tag", {"tag": "v1"})

    def test_tags_of_python_name_versions(self, server, locked):
        with server.store.open_repo(uuid=locked) as repo:
            repo.tag("golden")
        assert server.get("node/golden/note").json == {"note": "first"}
        assert server.get("repo/golden/info").json["Root"] == locked


def test_users_are_recorded(server, uuid):
    server.instance(uuid, "keyvalue", "kv")
    server.post(f"node/{uuid}/kv/key/a?u=ada&app=test", b"x")
    found = list(server.store.open_repo(uuid=uuid).operations("kv"))
    assert [each["user"] for each in found] == ["ada"]


@pytest.mark.parametrize("path", ["node/{}", "node", "repo", "repo/{}/nothing", "node/{}/nothing"])
def test_what_is_not_there(server, uuid, path):
    for method in ("GET", "POST", "PUT", "DELETE"):
        reply = server.ask(method, path.format(uuid))
        assert reply.status in (400, 404), (method, reply)
