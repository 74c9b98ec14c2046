"""Requests of the nodes."""

from __future__ import annotations

import re
from typing import Any

from diced import log
from diced.dag import MASTER, OPEN, Node
from diced.errors import AlreadyExistsError, InvalidError, LockedError
from diced.repo import DicedRepo
from diced.server.api_repos import check_public_name
from diced.server.call import Call
from diced.server.fields import NOTE_BYTES, body_fields, lines_field, text_field
from diced.server.routes import Route

UUID = re.compile("[0-9a-fA-F]{32}")


def _status(call: Call) -> Any:
    return {"Locked": call.node_repo().locked}


def _note(call: Call) -> Any:
    return {"note": call.node_repo().note}


def _log(call: Call) -> Any:
    repo = call.node_repo()
    public = call.site.access.visible(call, repo) == "public"
    return {"log": [] if public else repo.log}


def _edit(call: Call, new: dict[str, Any], lines: list[str], operation: str) -> None:
    """Change a node that must be open, in one commit."""
    repo = call.node_repo()
    repo._check_writable()
    forced = call.site.is_forced(call)

    def change(fields: dict[str, Any]) -> None:
        if fields["status"] != OPEN and not forced:
            raise LockedError(f"Cannot do post on locked node {fields['uuid']}")
        fields.update(new)
        fields["log"] = [*fields["log"], *lines]

    repo._history.edit_node(repo._node_id, change, operation)


def _set_note(call: Call) -> None:
    fields = body_fields(call, empty=False)
    if "note" not in fields:
        raise InvalidError("the body is a JSON object with 'note'")
    _edit(call, {"note": text_field(fields, "note")}, [], "note")


def _add_log(call: Call) -> None:
    lines = lines_field(body_fields(call, empty=False), "log")
    if lines:
        now = log.now()
        _edit(call, {}, [f"{now}  {each}" for each in lines], "log")


def _commit(call: Call) -> Any:
    fields = body_fields(call, empty=False)
    note, lines = text_field(fields, "note"), lines_field(fields, "log")
    repo = call.node_repo()
    repo._check_writable()
    repo._history.lock(repo._node_id, note or repo.note, lines)
    return {"committed": repo.uuid}


# -- children ------------------------------------------------------------------------------


def _child(
    call: Call, fields: dict[str, Any], note: str, branch: str | None, strict: bool = False
) -> Node:
    """Create a child of a node that must be locked."""
    repo = call.node_repo()
    repo._check_writable()
    if not repo.locked:
        raise LockedError(f"can't branch an unlocked node {repo.uuid}")
    uuid = text_field(fields, "uuid")
    if uuid and not UUID.fullmatch(uuid):
        raise InvalidError(f"a version's 'uuid' is 32 hex digits; got {uuid!r:.80}")
    if uuid:
        repo.store._check_new_uuid(uuid)
    try:
        return repo._history.branch(repo._node_id, note, branch, uuid or None, strict)
    except AlreadyExistsError as error:
        if branch is not None:
            raise AlreadyExistsError(f"branch already exists with given name: {error}") from None
        raise


def _newversion(call: Call) -> Any:
    fields = body_fields(call)
    child = _child(call, fields, text_field(fields, "note"), None, strict=True)
    return {"child": child.uuid}


def _branch(call: Call) -> Any:
    fields = body_fields(call)
    note = text_field(fields, "note")
    if "branch" not in fields and "note" in fields:
        # As of old, before branches had names: any number of children.
        return {"child": _child(call, fields, note, None).uuid}
    branch = text_field(fields, "branch")
    if branch in ("", MASTER):
        raise InvalidError("Cannot create a master branch")
    same = call.node_repo()._node().branch == branch
    child = _child(call, fields, note, None if same else branch, strict=True)
    return {"child": child.uuid}


def _tag(call: Call) -> Any:
    fields = body_fields(call, empty=False)
    tag = check_public_name("tag", text_field(fields, "tag"))
    repo = call.node_repo()
    repo._check_writable()
    if not repo.locked:
        raise LockedError(f"can't branch an unlocked node {repo.uuid}")
    note = f'Tag of version {repo.uuid} with "{tag}"'
    if text_field(fields, "note"):
        note += f": {fields['note']}"
    child = _begun_tag(repo, tag)
    if child is None:
        repo.store._check_new_uuid(tag)
        child = repo._history.branch(repo._node_id, note, f"tag-{tag}", tag)
    repo._history.lock(child.id, note)
    return {"child": child.uuid}


def _begun_tag(repo: DicedRepo, tag: str) -> Node | None:
    """Return the child of a tag whose making was cut off before it was locked."""
    dag = repo._history.view().dag
    for child in dag.children(dag.nodes[repo._node_id]):
        if child.uuid == tag and child.branch == f"tag-{tag}" and not child.locked:
            return child
    return None


def routes() -> list[Route]:
    """Return the routes."""
    one = "/api/node/{uuid}"
    return [
        Route("GET", f"{one}/status", _status, "Tells whether a version is locked.", light=True),
        Route("GET", f"{one}/commit", _status, "As status.", light=True),
        Route(
            "POST", f"{one}/commit", _commit, 'Locks a version; returns {"committed": ...}.',
            body="JSON: 'note', 'log' (list of text)", limit=NOTE_BYTES,
        ),
        Route("GET", f"{one}/note", _note, "Returns the note of a version.", light=True),
        Route(
            "POST", f"{one}/note", _set_note, "Replaces the note of an open version.",
            body="JSON: 'note'", limit=NOTE_BYTES,
        ),
        Route("GET", f"{one}/log", _log, "Returns the log of a version.", light=True),
        Route(
            "POST", f"{one}/log", _add_log, "Adds lines to the log of an open version.",
            body="JSON: 'log', a list of text", limit=NOTE_BYTES,
        ),
        Route(
            "POST", f"{one}/newversion", _newversion,
            'Creates a child of a locked version on its branch; returns {"child": ...}.',
            body="JSON, optional: 'note', 'uuid'", limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "POST", f"{one}/branch", _branch,
            'Creates a child of a locked version on a new branch; returns {"child": ...}.',
            body="JSON: 'branch', 'note', 'uuid'; with 'note' alone it goes on as best it can",
            limit=NOTE_BYTES, changes=False,
        ),
        Route(
            "POST", f"{one}/tag", _tag,
            "Creates a locked child of a locked version whose UUID is the tag.",
            body="JSON: 'tag', 'note'", limit=NOTE_BYTES, changes=False,
        ),
    ]  # fmt: skip
