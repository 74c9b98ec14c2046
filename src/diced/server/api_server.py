"""Requests of the server as a whole."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import time
from html import escape
from typing import TYPE_CHECKING, Any

from diced import __version__, log, registry
from diced.errors import DicedException, InvalidError, UnsupportedError
from diced.server import openapi
from diced.server.answer import HTML, JSON, TEXT, Answer, Refused
from diced.server.api_instances import help_text
from diced.server.call import Call, whole
from diced.server.datatype import ALIASES, DVID_TYPES, DataType, find_type, type_of
from diced.server.fields import NOTE_BYTES
from diced.server.routes import ADMIN, NONE, Route
from diced.storefile import FORMAT
from diced.usage import usage

if TYPE_CHECKING:
    from diced.server.site import Site

LOG = logging.getLogger("diced.server")
MAX_THROTTLE = 1000
# What DVID counts of a cache that it shares with other servers; there is none here.
GROUPCACHE = (
    "Gets", "CacheHits", "PeerLoads", "PeerErrors", "Loads", "LoadsDeduped", "LocalLoads",
    "LocalLoadErrs", "ServerRequests",
)  # fmt: skip
MODES = {"readonly": "read only", "fullwrite": "allow writes on committed nodes"}
ENGINES = {"file": "diced on a disk", "memory": "diced in memory", "gs": "diced in a bucket"}


def known_types(site: Site) -> list[DataType]:
    """Return all data types that can be loaded; a broken package does not hide the others."""
    found = []
    for name in registry.names("datatype"):
        if name in ALIASES:
            continue
        try:
            found.append(find_type(name))
        except UnsupportedError as error:
            LOG.error("data type %s: %s", name, error)
    return found


def go_duration(seconds: float) -> str:
    """Spell a time as Go does.

    >>> go_duration(3725.5), go_duration(2), go_duration(0.25)
    ('1h2m5.5s', '2s', '250ms')
    """
    if seconds < 1:
        return f"{1000 * seconds:.6g}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{round(rest, 3):g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


# -- help ----------------------------------------------------------------------------------


def _help(call: Call) -> Answer:
    rows = []
    for route in call.site.table.routes:
        path = route.pattern if route.pattern.startswith("/") else f"/api/{route.pattern}"
        rows.append(
            f"<tr><td>{' '.join(route.methods)}</td><td><code>{escape(path)}</code></td>"
            f"<td>{escape(route.summary)}</td></tr>"
        )
    kinds = "".join(
        f'<li><a href="/api/help/{escape(each.name)}">{escape(each.name)}</a></li>'
        for each in known_types(call.site)
    )
    return Answer(
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>DVID API of diced</title>"
        "<style>body{font-family:sans-serif;margin:2em}td{padding:.2em 1em .2em 0;"
        "vertical-align:top}</style>"
        f"<h1>DVID API of diced {escape(__version__)}</h1>"
        "<p>The same for programs: <a href=/api/openapi.json>/api/openapi.json</a></p>"
        f"<h2>Server, repos and nodes</h2><table>{''.join(rows)}</table>"
        f"<h2>Data types</h2><ul>{kinds}</ul></html>\n".encode(),
        HTML,
        # No other page shows this one inside it, and nothing in it runs.
        headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


def _type_help(call: Call) -> str:
    return help_text(find_type(call.args["type"]))


def _openapi(call: Call) -> Answer:
    return Answer(openapi.text(call.site, known_types(call.site)), JSON)


def _interface(call: Call) -> Answer:
    found = openapi.raml(openapi.document(call.site, known_types(call.site)))
    return Answer(found, "application/raml+yaml")


def _interface_version(_call: Call) -> str:
    return "v1\n"


# -- what it is and does -------------------------------------------------------------------


def _load(call: Call) -> Any:
    site, load = call.site, call.site.load
    last = load.last_second()
    threads = site.options.workers * (site.options.threads or 2 * (os.cpu_count() or 1))
    return {
        "file bytes read": last["read"],
        "file bytes written": last["written"],
        "key bytes read": 0,
        "key bytes written": 0,
        "value bytes read": last["read"],
        "value bytes written": last["written"],
        "GET requests": last["gets"],
        "PUT requests": last["puts"],
        "handlers active": min(100, 100 * load.active // threads),
        "goroutines": threading.active_count(),
        "active CGo writes": 0,
        "pending log messages": 0,
    }


def _heartbeat(call: Call) -> str:
    if call.user:
        call.site.load.ping(call.user)
    return "OK"


def _latencies(call: Call) -> Any:
    found = call.site.load.latencies()
    user = call.query.get("u")
    if not (call.site.access.open or call.admin):  # others are nobody's business
        found = {call.user: found[call.user]} if call.user in found else {}
    if not user:
        return found
    if user not in found:
        raise InvalidError(f"no latencies are known of user {user!r}")
    return found[user]


def _info(call: Call) -> Any:
    site, options = call.site, call.site.options
    cores = str(os.cpu_count() or 1)
    scheme = site.store.url.partition("://")[0] if "://" in site.store.url else "file"
    name = options.public_name or socket.gethostname()
    rpc = [f"{host}:{port}" for host, port in options.also]
    found = {
        "Cores": cores,
        "Maximum Cores": cores,
        "Datastore Version": str(FORMAT),
        "DVID Version": f"diced {__version__}",
        "Storage backend": ENGINES.get(scheme, f"diced over {scheme}"),
        "Server time": log.now(),
        "Server uptime": go_duration(time.time() - site.started),
        "RPC Address": ", ".join(rpc),
        "Host": f"{name}:{options.port}",
        "Note": options.note,
        "TOML location": options.config_path,
        "Max Open Files": str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }
    if options.mode in MODES:
        found["Mode"] = MODES[options.mode]
    return found


def _note(call: Call) -> str:
    note: str = call.site.options.note
    return note


def _config(call: Call) -> Answer:
    return Answer(call.site.options.config_text.encode(), TEXT)


def _types(call: Call) -> Any:
    """Return the types of instances that the caller may see."""
    site, found = call.site, {}
    views, _ = site.lookup.views([key.decode() for key in site.store._repos()])
    for repo_id, view in views.items():
        root = site.lookup.handle(repo_id, view.dag.root.id)
        if site.access.visible(call, root) != "all":
            continue
        for spec in view.arrays.values():
            try:
                kind = type_of(root._array(spec))
            except UnsupportedError as error:
                LOG.error("instance %s: %s", spec.name, error)
                continue
            found[kind.name] = _url(kind)
    return dict(sorted(found.items()))


def _compiled_types(call: Call) -> Any:
    return {each.name: _url(each) for each in known_types(call.site)}


def _url(kind: DataType) -> str:
    return kind.url or DVID_TYPES + kind.name


def _groupcache(_call: Call) -> Any:
    return dict.fromkeys(GROUPCACHE, 0)


def _token(call: Call) -> str:
    """Give back the token that was sent, where it is one: a client may so check it."""
    if call.site.access.open and not call.admin:
        raise InvalidError("this server asks for no tokens")
    kind, _, token = call.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Refused(401, "no token was sent\n", {"WWW-Authenticate": 'Bearer realm="diced"'})
    return token.strip()


# -- what an admin does --------------------------------------------------------------------

_measuring = threading.Lock()


def _storage(call: Call) -> str:
    if not _measuring.acquire(blocking=False):
        return "Storage is being measured already; the result goes to the log.\n"
    threading.Thread(target=_measure, args=(call.site.store,), daemon=True).start()
    return "Storage is being measured; the result goes to the log.\n"


def _measure(store: Any) -> None:
    try:
        LOG.warning("storage of %s: %s", store.url, usage(store))
    except DicedException as error:
        LOG.error("storage of %s: %s", store.url, error)
    finally:
        _measuring.release()


def _settings(call: Call) -> str:
    given, told = call.json(), ""
    known: dict[str, int | None] = {"gc": None, "throttle": None}
    for name, value in given.items():
        if name not in known:
            raise InvalidError(f"there is no setting {name!r}; there are gc and throttle")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InvalidError(f"setting {name!r} is a whole number; got {value!r:.80}")
        known[name] = whole(str(value), f"setting {name!r}")
    throttle = known["throttle"]
    if throttle is not None:
        if not 1 <= throttle <= MAX_THROTTLE:
            raise InvalidError(f"setting 'throttle' is from 1 to {MAX_THROTTLE}; got {throttle}")
        call.site.throttle.most = throttle
        told += f"Maximum throttled operations set to {throttle}\n"
    if known["gc"] is not None:
        told += "The setting 'gc' has no meaning here\n"
    return told


def _reload(call: Call) -> str:
    call.site.access.reload()
    return "Rights and blocked users were read anew.\n"


def _reload_metadata(_call: Call) -> str:
    return "Metadata are always the newest: nothing was to be done.\n"


def routes() -> list[Route]:
    """Return the routes."""
    server = "/api/server"
    user = {"u": "user"}
    return [
        Route("GET", "/api/help", _help, "Returns this help, as HTML.", needs=NONE),
        Route(
            "GET", "/api/help/{type}", _type_help, "Returns the help of a data type, as text.",
            needs=NONE,
        ),
        Route(
            "GET", "/api/openapi.json", _openapi, "Returns all requests as OpenAPI 3.1.",
            needs=NONE,
        ),
        Route("GET", "/interface", _interface, "Returns all requests as RAML.", needs=NONE),
        Route(
            "GET", "/interface/version", _interface_version, "Returns the API's version.",
            needs=NONE, light=True,
        ),
        Route(
            "GET", "/api/load", _load,
            "Returns what the answering process did in the last second, as JSON.",
            needs=NONE, light=True,
        ),
        Route(
            "GET", "/api/heartbeat", _heartbeat, "Returns OK, and remembers the user.",
            query=user, needs=NONE, light=True,
        ),
        Route(
            "GET", "/api/user-latencies", _latencies,
            "Returns how long users waited for answers, in milliseconds, as JSON by user.",
            query={"u": "only this user, without the name around it"}, light=True,
        ),
        Route(
            "GET", "/api/storage", _storage, "Measures what the store holds; see the log.",
            needs=ADMIN,
        ),
        Route("GET", f"{server}/info", _info, "Returns what the server is, as JSON.", needs=NONE,
              light=True),
        Route("GET", f"{server}/note", _note, "Returns the note of the configuration.",
              needs=NONE, light=True),
        Route("GET", f"{server}/config", _config, "Returns the configuration, as TOML.",
              needs=ADMIN, light=True),
        Route(
            "GET", f"{server}/types", _types,
            "Returns the data types of all instances, as JSON: URLs by name.",
        ),
        Route(
            "GET", f"{server}/compiled-types", _compiled_types,
            "Returns all data types that there are, as JSON: URLs by name.", needs=NONE,
        ),
        Route(
            "GET", f"{server}/groupcache", _groupcache,
            "Returns counters of a cache that this server does not have, as JSON.",
            needs=NONE, light=True,
        ),
        Route(
            "GET", f"{server}/token", _token, "Returns the bearer token of the request.",
            needs=NONE, light=True,
        ),
        Route(
            "POST", f"{server}/settings", _settings, "Changes settings of the running server.",
            body="JSON: 'throttle' (throttled operations at a time), 'gc'; text or numbers",
            needs=ADMIN, limit=NOTE_BYTES,
        ),
        Route(
            "POST", f"{server}/reload-auth", _reload, "Reads users and rights anew.", needs=ADMIN,
        ),
        Route(
            "POST", f"{server}/reload-blocklist", _reload, "Reads blocked users anew.",
            needs=ADMIN,
        ),
        Route(
            "POST", f"{server}/reload-metadata", _reload_metadata,
            "Does nothing: metadata are always the newest.", needs=ADMIN, light=True,
        ),
    ]  # fmt: skip
