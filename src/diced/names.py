"""Names that users give: which are allowed, and how one is made where it is not free."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from diced.errors import InvalidError

MAX_NAME = 1024


def check_name(what: str, name: Any) -> str:
    """Return a repo, array, branch or tag name, or raise InvalidError."""
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{what} name is non-empty text; got {name!r}")
    if len(name) > MAX_NAME or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise InvalidError(
            f"{what} name has at most {MAX_NAME} characters and no control characters; got {name!r}"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{what} name is not valid text: {name!r}") from None
    return name


def check_label(what: str, name: Any) -> str:
    """Return a branch or tag name: what `Dag.resolve` gives a meaning to cannot be in it."""
    check_name(what, name)
    if "~" in name or ":" in name:
        raise InvalidError(f"{what} name cannot hold '~' or ':'; got {name!r}")
    return str(name)


def free_name(alias: str, uuid: str, taken: Collection[str]) -> str:
    """Return a repo's name, made of an alias that may be empty or another repo's too.

    It is the alias itself where that is free, else the alias with the beginning of the UUID.
    """
    if alias and alias not in taken:
        return alias
    short = (alias or "repo")[: MAX_NAME // 2]
    for digits in (8, 16, len(uuid)):
        name = f"{short}-{uuid[:digits]}"
        if name not in taken:
            return name
    count = 2
    while f"{name}-{count}" in taken:
        count += 1
    return f"{name}-{count}"


def all_names(repos: Iterable[Any]) -> set[str]:
    """Return what repos go by: their names, and the UUIDs of their roots."""
    return {name for each in repos for name in (each["name"], each["uuid"])}


def named(fields: Mapping[str, Any], alias: str, others: Iterable[Any]) -> dict[str, Any]:
    """Return a repo's fields with a name, and with its alias where that cannot be the name."""
    name = free_name(alias, fields["uuid"], all_names(others))
    new = {key: value for key, value in fields.items() if key != "alias"}
    return {**new, "name": name} if name == alias else {**new, "name": name, "alias": alias}
