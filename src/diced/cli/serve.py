"""The serve command: a store as a server that DVID's clients use."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diced.cli import common
from diced.errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from diced.server.options import Options

# The admin token; the first that is set counts.
TOKEN_VARIABLES = ("DICED_ADMIN_TOKEN", "DVID_ADMIN_TOKEN")

MORE = f"""\
Flags override the configuration. Who knows the admin token, ${" or $".join(TOKEN_VARIABLES)} (or
adminToken in the configuration), may do everything. Without a section [access] in the configuration
everybody may: then serve addresses of this machine only, which is the default.

  diced serve fly.diced
  diced serve gs://bucket/fly --workers 4 --host 0.0.0.0 --config rights.toml
  diced serve dvid.toml --readonly
"""


def add_commands(commands: common.Commands) -> None:
    """Add the parser."""
    parser = common.command(
        commands, "serve", _serve, "answer HTTP requests of DVID's clients and browsers", more=MORE
    )
    parser.add_argument(
        "location", metavar="LOCATION", nargs="?",
        help="path or URL of a store, made if missing, or a .toml configuration that names one; -"
        f" means the one in ${common.STORE_VARIABLE}",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="configuration, beside LOCATION")
    parser.add_argument("--host", help="address to listen at; default: 127.0.0.1")
    parser.add_argument("--port", type=_port, help="0 takes a free one; default: 8000")
    parser.add_argument(
        "--also", metavar="HOST:PORT", action="append", help="listen here as well; may be repeated"
    )
    parser.add_argument("--workers", type=common.positive, metavar="N", help="processes")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--readonly", dest="mode", action="store_const", const="readonly", help="change nothing"
    )
    mode.add_argument(
        "--fullwrite", dest="mode", action="store_const", const="fullwrite",
        help="change notes, logs and unversioned data at locked versions too",
    )  # fmt: skip
    parser.add_argument(
        "--cors", metavar="ORIGIN", action="append",
        help="origin or domain whose pages may ask; may be repeated; default: *; none: no other",
    )  # fmt: skip
    parser.add_argument("--note", help="shown as the server's note")
    parser.add_argument("--access-log", action="store_true", default=None, help="log requests")
    parser.add_argument("--log-file", metavar="FILE", help="log here, not to standard error")
    parser.add_argument("--no-page", dest="page", action="store_false", default=None,
                        help="no page for browsers at /")  # fmt: skip
    parser.add_argument(
        "--throttle", type=common.positive, metavar="N",
        help="requests with throttle=on at a time; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--durability", choices=("power", "process"), default=None,
        help="what is written survives a power cut (power, the default) or a kill (process)",
    )  # fmt: skip
    parser.add_argument(
        "--block-cache", type=common.size, metavar="SIZE",
        help="memory for decoded blocks, per repo and process; default: none",
    )  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Serve as the words after ``diced serve`` say; return the exit code."""
    parser = argparse.ArgumentParser(prog="diced")
    add_commands(parser.add_subparsers())
    args = parser.parse_args(["serve", *words])
    return int(args.run(args) or 0)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _serve(args: argparse.Namespace) -> None:
    try:
        from diced.server import serve
    except ImportError as error:
        raise UnsupportedError(f"serving needs {error.name}: pip install 'diced[server]'") from None
    options = _options(args)

    def ready(url: str) -> None:
        if args.json:
            print(json.dumps({"url": url, "store": options.location}), flush=True)
        else:
            print(f"diced: {options.location} is served at {url}", flush=True)

    serve.run(options, ready)


def _options(args: argparse.Namespace) -> Options:
    """Return what the configuration, the environment and the flags say, the last first."""
    from diced.server import config
    from diced.server.options import Options

    fields: dict[str, Any] = {}
    location, path = args.location, args.config
    if location is not None and location.endswith(".toml") and "://" not in location:
        if path is not None:
            raise InvalidError(f"there are two configurations, {location!r} and {path!r}")
        location, path = None, location
    if path is not None:
        found = config.read(path)
        fields = found.fields
        for warning in found.warnings:
            common.note(args, f"warning: {warning}")
    if location is not None:
        args.store = location
        fields["location"] = common.location(args)
    if "location" not in fields:
        raise InvalidError(
            f"no store is named: give a LOCATION{' or [store] in the configuration' * bool(path)}"
        )
    for name in ("host", "port", "workers", "threads", "mode", "note", "access_log", "log_file",
                 "page", "throttle"):  # fmt: skip
        if getattr(args, name) is not None:
            fields[name] = getattr(args, name)
    if args.also:
        fields["also"] = tuple(config.address(each) for each in args.also)
    if args.cors:
        fields["cors"] = tuple(each for each in args.cors if each != "none")
    token = next((os.environ[each] for each in TOKEN_VARIABLES if os.environ.get(each)), "")
    if token:
        fields["admin_token"] = token
    store = {"durability": args.durability, "block_cache_bytes": args.block_cache}
    given = {name: value for name, value in store.items() if value is not None}
    fields["store"] = {**fields.get("store", {}), **given}
    return Options(**fields)
