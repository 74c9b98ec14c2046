"""Requests of the repos."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from diced.errors import AlreadyExistsError, InvalidError, UnsupportedError
from diced.names import check_name
from diced.repo import DicedRepo
from diced.server import blobstore
from diced.server.answer import JSON, TEXT, Answer
from diced.server.call import Call
from diced.server.datatype import Settings, find_type
from diced.server.describe import CHECKSUMS, branch_versions
from diced.server.fields import NOTE_BYTES, body_fields, lines_field, text_field
from diced.server.routes import ADMIN, Route

# Names that paths give another meaning to.
RESERVED = frozenset(
    ("log", "branch", "note", "commit", "newversion", "status", "tag", "blobstore", blobstore.NAME)
)


def check_public_name(what: str, name: str) -> str:
    """Return a name that stands in paths, or raise InvalidError."""
    check_name(what, name)
    if "/" in name or name in (".", ".."):
        raise InvalidError(f"{what} name cannot stand in a path: {name!r:.100}")
    return name


# -- repos ---------------------------------------------------------------------------------


def _repos(call: Call) -> Answer:
    return Answer(call.site.descriptions.repos(call), JSON)


def _create(call: Call) -> Any:
    fields = body_fields(call)
    root = text_field(fields, "root")
    if root:
        check_public_name("version", root)
    repo = call.site.store.create_repo(
        text_field(fields, "alias"), text_field(fields, "description"),
        uuid=root or None, alias=True,
    )  # fmt: skip
    passcode = text_field(fields, "passcode")
    if passcode:
        digest = _digest(repo, passcode)
        call.site.store._edit_repo(
            repo.root, lambda stored, _tables: stored.update(passcode=digest), "passcode"
        )
    return {"root": repo.root}


def _digest(repo: DicedRepo, passcode: str) -> str:
    salt = repo.root.encode()
    return hashlib.pbkdf2_hmac("sha256", passcode.encode(), salt, 100_000).hex()


def check_passcode(repo: DicedRepo, given: str) -> None:
    """Raise InvalidError if a repo was created with another passcode; it is for its deletion."""
    stored = repo.store._repo_fields(repo._id).get("passcode")
    if stored and not hmac.compare_digest(stored, _digest(repo, given)):
        raise InvalidError(f"repo {repo.root} has another passcode")


def _check_sure(call: Call) -> None:
    if not call.flag("imsure"):
        raise InvalidError("deleting cannot be undone: say ?imsure=true")
    check_passcode(call.node_repo(), call.query.get("passcode", ""))


def _delete(call: Call) -> None:
    _check_sure(call)
    call.site.store.delete_repo(call.node_repo().root)


def _head(call: Call) -> Answer:
    return Answer(b"", TEXT)


def _info(call: Call) -> Answer:
    return Answer(call.site.descriptions.repo(call), JSON)


def _set_info(call: Call) -> None:
    fields, store = body_fields(call, empty=False), call.site.store
    alias, description = text_field(fields, "alias"), text_field(fields, "description")
    if "alias" in fields:
        store.rename_repo(call.node_repo().root, alias, alias=True)
    if "description" in fields:
        store.describe_repo(call.node_repo().root, description)


def _log(call: Call) -> Any:
    return {"log": call.node_repo()._history.view().log}


def _add_log(call: Call) -> None:
    repo = call.node_repo()
    lines = lines_field(body_fields(call, empty=False), "log")
    repo._check_writable()
    if lines:
        repo._history.add_log(lines)


def _branch_versions(call: Call) -> list[str]:
    return branch_versions(call.node_repo()._history.view().dag, call.args["name"])


# -- instances -----------------------------------------------------------------------------


def _create_instance(call: Call) -> Any:
    fields = {name: value for name, value in call.json().items() if value is not None}
    array, typename = create_instance(call.node_repo(), Settings(fields))
    return {"result": f"Added {array.name} [{typename}] to node {call.node_repo().uuid}"}


def create_instance(repo: DicedRepo, settings: Settings) -> tuple[Any, str]:
    """Create a data instance.

    Parameters
    ----------
    repo : DicedRepo
        At the version that it begins at.
    settings : Settings
        ``typename`` and ``dataname``, what is the same for all types, and what the type takes.

    Returns
    -------
    (array, str)
        And the name of its type.

    Raises
    ------
    InvalidError, NotFoundError, AlreadyExistsError, LockedError, UnsupportedError
    """
    for needed in ("typename", "dataname"):
        if not settings.get(needed):
            raise InvalidError(f"a new instance needs a {needed!r}")
    name = check_public_name("instance", settings.get("dataname"))
    if name in RESERVED:
        raise InvalidError(f"an instance cannot be named {name!r}: it has a meaning in paths")
    if settings.get("checksum").lower() not in CHECKSUMS:
        raise InvalidError(
            f"the setting 'checksum' is none or crc32; got {settings.get('checksum')!r:.60}"
        )
    kind = find_type(settings.get("typename"))
    if name in repo._history.view().by_name:
        raise AlreadyExistsError(f"data instance {name!r} exists already in this repo")
    return kind.create(repo, name, settings, settings.flag("versioned", True)), kind.name


def _delete_instance(call: Call) -> None:
    _check_sure(call)
    call.node_repo().delete_array(call.args["name"])


def _no_merge(call: Call) -> None:
    raise UnsupportedError("this version of diced does not merge versions")


def routes() -> list[Route]:
    """Return the routes."""
    one = "/api/repo/{uuid}"
    return [
        Route("GET", "/api/repos/info", _repos, "Returns all repos, as JSON by root UUID."),
        Route(
            "POST", "/api/repos", _create, 'Creates a repo and returns {"root": ...}.',
            body="JSON, all optional: 'alias', 'description', 'root' (its UUID), 'passcode'",
            limit=NOTE_BYTES,
        ),
        Route("HEAD", one, _head, "Tells whether a version is there.", light=True),
        Route(
            "DELETE", one, _delete, "Deletes a repo with all its versions, for good.",
            query={"imsure": "true", "passcode": "if it was created with one"},
            needs=ADMIN, changes=False,
        ),
        Route("GET", f"{one}/info", _info, "Returns the repo of a version, as JSON."),
        Route(
            "POST", f"{one}/info", _set_info, "Changes alias and description.",
            body="JSON: 'alias', 'description'", limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "POST", f"{one}/instance", _create_instance, "Creates a data instance at a version.",
            body="JSON: 'typename', 'dataname', 'versioned', 'Tags', and settings of the type",
            limit=NOTE_BYTES,
        ),
        Route("GET", f"{one}/log", _log, "Returns the log of the repo as a whole.", light=True),
        Route(
            "POST", f"{one}/log", _add_log, "Adds lines to the log of the repo as a whole.",
            body="JSON: 'log', a list of text", limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "GET", f"{one}/branch-versions/{{name...}}", _branch_versions,
            "Returns the UUIDs of a branch, from the newest to the root.", light=True,
        ),
        Route(
            "POST", f"{one}/merge", _no_merge, "Merges versions: not in this version.",
            limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "POST", f"{one}/resolve", _no_merge, "Merges with priorities: not in this version.",
            limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "DELETE", f"{one}/{{name}}", _delete_instance,
            "Deletes an instance from all versions, for good.",
            query={"imsure": "true", "passcode": "if the repo was created with one"},
            needs=ADMIN, changes=False,
        ),
    ]  # fmt: skip
