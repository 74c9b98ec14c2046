"""DVID's reference, row by row: the commands of its launcher, and its configuration."""

import pytest

from diced.cli import dvid
from diced.errors import InvalidError
from diced.server import config

# -- the command line ----------------------------------------------------------------------


@pytest.fixture
def type_in(server, monkeypatch, capsys):
    """A function that types ``dvid`` and words, and returns the exit code and what is printed."""
    monkeypatch.setenv("DVID_SERVER", server.netloc)

    def run(*words):
        code = dvid.main(words)
        out = capsys.readouterr()
        return code, (out.out or out.err).strip()

    return run


def test_commands_of_the_launcher(server, type_in):
    root = "0123456789abcdef0123456789abcdef"
    assert type_in("repos", "new", "fly", "a brain", f"uuid={root}", "passcode=sesame") == (0, root)
    repo = server.get(f"repo/{root}/info").json
    assert (repo["Alias"], repo["Description"]) == ("fly", "a brain")
    said = f"Added gray [uint8blk] to node {root}"
    assert type_in("repo", root[:8], "new", "uint8blk", "gray", "BlockSize=32,32,32") == (0, said)
    assert server.get(f"node/{root}/gray/info").json["Extended"]["BlockSize"] == [32] * 3
    assert "can't branch" in type_in("repo", root, "newversion")[1]
    server.post(f"node/{root}/commit", {"note": ""})
    assert type_in("repo", root, "newversion", "a" * 32) == (0, "a" * 32)
    assert type_in("repo", root, "branch", "side", "b" * 32) == (0, "b" * 32)
    assert server.get(f"repo/{root}/branch-versions/side").json == ["b" * 32, root]
    assert "keyrange" in type_in("types", "keyvalue", "help")[1]
    assert "isotropic" in type_in("node", root, "gray", "help")[1]
    for words in (("repo", root, "delete", "gray"), ("repos", "delete", root)):
        code, said = type_in(*words)
        assert code == 1 and "passcode" in said
        assert type_in(*words, "wrong")[0] == 1
        assert type_in(*words, "sesame")[0] == 0
    assert server.get("repos/info").json == {}


@pytest.mark.parametrize(
    "what",
    ["rename a b", "merge x", "make-master m", "hide-branch b", "push host", "copy a b", "migrate",
     "transfer-data", "limit-versions", "flatten-metadata", "storage-details"],
)  # fmt: skip
def test_commands_that_are_not_there_say_so(server, type_in, what):
    code, said = type_in("repo", server.repo(), *what.split())
    assert code == 1 and "is not among the commands" in said
    assert type_in("shutdown")[0] == 2
    assert len(server.get("repos/info").json) == 1


# -- the configuration ---------------------------------------------------------------------

DVID_TOML = """
[server]
host = "fly.lab.org"
httpAddress = "localhost:8900"
rpcAddress = "localhost:8901"
webClient = "/console"
webRedirectPath = "/x"
webDefaultFile = "index.html"
pidFile = "dvid.pid"
note = "a note"
corsDomains = ["lab.org"]
rwmode = "fullwrite"
blockListFile = "blocked.txt"
allowTiming = true
startWebhook = "http://x"
startJaneliaConfig = true
allowLabelmapSplit = true
instance_id_gen = "sequential"
instance_id_start = 1
min_mutation_id_start = 1000000000
interactiveOpsBeforeBlock = 3
shutdownDelay = 5
[email]
notify = ["a@lab.org"]
[logging]
logfile = "logs/dvid.log"
max_log_size = 500
max_log_age = 30
[mutations]
jsonstore = "/mutations"
[backend.default]
store = "main"
log = "log"
[backend.metadata]
store = "main"
[backend.labelmap]
store = "main"
[backend."gray:0123"]
store = "main"
[store.main]
engine = "badger"
path = "db"
ReadOnly = false
ValueThreshold = 10
[store.log]
engine = "filelog"
path = "log"
[kafka]
servers = ["localhost:9092"]
[cache.labelmap]
size = 100
[mutcache.x]
path = "y"
[groupcache]
gb = 1
[mirror.all]
servers = ["http://x"]
"""


def test_the_toml_of_dvid(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(DVID_TOML)
    found = config.read(str(path))
    told = found.fields
    # Relative paths begin at the file's own folder.
    assert told["location"] == str(tmp_path / "db")
    assert told["log_file"] == str(tmp_path / "logs/dvid.log")
    assert told["blocklist"] == str(tmp_path / "blocked.txt")
    assert (told["host"], told["port"], told["also"]) == ("localhost", 8900, (("localhost", 8901),))
    assert (told["public_name"], told["note"], told["mode"]) == (
        "fly.lab.org", "a note", "fullwrite",
    )  # fmt: skip
    assert (told["cors"], told["timing"]) == (("lab.org",), True)
    for name in ("webClient", "pidFile", "startWebhook", "instance_id_gen", "shutdownDelay",
                 "[email]", "[mutations]", "[kafka]", "[cache]", "[mutcache]", "[groupcache]",
                 "[mirror]", "store.main.ValueThreshold", "[store.log]"):  # fmt: skip
        assert any(name in each for each in found.warnings), name


@pytest.mark.parametrize(
    "section",
    ["enforce = 'token'", "enforce = 'authfile'\nauth_file = 'a'", "enforce = 'dsg'",
     "auth_file = 'a'", "proxy_address = 'a'", "auth_file = 'a'\nno_enforce = false",
     "enforce = 'none'\nenforce_internal = 'dsg'"],
)  # fmt: skip
def test_what_dvid_would_close_is_not_opened(tmp_path, section):
    path = tmp_path / "config.toml"
    path.write_text(f"[auth]\n{section}\n")
    with pytest.raises(InvalidError, match="access"):
        config.read(str(path))
    path.write_text(f"[auth]\n{section}\n[access]\n")
    assert config.read(str(path)).fields["access"] == {"default": "none"}


@pytest.mark.parametrize("section", ["enforce = 'none'", "auth_file = 'a'\nno_enforce = true"])
def test_what_dvid_leaves_open_is_open(tmp_path, section):
    path = tmp_path / "config.toml"
    path.write_text(f"[auth]\n{section}\n")
    assert "access" not in config.read(str(path)).fields
