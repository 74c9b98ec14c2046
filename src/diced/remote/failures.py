"""What a server's refusal means: its status and text as one of diced's errors."""

from __future__ import annotations

from diced import errors
from diced.errors import (
    AccessError,
    AlreadyExistsError,
    AmbiguousError,
    CorruptError,
    DicedException,
    EngineError,
    InvalidError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

# What the text of a status 400, which DVID gives for nearly everything, holds in lower case. The
# first that fits counts.
_TEXTS: tuple[tuple[tuple[str, ...], type[DicedException]], ...] = (
    (("read-only mode", "opened read-only", "server in read only"), ReadOnlyError),
    (
        (
            "requires admin", "require admin", "needs the admin", "admin token", "admintoken",
            "admin privilege", "only admin", "must be admin", "jwt", "authoriz", "authenticat",
            "permission denied", "no right to", "has no rights",
        ),
        AccessError,
    ),
    (("more than one uuid", "ambiguous"), AmbiguousError),
    (
        (
            "locked node", "is locked", "already locked", "locked already", "unlocked node",
            "is open; lock it", "node is locked", "locked version",
        ),
        LockedError,
    ),
    (("already exist", "exists already", "already have", "already used"), AlreadyExistsError),
    (
        (
            "could not find uuid", "invalid data instance name", "not found", "no repo",
            "no version", "no array", "was deleted", "no branch", "no tag",
        ),
        NotFoundError,
    ),
    (
        (
            "bad api call", "unknown data type", "no data type", "unknown datatype", "unsupported",
            "not supported", "not implemented", "no datatype", "can't find datatype",
        ),
        UnsupportedError,
    ),
)  # fmt: skip
MOST = 500  # characters of a message


def says(status: int, body: bytes) -> str:
    """Return what an answer says, on one line."""
    import http.client

    text = " ".join(body[: 8 * MOST].decode("utf-8", "replace").split())
    if text.startswith("<"):  # a page of some proxy
        text = ""
    reason = http.client.responses.get(status, "no reason given")
    return text[:MOST] or f"status {status}, {reason}"


def failure(status: int, body: bytes, request: str, named: str = "") -> DicedException:
    """Return the error that an answer stands for; the message has the server's own words.

    Parameters
    ----------
    status : int
    body : bytes
    request : str
        Method and URL, for the message.
    named : str
        Name of the error's class, which our server tells.
    """
    text = says(status, body)
    found = getattr(errors, named, None) if named else None
    if not (isinstance(found, type) and issubclass(found, DicedException)):
        found = kind(status, text)
    return found(f"{text} [{request}, status {status}]")


def kind(status: int, text: str) -> type[DicedException]:
    """Return the class of error of a status and what the answer says."""
    if status in (401, 403):
        return AccessError
    if status == 404:
        return NotFoundError
    if status == 429:
        return AccessError if "blocked" in text.lower() else EngineError
    if status in (405, 501):
        return UnsupportedError
    if 400 <= status < 500:
        # Not of the path at the end, where names of users stand.
        low = text.lower()
        words = low.rpartition(" (/")[0] or low
        return next((found for marks, found in _TEXTS if any(m in words for m in marks)),
                    InvalidError)  # fmt: skip
    if status == 500 and any(word in text.lower() for word in ("corrupt", "checksum")):
        return CorruptError
    return EngineError
