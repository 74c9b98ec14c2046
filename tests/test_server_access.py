"""Modes, the admin token, users and their rights, public versions, blocked users."""

import hashlib

import pytest
from serving import serving

from diced.errors import InvalidError
from diced.server import blocklist
from diced.server.access import Rules

TOKENS = {name: f"token-of-{name}-0123456789" for name in ("ann", "bob", "eve", "root")}
ACCESS = {
    "default": "none",
    "groups": {"lab": {"fib19": "read"}},
    "users": {
        "ann": {"token": TOKENS["ann"], "rights": {"fib19": "write"}},
        "bob": {"tokens": [TOKENS["bob"], "another-one-of-bob"], "groups": ["lab"]},
        "eve": {
            "token": "sha256:" + hashlib.sha256(TOKENS["eve"].encode()).hexdigest(),
            "rights": {"*": "write", "fib19": "none"},
        },
        "root": {"token": TOKENS["root"], "rights": {"*": "admin"}},
    },
}


def bearer(name):
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@pytest.fixture
def closed():
    """A server with users, and the root versions of its repos fib19 and other."""
    with serving("memory://", access=ACCESS) as server:
        roots = {
            alias: server.post("repos", {"alias": alias}, headers=bearer("root")).json["root"]
            for alias in ("fib19", "other")
        }
        yield server, roots


def test_without_access_everybody_may_do_everything(server):
    uuid = server.repo()
    server.post(f"node/{uuid}/note", {"note": "hello"}, headers={"Authorization": "Bearer x"})
    server.post("server/settings", {"throttle": 2})
    server.ask("DELETE", f"repo/{uuid}?imsure=true")
    assert server.get("repos/info").json == {}


def test_a_missing_token_is_401_and_a_wrong_one_too(closed):
    server, roots = closed
    info = f"repo/{roots['fib19']}/info"
    reply = server.ask("GET", info)
    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    for token in ("nobody's", "", "\xe9", TOKENS["ann"][:-1], TOKENS["ann"] + "x", "a" * 5000):
        header = {"Authorization": f"Bearer {token}".encode("latin-1")}
        server.refused("GET", info, status=401, headers=header)
    server.refused("GET", info, status=401, headers={"Authorization": f"Basic {TOKENS['ann']}"})
    # Even where nothing is asked for: a token that nobody has is a mistake.
    server.refused("GET", "server/info", status=401, headers={"Authorization": "Bearer nobody's"})
    server.get("server/info")
    server.get("help")


@pytest.mark.parametrize(
    ("user", "repo", "read", "write", "delete"),
    [
        ("ann", "fib19", 200, 200, 403),
        ("ann", "other", 403, 403, 403),
        ("bob", "fib19", 200, 403, 403),
        ("eve", "fib19", 403, 403, 403),
        ("eve", "other", 200, 200, 403),
        ("root", "other", 200, 200, 200),
    ],
)
def test_rights_go_by_repo(closed, user, repo, read, write, delete):
    server, roots = closed
    uuid, headers = roots[repo], bearer(user)
    for path in (f"repo/{uuid}/info", f"node/{uuid}/status", f"repo/{uuid}/log"):
        assert server.ask("GET", path, headers=headers).status == read
    assert server.ask("HEAD", f"repo/{uuid}", headers=headers).status == read
    body = {"typename": "keyvalue", "dataname": "kv"}
    assert server.ask("POST", f"repo/{uuid}/instance", body, headers=headers).status == write
    assert server.ask("POST", f"node/{uuid}/note", {"note": "n"}, headers=headers).status == write
    reply = server.ask("DELETE", f"repo/{uuid}?imsure=true", headers=headers)
    assert reply.status == delete
    shown = server.get("repos/info", headers=headers).json
    assert (uuid in shown) == (read == 200 and delete != 200)


def test_any_token_of_a_user_counts_and_commits_tell_the_user(closed):
    server, roots = closed
    uuid = roots["fib19"]
    other = {"Authorization": "bearer another-one-of-bob"}
    server.get(f"repo/{uuid}/info", headers=other)
    server.post(
        f"repo/{uuid}/instance?u=mallory", {"typename": "keyvalue", "dataname": "kv"},
        headers=bearer("ann"),
    )  # fmt: skip
    server.post(f"node/{uuid}/kv/key/a?u=mallory", b"1", headers=bearer("ann"))
    found = server.get(f"node/{uuid}/kv/mutations", headers=bearer("ann")).json
    assert {each["User"] for each in found} == {"ann"}


def test_who_may_write_everywhere_may_create_and_others_may_not(closed):
    server, _ = closed
    server.refused("POST", "repos", {}, status=401)
    server.refused("POST", "repos", {}, status=403, headers=bearer("ann"))
    server.post("repos", {"alias": "eve's"}, headers=bearer("eve"))


def test_renaming_needs_admin_since_rights_go_by_name(closed):
    server, roots = closed
    path = f"repo/{roots['fib19']}/info"
    server.refused("POST", path, {"alias": "mine"}, status=403, headers=bearer("ann"))
    server.post(path, {"alias": "ours"}, headers=bearer("root"))
    server.refused("GET", path, status=403, headers=bearer("ann"))


def test_requests_of_the_server_that_need_admin(closed):
    server, _ = closed
    for method, path in [
        ("GET", "server/config"), ("GET", "storage"), ("POST", "server/settings"),
        ("POST", "server/reload-auth"), ("POST", "server/reload-blocklist"),
        ("POST", "server/reload-metadata"),
    ]:  # fmt: skip
        server.refused(method, path, b"{}", status=401)
        server.refused(method, path, b"{}", status=403, headers=bearer("eve"))
        assert server.ask(method, path, b"{}", headers=bearer("root")).status == 200


def test_a_token_is_told_back_to_who_has_it(closed):
    server, _ = closed
    assert server.get("server/token", headers=bearer("ann")).text == TOKENS["ann"]
    server.refused("GET", "server/token", status=401)


# -- public versions -----------------------------------------------------------------------


@pytest.fixture
def published():
    """A server where the second of three versions is public, and the three UUIDs."""
    uuid = "c" * 32
    access = {**ACCESS, "public_versions": [uuid]}
    with serving("memory://", access=access) as server:
        admin = bearer("root")
        root = server.post("repos", {"alias": "fib19"}, headers=admin).json["root"]
        hidden = server.post("repos", {"alias": "hidden"}, headers=admin).json["root"]
        server.post(
            f"repo/{root}/instance", {"typename": "keyvalue", "dataname": "kv"}, headers=admin
        )
        server.post(f"node/{root}/kv/key/a", b"first", headers=admin)
        server.post(f"node/{root}/commit", {"note": "one"}, headers=admin)
        server.post(f"node/{root}/newversion", {"uuid": uuid}, headers=admin)
        yield server, root, uuid, hidden


def test_a_public_version_is_public_once_it_is_locked(published):
    server, root, uuid, hidden = published
    admin = bearer("root")
    server.refused("GET", f"node/{uuid}/kv/key/a", status=401)
    assert server.get("repos/info").json == {}
    server.post(f"node/{uuid}/commit", {"note": "two"}, headers=admin)
    child = server.post(f"node/{uuid}/newversion", {}, headers=admin).json["child"]
    server.post(f"node/{child}/kv/key/a", b"secret", headers=admin)
    for each in (root, uuid):
        assert server.get(f"node/{each}/kv/key/a").body == b"first"
        assert server.get(f"node/{each}/status").json == {"Locked": True}
    for path in (
        f"node/{child}/kv/key/a", f"node/{uuid}:master/kv/key/a", f"repo/{root}/log",
        f"repo/{root}/branch-versions/master", f"node/{hidden}/status", f"repo/{hidden}/info",
        f"node/{root}/kv/mutations-range/{root}/{child}", f"node/{child}/kv/info",
    ):  # fmt: skip
        assert server.ask("GET", path).status == 401, path
    server.refused("POST", f"node/{root}/kv/key/a", b"x", status=401)
    server.refused("POST", f"node/{root}/newversion", b"{}", status=401)
    server.refused("DELETE", f"node/{root}/kv/key/a", status=401)
    shown = server.get("repos/info").json
    assert list(shown) == [root]
    assert set(shown[root]["DAG"]["Nodes"]) == {root, uuid}
    assert shown[root]["Log"] == []
    assert server.get(f"repo/{root}/info").json == shown[root]
    assert child.encode() not in server.get("repos/info").body
    # Who may read the repo sees all of it.
    mine = server.get("repos/info", headers=bearer("bob")).json
    assert set(mine[root]["DAG"]["Nodes"]) == {root, uuid, child}


def test_a_roi_of_a_version_that_is_not_public_masks_nothing(published):
    server, _, uuid, _ = published
    admin = bearer("root")
    server.post(f"node/{uuid}/commit", {"note": "two"}, headers=admin)
    child = server.post(f"node/{uuid}/newversion", {}, headers=admin).json["child"]
    other = server.post("repos", {"alias": "fresh"}, headers=admin).json["root"]
    for each, kind in (("gray", "uint8blk"), ("mask", "roi")):
        for repo in (child, other):
            server.post(
                f"repo/{repo}/instance", {"typename": kind, "dataname": each}, headers=admin
            )
    path = f"node/{child}/gray/raw/0_1_2/32_32_32/0_0_0?roi=mask,{other}"
    server.refused("GET", path, status=403, headers=bearer("bob"))
    server.get(path.partition("?")[0], headers=bearer("bob"))


# -- modes and the admin token -------------------------------------------------------------


@pytest.fixture
def locked_store(tmp_path):
    """A store on disk with one locked version that has a key."""
    with serving(tmp_path / "store", store={"durability": "process"}) as server:
        uuid = server.repo()
        server.instance(uuid, "keyvalue", "kv")
        server.instance(uuid, "keyvalue", "loose", versioned=False)
        server.post(f"node/{uuid}/kv/key/a", b"1")
        server.post(f"node/{uuid}/commit", {"note": "done"})
    return tmp_path / "store", uuid


def test_readonly_reads_and_refuses_the_rest(locked_store):
    location, uuid = locked_store
    with serving(location, mode="readonly") as server:
        assert server.get(f"node/{uuid}/kv/key/a").body == b"1"
        assert server.get("server/info").json["Mode"] == "read only"
        for method, path in [
            ("POST", "repos"), ("POST", f"node/{uuid}/loose/key/a"), ("POST", f"repo/{uuid}/log"),
            ("POST", f"node/{uuid}/newversion"), ("DELETE", f"repo/{uuid}?imsure=true"),
            ("POST", f"repo/{uuid}/instance"), ("DELETE", f"node/{uuid}/loose/key/a"),
            ("POST", f"repo/{uuid}/info"), ("POST", f"node/{uuid}/kv/tags"),
        ]:  # fmt: skip
            assert "Server in read-only mode" in server.refused(method, path, b"{}")
        assert server.get("repos/info").json[uuid]["DAG"]["Nodes"].keys() == {uuid}


def test_an_admin_writes_where_all_is_readonly(locked_store):
    location, uuid = locked_store
    with serving(location, mode="readonly", admin_token="open sesame") as server:
        path = f"node/{uuid}/loose/key/a"
        server.refused("POST", path, b"x")
        server.refused("POST", f"{path}?admintoken=open", b"x")
        server.post(path, b"x", query={"admintoken": "open sesame"})
        server.post(path, b"y", headers={"Authorization": "Bearer open sesame"})
        assert server.get(path).body == b"y"


def test_fullwrite_changes_what_lies_beside_a_locked_version_only(locked_store):
    location, uuid = locked_store
    with serving(location) as server:
        assert "locked node" in server.refused("POST", f"node/{uuid}/note", {"note": "late"})
    with serving(location, mode="fullwrite") as server:
        assert server.get("server/info").json["Mode"] == "allow writes on committed nodes"
        server.post(f"node/{uuid}/note", {"note": "late"})
        server.post(f"node/{uuid}/loose/key/b", b"2")
        server.refused("POST", f"node/{uuid}/kv/key/a", b"2")
        assert server.get(f"node/{uuid}/kv/key/a").body == b"1"
        assert server.get(f"node/{uuid}/note").json == {"note": "late"}


def test_an_admin_token_keeps_others_from_what_needs_admin(locked_store):
    location, uuid = locked_store
    with serving(location, admin_token="open sesame") as server:
        server.post("repos", {"alias": "anyone may"})
        server.refused("GET", "server/config")
        server.refused("DELETE", f"repo/{uuid}?imsure=true")
        server.refused("POST", f"node/{uuid}/note", {"note": "late"})
        server.post(f"node/{uuid}/note", {"note": "late"}, query={"admintoken": "open sesame"})
        server.post("server/settings", {"gc": 400}, query={"admintoken": "open sesame"})
        reply = server.ask("DELETE", f"repo/{uuid}?imsure=true&admintoken=open%20sesame")
        assert reply.status == 200


# -- files that change while it serves -----------------------------------------------------


def test_blocked_users_and_addresses_get_429(tmp_path):
    path = tmp_path / "blocked"
    path.write_text("# nobody else\nu=spider,too many requests\nip=10.1.2.*\n\n")
    with serving("memory://", blocklist=str(path)) as server:
        said = server.refused("GET", "server/info?u=spider", status=429)
        assert said == 'User "spider" is blocked: too many requests\n'
        for header in (
            {"X-Forwarded-For": "10.1.2.3, 1.1.1.1"}, {"Forwarded": 'for="10.1.2.77:4711";by=x'},
        ):  # fmt: skip
            assert "is blocked" in server.refused("GET", "repos/info", status=429, headers=header)
        server.get("server/info?u=fly")
        path.write_text("u=fly")
        server.get("server/info?u=fly")
        server.post("server/reload-blocklist")
        server.refused("GET", "server/info?u=fly", status=429)
        server.get("server/info?u=spider")


def test_rights_are_read_anew_and_bad_ones_change_nothing(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('[access]\nusers.ann.token = "a-token"\nusers.ann.rights = "admin"\n')
    access = {"default": "none", "users": {"ann": {"token": "a-token", "rights": "admin"}}}
    ann = {"Authorization": "Bearer a-token"}
    with serving("memory://", access=access, config_path=str(path)) as server:
        server.refused("POST", "repos", {}, status=401)
        text = path.read_text()
        for wrong in ("[access", "[access]\ndefault = 'all'", "", "[access.users.x]\nage = 3"):
            path.write_text(wrong)
            server.refused("POST", "server/reload-auth", headers=ann)
            server.refused("POST", "repos", {}, status=401)
        path.write_text('[access]\ndefault = "write"\n' + text.removeprefix("[access]\n"))
        server.post("server/reload-auth", headers=ann)
        server.post("repos", {})
        path.write_text('[access]\ndefault = "write"\n')
        server.post("server/reload-auth", headers=ann)
        server.refused("POST", "server/reload-auth", status=401, headers=ann)


# -- the parts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        {"default": "all"},
        {"default": {"a": 1}},
        {"everybody": "read"},
        {"users": {"ann": {"token": ""}}},
        {"users": {"ann": {"token": 7}}},
        {"users": {"ann": {"token": "sha256:12"}}},
        {"users": {"ann": {"groups": ["none"]}}},
        {"users": {"ann": {"password": "x"}}},
        {"users": {"a\nb": {}}},
        {"users": {"ann": {"token": "x"}, "bob": {"token": "x"}}},
        {"users": ["ann"]},
        {"public_versions": "all"},
    ],
)
def test_rules_without_a_meaning_are_refused(section):
    with pytest.raises(InvalidError, match=r"access|user"):
        Rules(section)


def test_the_most_particular_name_counts_and_the_greatest_of_all_rights():
    rules = Rules(
        {
            "default": {"shared": "read"},
            "groups": {"g": {"*": "read", "r" * 32: "none"}},
            "users": {"ann": {"token": "t", "groups": ["g"], "rights": {"mine": "admin"}}},
        }
    )
    ann = rules.find("t")
    assert ann.level("x" * 32, "mine") == 3
    assert ann.level("x" * 32, "any") == 1
    assert ann.level("r" * 32, "any") == 0
    assert ann.level("r" * 32, "shared") == 1
    assert rules.anonymous.level("x" * 32, "shared") == 1
    assert rules.anonymous.level("x" * 32, "any") == 0
    assert rules.find("T") is None


@pytest.mark.parametrize("line", ["user=x", "u=", "x", "u", "=x"])
def test_a_line_of_the_blocklist_without_a_meaning_is_refused(line):
    with pytest.raises(InvalidError, match="line 1"):
        blocklist.Blocklist([line])


def test_names_of_users_do_no_harm(server):
    for name in ("a\nb", "\x00", "\x7f", "a" * 300):
        server.refused("GET", "repos/info", query={"u": name})
    server.get("repos/info", query={"u": "Žofie Ω 😀", "app": ""})
