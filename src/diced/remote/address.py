"""Where a server is: the URLs of stores that are servers."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from diced.errors import LocationError

PORT = 8000  # where DVID listens unless told

# Scheme of a store -> whether the connection is encrypted.
SCHEMES = {"dvid": False, "dvid+http": False, "dvid+https": True, "dvids": True}


class Address(NamedTuple):
    """A server.

    Attributes
    ----------
    secure : bool
        HTTPS.
    host : str
        Without brackets.
    port : int
    prefix : str
        Path before ``/api``, as of a proxy; empty or ``/some/where``.
    """

    secure: bool
    host: str
    port: int
    prefix: str

    @property
    def netloc(self) -> str:
        """Host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def web(self) -> str:
        """The server as a browser spells it."""
        return f"{'https' if self.secure else 'http'}://{self.netloc}{self.prefix}"

    @property
    def url(self) -> str:
        """The store as `DicedStore` spells it."""
        return f"{'dvid+https' if self.secure else 'dvid'}://{self.netloc}{self.prefix}"


def parse(location: str, port: int | None = None) -> Address:
    """Return the server that a store's location names.

    Parameters
    ----------
    location : str
        ``dvid://host:port``, ``dvid+https://host`` (or ``dvids://``), also with a path before
        ``/api``; ``dvid://https://host`` is understood.
    port : int, optional
        Where the location has none; else 8000, or 443 with HTTPS.

    Raises
    ------
    LocationError
    """
    scheme, _, rest = location.partition("://")
    secure = SCHEMES.get(scheme.lower())
    inner, colon, after = rest.partition("://")
    if colon and inner.lower() in ("http", "https"):
        secure, rest = inner.lower() == "https", after
    if secure is None:
        raise LocationError(f"a server is dvid://host:port or dvid+https://host; got {location!r}")
    try:
        parts = urlsplit(f"http://{rest}")
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise LocationError(f"{location!r} is no address of a server: {error}") from None
    if not host or parts.query or parts.fragment or parts.username is not None:
        raise LocationError(
            "a server is dvid://host:port, without user, query and fragment (token=, admin_token="
            f" and user= are options of DicedStore); got {_bare(scheme, rest)!r}"
        )
    number = next((each for each in (given, port) if each is not None), 443 if secure else PORT)
    if not 0 < number < 65536:
        raise LocationError(f"a port is 1 to 65535; got {number}")
    path = parts.path.rstrip("/").removesuffix("/api")
    return Address(secure, host, number, quote(unquote(path), safe="/"))


def _bare(scheme: str, rest: str) -> str:
    """Return a location without what may be secret."""
    return f"{scheme}://{rest.split('?')[0].split('#')[0].rpartition('@')[2]}"
