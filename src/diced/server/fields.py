"""The fields of JSON bodies: names in any case, text that can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diced.errors import InvalidError

if TYPE_CHECKING:
    from diced.server.call import Call

NOTE_BYTES = 2**20  # of a body that holds notes and lines of logs: they are metadata


def body_fields(call: Call, empty: bool = True) -> dict[str, Any]:
    """Return a JSON body with its names in lower case, without what is null.

    Parameters
    ----------
    empty : bool
        An empty body is an empty object.
    """
    given: dict[str, Any] = call.json(empty={} if empty else None)
    return {name.lower(): value for name, value in given.items() if value is not None}


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Return a field that is text; empty if it is not there."""
    return check_text(name, fields.get(name, ""))


def lines_field(fields: Mapping[str, Any], name: str) -> list[str]:
    """Return a field that is a list of text; empty if it is not there."""
    found = fields.get(name, [])
    if not isinstance(found, list):
        raise InvalidError(f"{name!r} is a list of text; got {found!r:.80}")
    return [check_text(f"a line of {name!r}", each) for each in found]


def check_text(what: str, text: Any) -> str:
    """Return text, or raise InvalidError if it is none, or has no UTF-8 form."""
    if not isinstance(text, str):
        raise InvalidError(f"{what} is text; got {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{what} is not valid text: {text!r:.80}") from None
    return text
