"""The configuration of a server: a TOML file, DVID's or ours.

The sections ``[server]``, ``[store]``, ``[backend]``, ``[logging]`` and ``[auth]`` mean what they
mean to DVID, as far as that has a meaning here; ``[access]`` is ours. What is not known is told and
passed over, but what would open more than the file says is refused.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from diced.errors import InvalidError, LocationError

LOCATION = "location"
_STORE_KEYS: dict[str, tuple[str, type]] = {
    "durability": ("durability", str),
    "threads": ("threads", int),
    "cacheBytes": ("cache_bytes", int),
    "blockCacheBytes": ("block_cache_bytes", int),
    "permissionfile": ("permissionfile", str),
}
# Engines of DVID that hold data in a folder; what else there is holds logs, or is somewhere else.
_FOLDERS = ("badger", "basholeveldb", "leveldb", "bolt", "diced", "")
_LOGS = ("filelog", "filestore")
# Sections of DVID that have no meaning here.
_SILENT = ("email", "mutations", "kafka", "cache", "mutcache", "groupcache", "mirror")


class Found:
    """What a file says.

    Attributes
    ----------
    fields : dict
        Of `Options`; only those that the file speaks of.
    warnings : list of str
        What it says that has no meaning.
    """

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.warnings: list[str] = []


def read(path: str) -> Found:
    """Read a configuration.

    Parameters
    ----------
    path : str
        Of a TOML file. Relative paths in it start at its folder.

    Raises
    ------
    LocationError
        There is no such file.
    InvalidError
        It is no TOML, or a value has no meaning.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        sections = tomllib.loads(text)
    except OSError as error:
        raise LocationError(f"cannot read the configuration {path!r}: {error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path}: {error}") from None
    found = _Reader(path, sections).read()
    found.fields.update(config_path=os.path.abspath(path), config_text=text)
    return found


def address(text: str) -> tuple[str, int]:
    """Parse ``host:port``, ``[::1]:8000`` or ``:8000``, which is every address of the machine.

    Raises
    ------
    InvalidError
    """
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidError(f"an address is host:port; got {text!r:.100}")
    return host.strip("[]") or "0.0.0.0", int(port)


class _Reader:
    """Reads the sections of one file."""

    def __init__(self, path: str, sections: Mapping[str, Any]):
        self._path = path
        self._folder = os.path.dirname(os.path.abspath(path))
        self._sections = dict(sections)
        self._found = Found()

    def read(self) -> Found:
        fields = self._found.fields
        self._server(self._table("server"))
        self._stores(self._table("store"), self._table("backend"))
        logs = self._table("logging")
        if "logfile" in logs:
            fields["log_file"] = self._resolve(self._text("logging.logfile", logs.pop("logfile")))
        self._pass_over("logging", logs)
        has_access = "access" in self._sections
        access = self._table("access")
        public = self._auth(self._table("auth"), has_access)
        if has_access:
            # An empty section closes too: somebody meant to.
            access = {"default": "none", **access}
            if public:
                listed = self._texts("access.public_versions", access.get("public_versions", []))
                access["public_versions"] = [*listed, *public]
            fields["access"] = access
        elif public:
            self._warn("auth.public_versions has no meaning without [access]: all is public")
        for name in _SILENT:
            if self._sections.pop(name, None) is not None:
                self._warn(f"[{name}] has no meaning here")
        for name in self._sections:
            self._warn(f"[{name}] is not known")
        return self._found

    # -- sections --------------------------------------------------------------------------

    def _server(self, given: dict[str, Any]) -> None:
        fields = self._found.fields

        def take(key: str, field: str, parse: Callable[[str, Any], Any]) -> None:
            if key in given:
                fields[field] = parse(f"server.{key}", given.pop(key))

        if "httpAddress" in given:
            text = self._text("server.httpAddress", given.pop("httpAddress"))
            fields["host"], fields["port"] = address(text)
        if "rpcAddress" in given:
            text = self._text("server.rpcAddress", given.pop("rpcAddress"))
            fields["also"] = (address(text),)
        mode = given.pop("rwmode", "")
        if mode not in ("", "readwrite", "readonly", "fullwrite"):
            self._fail("server.rwmode", mode, "readonly, fullwrite or empty")
        fields["mode"] = "" if mode == "readwrite" else mode
        take("host", "public_name", self._text)
        take("note", "note", self._text)
        take("corsDomains", "cors", self._texts)
        take("blockListFile", "blocklist", self._file)
        take("allowTiming", "timing", self._flag)
        take("adminToken", "admin_token", self._text)
        take("workers", "workers", self._count)
        take("threads", "threads", self._count)
        take("throttle", "throttle", self._count)
        take("accessLog", "access_log", self._flag)
        take("page", "page", self._flag)
        take("maxBody", "max_body", self._count)
        take("bodySeconds", "body_seconds", self._seconds)
        take("requestSeconds", "request_seconds", self._seconds)
        take("headSeconds", "head_seconds", self._seconds)
        take("idleSeconds", "idle_seconds", self._seconds)
        self._pass_over("server", given)

    def _stores(self, given: dict[str, Any], backend: dict[str, Any]) -> None:
        fields = self._found.fields
        stores = {key: given.pop(key) for key in list(given) if isinstance(given[key], dict)}
        if LOCATION in given:
            fields["location"] = self._resolve(self._text("store.location", given.pop(LOCATION)))
            if stores:
                raise InvalidError(
                    f"{self._path}: [store] has both a location and {', '.join(map(repr, stores))}"
                )
        self._options("store", given)
        data = {key: each for key, each in stores.items() if each.get("engine", "") not in _LOGS}
        for key in stores:
            if key not in data:
                self._warn(f"[store.{key}] has no meaning here: it holds logs")
        used: set[str] = set()
        for key, each in backend.items():
            if not isinstance(each, dict) or each.get("store") not in stores:
                self._fail(f"backend.{key}", each, "store = one of [store.*]")
            used.add(each["store"])
        wanted = sorted(used & set(data) or data)
        if len(wanted) > 1:
            raise InvalidError(
                f"{self._path}: data go to one store; it names {', '.join(map(repr, wanted))}"
            )
        for key in wanted:
            fields["location"] = self._location(key, dict(data[key]))

    def _location(self, alias: str, given: dict[str, Any]) -> str:
        """Return the location of one of DVID's stores."""
        where = f"store.{alias}"
        engine = given.pop("engine", "")
        if engine == "gbucket" or "bucket" in given:
            bucket = self._text(f"{where}.bucket", given.pop("bucket", None))
            found = bucket if "://" in bucket else f"gs://{bucket}"
        elif engine not in _FOLDERS:
            self._fail(f"{where}.engine", engine, f"one of {', '.join(_FOLDERS[:-1])} or gbucket")
        elif LOCATION in given:
            found = self._resolve(self._text(f"{where}.location", given.pop(LOCATION)))
        else:
            found = self._resolve(self._text(f"{where}.path", given.pop("path", None)))
        self._options(where, given)
        return found

    def _options(self, where: str, given: dict[str, Any]) -> None:
        options: dict[str, Any] = self._found.fields.setdefault("store", {})
        for key, (name, kind) in _STORE_KEYS.items():
            if key in given:
                parse = self._count if kind is int else self._text
                options[name] = parse(f"{where}.{key}", given.pop(key))
        if "permissionfile" in options:
            options["permissionfile"] = self._resolve(options["permissionfile"])
        self._pass_over(where, given)

    def _auth(self, given: dict[str, Any], has_access: bool) -> list[str]:
        """Return the public versions of DVID's section; refuse rights that would be forgotten."""
        public = list(self._texts("auth.public_versions", given.pop("public_versions", [])))
        enforce = given.pop("enforce", None)
        closing = [] if enforce in (None, "none") else [f"enforce = {enforce!r}"]
        inside = given.get("enforce_internal", "none")
        closing += [] if inside == "none" else [f"enforce_internal = {inside!r}"]
        if enforce is None and given.get("no_enforce") is not True:
            # Before there were modes, these alone asked for tokens.
            closing += [name for name in ("auth_file", "proxy_address") if given.get(name)]
        if closing and not has_access:
            raise InvalidError(
                f"{self._path}: auth.{closing[0]} is not known here, and nobody is let in"
                " by mistake: say in [access] who may do what"
            )
        self._pass_over("auth", given)
        return public

    # -- values ----------------------------------------------------------------------------

    def _table(self, name: str) -> dict[str, Any]:
        given = self._sections.pop(name, {})
        if not isinstance(given, dict):
            self._fail(name, given, "a table")
        return dict(given)

    def _resolve(self, path: str) -> str:
        if "://" in path or path.startswith("~"):
            return path
        return os.path.join(self._folder, path)

    def _file(self, where: str, value: Any) -> str:
        return self._resolve(self._text(where, value))

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            self._fail(where, value, "text")
        return value

    def _texts(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self._fail(where, value, "a list of text")
        return tuple(value)

    def _flag(self, where: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self._fail(where, value, "true or false")
        return value

    def _count(self, where: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._fail(where, value, "a whole number above 0")
        return value

    def _seconds(self, where: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            self._fail(where, value, "seconds, above 0")
        return float(value)

    def _fail(self, where: str, value: Any, wanted: str) -> NoReturn:
        shown = "nothing" if value is None else f"{value!r:.80}"
        raise InvalidError(f"{self._path}: {where} is {wanted}; got {shown}")

    def _pass_over(self, where: str, rest: Mapping[str, Any]) -> None:
        for key in rest:
            self._warn(f"{where}.{key} has no meaning here")

    def _warn(self, text: str) -> None:
        self._found.warnings.append(f"{self._path}: {text}")
