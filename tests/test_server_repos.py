"""Requests of repos: creating, describing, finding and deleting them."""

import json
import re
import threading

import pytest
from serving import serving

from diced import DicedStore

HEX = re.compile("[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture(params=["disk", "bucket"])
def pair(request, tmp_path):
    """Two servers over one store."""
    if request.param == "bucket":
        location, options = request.getfixturevalue("gcs").url(), {}
    else:
        location, options = tmp_path / "s", {"store": {"durability": "process"}}
    with serving(location, **options) as one, serving(location, **options) as other:
        yield one, other


def info(server, uuid):
    return server.get(f"repo/{uuid}/info").json


def children(server, uuid, count, branch="b"):
    """Lock a version and give it children on branches of their own."""
    server.post(f"node/{uuid}/commit", {"note": "done"})
    return [
        server.post(f"node/{uuid}/branch", {"branch": f"{branch}{i}"}).json["child"]
        for i in range(count)
    ]


class TestCreating:
    def test_a_repo_is_described(self, server):
        uuid = server.post("repos", {"alias": "fly", "description": "a brain"}).json["root"]
        assert HEX.fullmatch(uuid)
        found = info(server, uuid)
        assert list(found) == [
            "Root", "Alias", "Description", "Log", "Properties", "DataInstances", "DAG",
            "MutationID", "SavedMutationID", "Created", "Updated",
        ]  # fmt: skip
        assert (found["Root"], found["Alias"], found["Description"]) == (uuid, "fly", "a brain")
        assert (found["Log"], found["Properties"]) == ([], {})
        assert TIME.fullmatch(found["Created"])
        assert TIME.fullmatch(found["Updated"])
        assert isinstance(found["MutationID"], int)
        assert found["DAG"]["Root"] == uuid
        node = found["DAG"]["Nodes"][uuid]
        assert list(node) == [
            "Branch", "Note", "Log", "UUID", "VersionID", "Locked", "Parents", "Children",
            "Created", "Updated",
        ]  # fmt: skip
        assert node["UUID"] == uuid
        assert (node["Branch"], node["Note"], node["Log"]) == ("", "", [])
        assert (node["Locked"], node["Parents"], node["Children"]) == (False, [], [])
        assert server.get("repos/info").json == {uuid: found}

    def test_nothing_needs_to_be_said(self, server):
        first, second = (server.post("repos").json["root"] for _ in range(2))
        third = server.post("repos", {}).json["root"]
        assert {info(server, each)["Alias"] for each in (first, second, third)} == {""}
        assert len({name for name, _ in server.store.list_repos()}) == 3

    def test_names_of_fields_in_any_case_and_null(self, server):
        uuid = server.post("repos", {"Alias": "A", "DESCRIPTION": None}).json["root"]
        assert (info(server, uuid)["Alias"], info(server, uuid)["Description"]) == ("A", "")

    def test_aliases_may_be_equal(self, server):
        uuids = [server.repo("same") for _ in range(3)]
        assert len(set(uuids)) == 3
        assert [info(server, each)["Alias"] for each in uuids] == ["same"] * 3
        names = dict(server.store.list_repos())
        assert names["same"] == uuids[0]
        assert sorted(names.values()) == sorted(uuids)
        for name, uuid in names.items():
            assert name.startswith("same")
            assert server.store.open_repo(name).root == uuid

    def test_equal_aliases_at_once(self, disk_server):
        found = []

        def create():
            found.append(disk_server.repo("crowd"))

        threads = [threading.Thread(target=create) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(set(found)) == 8
        assert {each["Alias"] for each in disk_server.get("repos/info").json.values()} == {"crowd"}
        assert len({name for name, _ in disk_server.store.list_repos()}) == 8

    def test_a_root_of_ones_own(self, server):
        mine = "0123456789abcdef0123456789abcdef"
        assert server.post("repos", {"alias": "a", "root": mine}).json == {"root": mine}
        for taken in (mine, children(server, server.repo(), 1)[0]):
            said = server.refused("POST", "repos", {"alias": "b", "root": taken})
            assert "UUID already exists in datastore" in said
        assert server.post("repos", {"root": "v1.0"}).json == {"root": "v1.0"}
        assert info(server, "v1.0")["Root"] == "v1.0"
        assert sorted(name for name, _ in server.store.list_repos())[0] == "a"

    @pytest.mark.parametrize(
        "body",
        [
            b"{", b"[]", b"7", b'{"alias": 5}', b'{"alias": "a\\nb"}', b'{"alias": "\\ud800"}',
            b'{"description": "\\ud800"}', b'{"root": "a/b"}', b'{"root": ".."}',
            b'{"root": "a:b"}', b'{"root": "a~1"}', b'{"root": {}}', b"\xff\xfe",
            json.dumps({"alias": "x" * 1025}).encode(),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, server, body):
        server.refused("POST", "repos", body)
        assert server.get("repos/info").json == {}


class TestInfo:
    def test_any_node_will_do(self, server):
        uuid = server.repo()
        child, other = children(server, uuid, 2)
        found = info(server, uuid)
        for spec in (child, other, child[:8], f"{uuid[:6]}:master", f"{uuid}:b1"):
            assert info(server, spec) == found
        nodes = found["DAG"]["Nodes"]
        assert set(nodes) == {uuid, child, other}
        numbers = [nodes[each]["VersionID"] for each in (child, other)]
        assert nodes[uuid]["Children"] == numbers
        assert nodes[uuid]["Locked"] is True
        for each, branch in ((child, "b0"), (other, "b1")):
            assert nodes[each]["Parents"] == [nodes[uuid]["VersionID"]]
            assert (nodes[each]["Branch"], nodes[each]["Children"]) == (branch, [])

    def test_alias_and_description_change(self, server):
        uuid, other = server.repo("one", "text"), server.repo("two")
        assert server.post(f"repo/{uuid}/info", {"alias": "new"}).body == b""
        assert (info(server, uuid)["Alias"], info(server, uuid)["Description"]) == ("new", "text")
        assert server.store.open_repo("new").root == uuid
        server.post(f"repo/{uuid}/info", {"description": "more", "Alias": "two"})
        assert (info(server, uuid)["Alias"], info(server, uuid)["Description"]) == ("two", "more")
        assert server.store.open_repo("two").root == other
        server.post(f"repo/{uuid}/info", {"alias": "", "description": ""})
        assert (info(server, uuid)["Alias"], info(server, uuid)["Description"]) == ("", "")
        server.refused("POST", f"repo/{uuid}/info", b"")
        server.refused("POST", f"repo/{uuid}/info", {"alias": ["x"]})

    def test_it_follows_names_given_elsewhere(self, disk_server):
        uuid = disk_server.repo("one")
        disk_server.repo("one")
        with DicedStore(disk_server.store.url) as store:
            store.rename_repo(uuid, "elsewhere")
            store.describe_repo(uuid, "anew")
            assert info(disk_server, uuid)["Alias"] == "elsewhere"
            assert info(disk_server, uuid)["Description"] == "anew"

    def test_a_locked_repo_can_be_described(self, server):
        uuid = server.repo()
        server.post(f"node/{uuid}/commit", {"note": ""})
        server.post(f"repo/{uuid}/info", {"alias": "still"})
        assert info(server, uuid)["Alias"] == "still"

    def test_a_name_that_is_anothers_uuid_does_not_take_its_place(self, server):
        victim = server.repo("victim")
        other = server.repo(victim)
        server.post(f"repo/{victim}/info", {"description": "mine"})
        assert info(server, victim)["Description"] == "mine"
        assert info(server, other)["Description"] == ""
        server.ask("DELETE", f"repo/{victim}?imsure=true")
        assert set(server.get("repos/info").json) == {other}

    def test_head(self, server):
        uuid = server.repo()
        reply = server.ask("HEAD", f"repo/{uuid[:10]}")
        assert (reply.status, reply.body) == (200, b"")
        assert server.ask("HEAD", "repo/nothing").status == 400
        assert server.ask("GET", f"repo/{uuid}").status in (400, 404)

    def test_hidden_instances_of_old_are_shown(self, server):
        uuid = server.repo()
        found = info(server, uuid)["DataInstances"]
        assert set(found) == {".files", ".meta"}
        for each in found.values():
            assert each["Base"]["TypeName"] == "keyvalue"
            assert each["Base"]["RepoUUID"] == uuid
            assert each["Extended"] == {}
        assert len({each["Base"]["DataUUID"] for each in found.values()}) == 2


class TestLog:
    def test_lines_have_times(self, server):
        uuid = server.repo()
        assert server.get(f"repo/{uuid}/log").json == {"log": []}
        assert server.post(f"repo/{uuid}/log", {"log": ["one", "two"]}).body == b""
        server.post(f"node/{uuid}/commit", {"note": ""})
        child = server.post(f"node/{uuid}/newversion").json["child"]
        server.post(f"repo/{child}/log", {"log": ["three: ä"]})
        lines = server.get(f"repo/{uuid}/log").json["log"]
        assert [line.split("  ", 1)[1] for line in lines] == ["one", "two", "three: ä"]
        assert all(TIME.fullmatch(line.split("  ")[0]) for line in lines)
        assert info(server, uuid)["Log"] == lines
        assert server.get(f"node/{uuid}/log").json == {"log": []}
        server.post(f"repo/{uuid}/log", {"log": []})
        assert len(server.get(f"repo/{uuid}/log").json["log"]) == 3

    @pytest.mark.parametrize("body", [b"", b"{", {"log": "text"}, {"log": [1]}, {"log": [None]}])
    def test_what_is_refused(self, server, body):
        uuid = server.repo()
        server.refused("POST", f"repo/{uuid}/log", body)
        assert server.get(f"repo/{uuid}/log").json == {"log": []}

    def test_nothing_is_lost_at_once(self, disk_server):
        uuid = disk_server.repo()

        def add(i):
            disk_server.post(f"repo/{uuid}/log", {"log": [f"line {i}"]})

        threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        lines = disk_server.get(f"repo/{uuid}/log").json["log"]
        assert sorted(line.split("  ")[1] for line in lines) == [f"line {i}" for i in range(8)]


class TestNames:
    def test_forms(self, server):
        root = server.repo()
        first, second = children(server, root, 2)
        server.post(f"node/{root}/newversion", {"note": "on"})
        main = server.get(f"repo/{root}/branch-versions/master").json[0]
        server.post(f"node/{main}/commit", {"note": "n"})
        leaf = server.post(f"node/{main}/newversion").json["child"]
        wanted = {
            root: root, root[:9]: root, f"{root}:master": leaf, f"{first[:9]}:": leaf,
            ":master": leaf, ":b0": first, f"{leaf}:b1": second, ":master~1": main,
            f"{second}:master~2": root, f"{root}:~1": main, ":~1": main, ":b1~1": root,
            f"{leaf[:9]}~1": main, f"{leaf}~2": root,
        }  # fmt: skip
        for spec, uuid in wanted.items():
            server.post(f"repo/{spec}/log", {"log": ["x"]})
            locked = uuid in (root, main)
            assert server.get(f"node/{spec}/status").json == {"Locked": locked}, spec
            found = server.ask("POST", f"node/{spec}/commit", b"not JSON").text
            assert locked == (f"locked node {uuid}" in found), spec

    @pytest.mark.parametrize(
        "spec",
        [
            ":nobranch", "{}:nobranch", "{}:master~9", "{}:master~x", "{}:master~", "{}~", "{}~x",
            "{}:master:master", "zzz", "{}0", "{}:master~" + "9" * 5000, ":master~²",
            "{}:master" + "~1" * 3000, "%00", "~1", "~", " ",
        ],
    )  # fmt: skip
    def test_what_names_nothing(self, server, spec):
        root = server.repo()
        server.refused("GET", f"node/{spec.format(root)}/note".replace("²", "%C2%B2"))

    def test_unknown_and_ambiguous(self, server):
        server.post("repos", {"root": "abcd1"})
        server.post("repos", {"root": "abcd2"})
        said = server.refused("GET", "node/abcd/note")
        assert "more than one UUID matches abcd" in said
        assert said.endswith(" (/api/node/abcd/note).\n")
        said = server.refused("GET", "node/abcde/note")
        assert "could not find UUID with partial match to abcde" in said
        server.post("repos", {"root": "abcd"})
        server.post("repo/abcd/log", {"log": ["exact"]})
        assert len(server.get("repo/abcd/log").json["log"]) == 1
        assert server.get("repo/abcd1/log").json["log"] == []
        assert "one repo" in server.refused("GET", "node/:master/note")

    def test_branch_versions(self, server):
        root = server.repo()
        (side,) = children(server, root, 1)
        server.post(f"node/{side}/commit", {"note": "n"})
        tip = server.post(f"node/{side}/newversion").json["child"]
        main = server.post(f"node/{root}/newversion").json["child"]
        versions = f"repo/{tip}/branch-versions"
        assert server.get(f"{versions}/b0").json == [tip, side, root]
        assert server.get(f"{versions}/master").json == [main, root]
        assert server.get(f"{versions}/nothing").json == []


class TestDeleting:
    def test_an_instance(self, server):
        uuid = server.repo()
        server.instance(uuid, "keyvalue", "kv")
        server.post(f"node/{uuid}/kv/key/a", b"text")
        server.refused("DELETE", f"repo/{uuid}/kv")
        assert server.ask("DELETE", f"repo/{uuid}/kv?imsure=true").status == 200
        assert "invalid data instance name" in server.refused("GET", f"node/{uuid}/kv/info")
        assert "kv" not in info(server, uuid)["DataInstances"]
        server.instance(uuid, "keyvalue", "kv")
        assert server.ask("GET", f"node/{uuid}/kv/key/a").status == 404
        server.refused("DELETE", f"repo/{uuid}/nothing?imsure=true")
        server.refused("DELETE", f"repo/{uuid}/.files?imsure=true")

    def test_a_repo(self, server):
        uuid, other = server.repo("a"), server.repo("b")
        server.refused("DELETE", f"repo/{uuid}")
        assert server.ask("DELETE", f"repo/{uuid}?imsure=true").status == 200
        assert set(server.get("repos/info").json) == {other}
        said = server.refused("GET", f"repo/{uuid}/info")
        assert "could not find UUID" in said
        server.refused("DELETE", f"repo/{uuid}?imsure=true")
        assert server.post("repos", {"alias": "a", "root": uuid}).json == {"root": uuid}
        assert set(info(server, uuid)["DataInstances"]) == {".files", ".meta"}

    def test_a_passcode_guards_it(self, server):
        uuid = server.post("repos", {"alias": "a", "passcode": "sesame"}).json["root"]
        for given in ("", "&passcode=wrong", "&passcode="):
            said = server.refused("DELETE", f"repo/{uuid}?imsure=true{given}")
            assert "sesame" not in said
        assert b"sesame" not in server.get("repos/info").body
        assert server.ask("DELETE", f"repo/{uuid}?imsure=true&passcode=sesame").status == 200

    def test_an_administrator_is_needed_where_there_is_one(self):
        with serving("memory://", admin_token="letmein") as server:
            uuid = server.repo()
            server.instance(uuid, "keyvalue", "kv")
            for path in (f"repo/{uuid}/kv", f"repo/{uuid}"):
                reply = server.ask("DELETE", f"{path}?imsure=true")
                assert reply.status in (400, 401, 403)
            for path in (f"repo/{uuid}/kv", f"repo/{uuid}"):
                reply = server.ask("DELETE", f"{path}?imsure=true&admintoken=letmein")
                assert reply.status == 200

    def test_merging_is_not_there(self, server):
        uuid = server.repo()
        for word in ("merge", "resolve"):
            body = {"mergeType": "conflict-free", "parents": [uuid, uuid], "note": ""}
            assert "merge" in server.refused("POST", f"repo/{uuid}/{word}", body)


class TestTwoServers:
    def test_each_sees_what_the_other_does(self, pair):
        one, other = pair
        uuid = one.repo("shared")
        assert set(other.get("repos/info").json) == {uuid}
        other.instance(uuid, "keyvalue", "kv")
        assert one.get("repos/info").json == other.get("repos/info").json
        assert one.get(f"node/{uuid}/kv/info").json["Base"]["Name"] == "kv"
        one.post(f"node/{uuid}/note", {"note": "from one"})
        assert other.get(f"node/{uuid}/note").json == {"note": "from one"}
        other.post(f"node/{uuid}/log", {"log": ["from other"]})
        assert one.get(f"node/{uuid}/log").json["log"][0].endswith("  from other")
        other.post(f"repo/{uuid}/log", {"log": ["repo"]})
        assert len(info(one, uuid)["Log"]) == 1
        one.post(f"node/{uuid}/commit", {"note": "done"})
        assert other.get(f"node/{uuid}/status").json == {"Locked": True}
        other.refused("POST", f"node/{uuid}/kv/key/a", b"x")
        child = other.post(f"node/{uuid}/newversion").json["child"]
        assert one.get(f"node/{child}/status").json == {"Locked": False}
        assert one.get(f"repo/{child[:7]}:master/branch-versions/master").json == [child, uuid]
        one.post(f"repo/{uuid}/info", {"alias": "renamed"})
        assert info(other, uuid)["Alias"] == "renamed"
        one.ask("DELETE", f"repo/{uuid}/kv?imsure=true")
        assert "kv" not in info(other, child)["DataInstances"]
        other.refused("GET", f"node/{child}/kv/info")
        other.ask("DELETE", f"repo/{uuid}?imsure=true")
        assert one.get("repos/info").json == {}
        one.refused("GET", f"node/{child}/note")

    def test_a_whole_name_wins_at_once(self, pair):
        one, other = pair
        root = one.repo()
        one.post(f"node/{root}/commit", {"note": ""})
        one.post(f"node/{root}/tag", {"tag": "v1.0.1"})
        assert other.get("node/v1.0.1/status").json == {"Locked": True}
        one.post(f"node/{root}/tag", {"tag": "v1.0"})
        assert 'with "v1.0"' in other.get("node/v1.0/note").json["note"]

    def test_many_versions_in_one_answer(self, pair):
        one, other = pair
        uuids = [one.repo(f"r{i}") for i in range(10)]
        made = {each: {each, *children(one, each, 3)} for each in uuids}
        for server in pair:
            found = server.get("repos/info").json
            assert {u: set(each["DAG"]["Nodes"]) for u, each in found.items()} == made
        before = other.get("repos/info").body
        assert other.get("repos/info").body == before
        one.post(f"repo/{uuids[3]}/log", {"log": ["changed"]})
        found = other.get("repos/info").json
        assert [u for u, each in found.items() if each["Log"]] == [uuids[3]]


class TestWhatIsVisible:
    @pytest.fixture
    def store(self, tmp_path):
        """A store with a repo that has public versions, and one that has none."""
        with DicedStore(tmp_path / "s", durability="process") as store:
            repo = store.create_repo("open", "text")
            repo.create_array("early", kind="keyvalue")
            repo.lock_node("first")
            root = repo.uuid
            repo.change_version(repo.create_branch())
            middle = repo.uuid
            repo.create_array("em")[:64, :64, :64] = 1
            repo.add_log("a line")
            repo.lock_node("second")
            repo.change_version(repo.create_branch())
            repo.create_array("late", kind="keyvalue")
            repo["em"][640:704, :64, :64] = 1
            store.create_repo("closed")
            yield store.url, root, middle, repo.uuid

    def test_anyone_sees_public_versions_only(self, store):
        url, root, middle, tip = store
        access = {
            "public_versions": [middle],
            "users": {"ada": {"token": "of-ada", "rights": "read"}},
        }
        with serving(url, access=access, store={"durability": "process"}) as server:
            found = server.get("repos/info").json
            assert set(found) == {root}
            shown = found[root]
            assert set(shown["DAG"]["Nodes"]) == {root, middle}
            node = shown["DAG"]["Nodes"][middle]
            assert (node["Children"], node["Log"], shown["Log"]) == ([], [], [])
            assert node["Parents"] == [shown["DAG"]["Nodes"][root]["VersionID"]]
            assert set(shown["DataInstances"]) == {".files", ".meta", "early", "em"}
            assert shown["DataInstances"]["em"]["Extended"]["MaxPoint"] == [63, 63, 63]
            assert info(server, middle) == shown
            assert server.ask("GET", f"repo/{tip}/info").status in (401, 403)
            ada = {"Authorization": "Bearer of-ada"}
            whole = server.get("repos/info", headers=ada).json
            assert len(whole) == 2
            assert set(whole[root]["DAG"]["Nodes"]) == {root, middle, tip}
            assert "late" in whole[root]["DataInstances"]
            em = whole[root]["DataInstances"]["em"]
            assert em["Extended"]["MaxPoint"] == [63, 63, 703]
            assert server.get("repos/info").json == found

    def test_nobody_sees_what_is_not_public(self, store):
        url = store[0]
        with serving(url, access={"users": {}}, store={"durability": "process"}) as server:
            assert server.get("repos/info").json == {}
            assert server.ask("GET", f"repo/{store[1]}/info").status == 401


def test_a_damaged_repo_does_not_hide_others(tmp_path):
    with serving(tmp_path / "s", store={"durability": "process"}) as server:
        bad, good = server.repo("bad"), server.repo("good")
        repo_id = server.store._catalog.id_of("bad")
    (record,) = (tmp_path / "s" / "r" / repo_id / "lanes/meta").rglob("0000000001")
    record.chmod(0o600)
    record.write_bytes(b"damage")
    with serving(tmp_path / "s", store={"durability": "process"}) as server:
        found = server.get("repos/info").json
        assert found[good]["Alias"] == "good"
        assert "Problem" not in found[good]
        assert found[bad]["Alias"] == "bad"
        assert found[bad]["DAG"]["Nodes"] == {}
        assert found[bad]["Problem"]
        assert info(server, good[:8])["Root"] == good
        server.refused("GET", f"repo/{bad}/info", status=500)
