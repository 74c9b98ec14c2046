"""The ``dvid`` launcher: the commands of DVID's walk-throughs, word for word.

``dvid init`` and ``dvid serve`` work on a directory; all else is asked of a running server.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import diced
from diced.cli import serve
from diced.errors import DicedException, EngineError, InvalidError, LocationError, UnsupportedError
from diced.store import DicedStore

WEB = "localhost:8000"
RPC = "localhost:8001"
SERVER_VARIABLE = "DVID_SERVER"

HELP = f"""\
dvid, as the launcher of diced {diced.__version__}

Usage: dvid [options] COMMAND

  -web=HOST:PORT    address of the web server (also -http=), {WEB} unless told
  -rpc=HOST:PORT    where a server listens as well, {RPC} unless told; commands to a server go
                    here if it is given
  -datastore=DIRECTORY   of 'init' and 'serve', as it was said of old
  -readonly         serve, and change nothing
  -fullwrite        serve, and allow notes and logs at locked versions
  -debug, -verbose  say what happens
  -stdin            send what comes on standard input with a 'node' command
  -numcpu=N         threads

Commands that need no server:

  about                      what this is
  help                       this; with a server running, its data types too
  init DIRECTORY             make an empty datastore
  serve DIRECTORY            serve a datastore, made if it is not there
  serve CONFIG.toml          serve as a configuration says

Commands to a running server:

  types                                  data types, and the repos with their data
  types TYPE help                        help of a data type
  repos new [ALIAS [DESCRIPTION]] [uuid=ROOT passcode=CODE]
                                         make a repo; prints its UUID
  repos delete UUID [CODE]               delete the repo that has this root, whole UUID
  repo UUID new TYPE NAME [key=value...] add data to a repo
  repo UUID branch NAME | newversion     make a child of a locked version
  repo UUID delete NAME [CODE]           delete data from all versions
  node UUID NAME help                    help of the data's type
  node UUID NAME COMMAND ...             a command of the data's type, such as
      load X,Y,Z "GLOB" | put local xy X,Y,Z FILES | generate | put KEY (with -stdin)

UUID is the whole or the beginning of a version's UUID. A 'dataset' is a repo, a 'quadtree' a
'multiscale2d'.
"""

FLAGS = {
    "-debug", "-verbose", "-readonly", "-fullwrite", "-stdin", "-monitor", "-sleep", "-timeout",
}  # fmt: skip
VALUES = {
    "-web", "-http", "-rpc", "-numcpu", "-cpuprofile", "-memprofile", "-webclient", "-types",
    "-path", "-sleep", "-timeout", "-datastore",
}  # fmt: skip


class Usage(InvalidError):
    """The words make no command."""


class Request:
    """What was typed: options, words, and ``key=value`` settings.

    Parameters
    ----------
    argv : sequence of str
    """

    def __init__(self, argv: Sequence[str]):
        self.options: dict[str, str] = {}
        words = list(argv)
        while words and words[0].startswith("-") and len(words[0]) > 1:
            name, equals, value = words.pop(0).partition("=")
            name = "-" + name.lstrip("-")
            if name not in FLAGS | VALUES:
                raise Usage(f"{name} is no option; 'dvid help' names them")
            if name in VALUES - FLAGS and not equals:
                if not words:
                    raise Usage(f"{name} needs a value, as {name}=...")
                value = words.pop(0)
            self.options[name] = value
        self.words = [each for each in words if not _is_setting(each)]
        self.settings = dict(each.split("=", 1) for each in words if _is_setting(each))

    def take(self, what: str) -> str:
        """Take the next word."""
        if not self.words:
            raise Usage(f"{what} is missing; 'dvid help' says how commands go")
        return self.words.pop(0)

    def address(self) -> str:
        """Return where the server is to be asked."""
        given = self.options.get("-rpc") or self.options.get("-web") or self.options.get("-http")
        return _address(given or os.environ.get(SERVER_VARIABLE) or WEB)


def _is_setting(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("_", "").replace("-", "").isalnum()


def _address(text: str) -> str:
    """Return ``host:port``; an empty host is this machine."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise Usage(f"an address is HOST:PORT; got {text!r}")
    return f"{host or 'localhost'}:{port}"


# -- commands ------------------------------------------------------------------------------


def _help(request: Request) -> None:
    print(HELP)
    try:
        types = _ask(request, "GET", "server/compiled-types")
    except EngineError:
        return
    print(f"The server at {request.address()} has the data types", ", ".join(sorted(types)))


def _about(_request: Request) -> None:
    print(f"diced {diced.__version__}, a versioned array store that speaks DVID's HTTP API")


def _directory(request: Request, what: str) -> str:
    return request.options.get("-datastore") or request.take(what)


def _init(request: Request) -> None:
    with DicedStore(_directory(request, "the directory")) as store:
        print(f"a datastore is at {store.url}")


def _serve(request: Request) -> None:
    words = [_directory(request, "the directory or configuration")]
    for name in ("-web", "-http"):
        if name in request.options:
            text = request.options[name]
            host = text.rpartition(":")[0]
            words += ["--port", _address(text).rpartition(":")[2], "--host", host or "0.0.0.0"]
            break
    if "-rpc" in request.options:
        words += ["--also", _address(request.options["-rpc"])]
    for name in ("-readonly", "-fullwrite"):
        words += [f"-{name}"] if name in request.options else []
    if {"-debug", "-verbose"} & set(request.options):
        words.append("--access-log")
    if "-numcpu" in request.options:
        words += ["--threads", request.options["-numcpu"]]
    serve.main(words)


def _types(request: Request) -> None:
    if request.words:
        name = request.take("the data type")
        print(_ask(request, "GET", f"help/{quote(name)}", text=True))
        return
    types = _ask(request, "GET", "server/compiled-types")
    print(f"Data types of the server at {request.address()}:\n")
    for name, url in sorted(types.items()):
        print(f"  {name:14} {url}")
    for root, repo in _ask(request, "GET", "repos/info").items():
        print(f"\nRepo {root}  {repo['Alias']}".rstrip())
        nodes = repo["DAG"]["Nodes"].values()
        for node in sorted(nodes, key=lambda each: each["VersionID"]):
            print(f"  version {node['UUID']}  {'locked' if node['Locked'] else 'open'}")
        for name, each in sorted(repo["DataInstances"].items()):
            print(f"  {name}  [{each['Base']['TypeName']}]")


def _sure(request: Request) -> str:
    """Return the query that deletes, with the passcode that may be the last word."""
    code = request.words.pop(0) if request.words else request.settings.get("passcode", "")
    return "imsure=true" + (f"&passcode={quote(code, safe='')}" if code else "")


def _repos(request: Request) -> None:
    what = request.take("'new' or 'delete'")
    if what == "new":
        fields = dict(zip(("alias", "description"), request.words, strict=False))
        for name, field in (("uuid", "root"), ("passcode", "passcode")):
            if name in request.settings:
                fields[field] = request.settings[name]
        print(_ask(request, "POST", "repos", fields)["root"])
    elif what == "delete":
        uuid = request.take("the UUID")
        _ask(request, "DELETE", f"repo/{quote(uuid)}?{_sure(request)}", text=True)
        print(f"deleted repo {uuid}")
    else:
        raise Usage(f"'repos {what}' is no command; 'dvid help' names them")


def _repo(request: Request) -> None:
    uuid, what = quote(request.take("the UUID")), request.take("what to do")
    if what == "new":
        fields = {"typename": request.take("the data type"), "dataname": request.take("the name")}
        found = _ask(request, "POST", f"repo/{uuid}/instance", {**request.settings, **fields})
        print(found["result"])
    elif what == "branch":
        fields = {"branch": request.take("the branch's name")}
        fields |= {"uuid": request.words[0]} if request.words else {}
        print(_ask(request, "POST", f"node/{uuid}/branch", fields)["child"])
    elif what == "newversion":
        fields = {"uuid": request.words[0]} if request.words else {}
        print(_ask(request, "POST", f"node/{uuid}/newversion", fields)["child"])
    elif what == "delete":
        name = request.take("the name")
        _ask(request, "DELETE", f"repo/{uuid}/{quote(name, safe='')}?{_sure(request)}", text=True)
        print(f"deleted {name}")
    else:
        raise UnsupportedError(f"'repo UUID {what}' is not among the commands of this launcher")


def _node(request: Request) -> None:
    uuid, name = quote(request.take("the UUID")), quote(request.take("the name"), safe="")
    words = [request.take("the command"), *request.words]
    if words == ["help"]:
        print(_ask(request, "GET", f"node/{uuid}/{name}/help", text=True))
        return
    fields: dict[str, Any] = {"words": words, "settings": request.settings}
    if "-stdin" in request.options:
        fields["stdin"] = base64.b64encode(sys.stdin.buffer.read()).decode()
    print(_ask(request, "POST", f"node/{uuid}/{name}/command", fields, text=True).rstrip())


COMMANDS: dict[str, Callable[[Request], None]] = {
    "help": _help, "about": _about, "version": _about, "init": _init, "serve": _serve,
    "server": _serve, "types": _types, "repos": _repos, "datasets": _repos, "repo": _repo,
    "dataset": _repo, "node": _node,
}  # fmt: skip


def _ask(request: Request, method: str, path: str, body: Any = None, text: bool = False) -> Any:
    """Ask the server; return its answer as JSON, or as text."""
    import http.client

    address = request.address()
    host, _, port = address.rpartition(":")
    token = os.environ.get("DVID_ADMIN_TOKEN", "")
    if token:
        path += f"{'&' if '?' in path else '?'}admintoken={quote(token, safe='')}"
    data = None if body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(host.strip("[]"), int(port))
    try:
        connection.request(method, f"/api/{path}", data)
        answer = connection.getresponse()
        found = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LocationError(
            f"no server answers at {address} ({error}); 'dvid serve DIRECTORY' starts one"
        ) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise InvalidError(" ".join(found.decode("utf-8", "replace").split()))
    return found.decode("utf-8", "replace") if text else json.loads(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    try:
        request = Request(sys.argv[1:] if argv is None else argv)
        word = request.words.pop(0) if request.words else "help"
        run = COMMANDS.get(word)
        if run is None:
            raise Usage(f"{word!r} is no command; 'dvid help' names them")
        run(request)
        return 0
    except Usage as error:
        print(f"dvid: {error}", file=sys.stderr)
        return 2
    except DicedException as error:
        print(f"dvid: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
