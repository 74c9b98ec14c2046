"""Data types: what an instance of each is, and which requests it answers.

A data type is an object of `DataType` registered by the name that it has on the wire, here or by a
package with the entry-point group ``diced.datatype``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from diced import registry
from diced.attrs import check_json
from diced.errors import InvalidError, NotFoundError, UnsupportedError
from diced.repo import DicedRepo
from diced.server.call import TRUE
from diced.server.routes import Route, Table
from diced.server.wire import flip, numbers

if TYPE_CHECKING:
    from diced.server.call import Call
    from diced.server.site import Site

# Names of 2014, and what they are called today.
ALIASES = {
    "grayscale8": "uint8blk",
    "labels64": "labelblk",
    "labels32": "uint32blk",
    "rgba8": "rgba8blk",
    "multiscale2d": "imagetile",
    "quadtree": "imagetile",
}
# Types of DVID that need an index of bodies.
LATER = ("labelarray", "labelmap", "labelsz", "labelvol")
DVID_TYPES = "github.com/janelia-flyem/dvid/datatype/"
# Of instances without voxels, and how ``Base.Compression`` calls them.
COMPRESSIONS = {"lz4": "LZ4", "none": "No", "snappy": "Go Snappy", "gzip": "gzip"}
ATTRS = "dvid"  # the attribute of an array that holds what only DVID's API knows of it


class Settings:
    """The settings that an instance is created with: text by name, whose case does not matter."""

    def __init__(self, values: Mapping[str, Any]):
        self._values: dict[str, str] = {}
        for key, value in values.items():
            if isinstance(value, bool):
                value = "true" if value else "false"
            if isinstance(value, list | tuple):
                value = ",".join(str(each) for each in value)
            if not isinstance(value, str | int | float):
                raise InvalidError(f"setting {key!r} is text; got {value!r:.80}")
            self._values[key.lower()] = str(value)

    def get(self, name: str, default: str = "") -> str:
        """Return a setting."""
        return self._values.get(name.lower(), default)

    def flag(self, name: str, default: bool) -> bool:
        """Return a setting that is yes or no."""
        text = self.get(name).lower()
        if not text:
            return default
        if text in TRUE or text in ("0", "false", "off"):
            return text in TRUE
        raise InvalidError(f"setting {name!r} is true or false; got {text!r:.60}")

    def zyx(self, name: str, dims: int | None = None) -> tuple[int, ...] | None:
        """Return a setting like ``64,64,32`` (XYZ) as ZYX, or None."""
        text = self.get(name)
        return flip(numbers(text.replace(" ", ""), dims, f"setting {name!r}")) if text else None

    def floats_zyx(self, name: str) -> tuple[float, ...] | None:
        """Return a setting like ``8.0,8.0,40`` (XYZ) as ZYX, or None."""
        text = self.get(name)
        try:
            return flip([float(each) for each in text.split(",")]) if text else None
        except ValueError:
            raise InvalidError(f"setting {name!r} is numbers; got {text!r:.80}") from None

    def words_zyx(self, name: str) -> tuple[str, ...] | None:
        """Return a setting like ``nanometers,nanometers,nanometers`` (XYZ) as ZYX, or None."""
        text = self.get(name)
        return flip([each.strip() for each in text.split(",")]) if text else None

    def tags(self) -> dict[str, str]:
        """Return the setting ``Tags``: ``k=v,k2=v2``."""
        pairs = (each.partition("=") for each in self.get("tags").split(",") if each)
        return {key.strip(): value.strip() for key, _, value in pairs}

    def extra(self, *known: str) -> dict[str, str]:
        """Return the settings that are not among `known`."""
        names = {each.lower() for each in known}
        return {key: value for key, value in self._values.items() if key not in names}


# Runs a command of the old command line at an instance: (site, array, words, settings, stdin)
Command = Callable[["Site", Any, list[str], Settings, bytes], str]


class DataType:
    """One data type.

    Attributes
    ----------
    name : str
        On the wire.
    url, version : str
        As ``Base`` of an instance shows them.
    kind : str
        Kind of the arrays that `create` makes.
    text : str
        Help: what the type is. The table of its requests follows by itself.
    commands : dict
        Commands of the old command line, ``dvid node UUID NAME <command> ...``, by their first
        word; the help of each is its docstring.
    """

    name = ""
    url = ""
    version = "0.1"
    kind = ""
    text = ""

    # -- to be overridden ------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """Return its requests; patterns go on behind the instance's name."""
        return []

    @property
    def commands(self) -> dict[str, Command]:
        """Return its commands."""
        return {}

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        """Create an instance and return its array.

        ``attrs={"dvid": self.attributes(settings)}`` keeps what is said for all types.
        """
        raise UnsupportedError(f"instances of {self.name!r} are not made by requests")

    def extended(self, array: Any) -> dict[str, Any]:
        """Return ``Extended`` of the instance's JSON."""
        return {}

    def extents(self, array: Any) -> dict[str, Any] | None:
        """Return ``Extents`` of the instance's JSON, or None if it has none."""
        return None

    def compression(self, array: Any) -> str:
        """Return ``Base.Compression``: what was asked for, or what DVID does of itself."""
        name, _, level = stored(array).get("compression", "lz4").partition(":")
        return f"{COMPRESSIONS.get(name, 'LZ4')} compression, level {level or -1}"

    def fallback(self, call: Call, pieces: list[str]) -> Route | None:
        """Return a route for a path that no pattern fits, or None; may set ``call.args``."""
        return None

    # -- the same for all ------------------------------------------------------------------

    def attributes(self, settings: Settings) -> dict[str, Any]:
        """Return what is stored of an instance of any type, as the attribute ``dvid``."""
        own: dict[str, Any] = {"type": self.name, "tags": settings.tags()}
        if settings.get("typename") in ALIASES:
            own["alias"] = settings.get("typename")
        for name in ("checksum", "compression") if self._plain else ("checksum",):
            value = settings.get(name).lower()
            if value:
                own[name] = value
        if "compression" in own:
            check_compression(own["compression"])
        return own

    @property
    def _plain(self) -> bool:
        """Whether its values are compressed as their bytes suggest, whatever is asked for."""
        return type(self).compression is DataType.compression

    @cached_property
    def table(self) -> Table:
        """The requests of its instances."""
        return Table(self.routes())


def find_type(name: str) -> DataType:
    """Return a data type by its name, or a name of 2014.

    Raises
    ------
    NotFoundError, UnsupportedError
    """
    try:
        found: Any = registry.lookup("datatype", ALIASES.get(name, name))
    except NotFoundError:
        if name in LATER:
            raise UnsupportedError(
                f"data type {name!r} is not in this version of diced; labelblk holds labels"
            ) from None
        raise NotFoundError(f"no data type {name!r}") from None
    return found  # type: ignore[no-any-return]


def type_of(array: Any) -> DataType:
    """Return the data type of an array, however it was made."""
    name = array._spec.fields.get("attrs", {}).get(ATTRS, {}).get("type")
    if not _is_known(name):
        name = array.kind
        if name == "label":
            name = "labelblk"
        elif name == "image":
            name = (
                "rgba8blk" if array.channels == 4 and array.dtype == "u1" else f"{array.dtype}blk"
            )
    if not _is_known(name):
        name = "uint8blk"  # it describes itself by its array, whatever that holds
    return find_type(name)


def _is_known(name: Any) -> bool:
    # What packages add is looked up once: it takes 20 ms, for every array of another name.
    return isinstance(name, str) and (
        registry.is_listed("datatype", name) or name in _from_packages()
    )


@cache
def _from_packages() -> frozenset[str]:
    return frozenset(registry.names("datatype"))


def check_compression(text: str) -> None:
    """Refuse what is no ``Compression`` of instances without voxels.

    Raises
    ------
    InvalidError
    """
    name, colon, level = text.partition(":")
    leveled = name == "gzip" and level.isascii() and level.isdigit() and 1 <= int(level) <= 9
    if name not in COMPRESSIONS or (colon and not leveled):
        raise InvalidError(f"compression is none, snappy, lz4 or gzip[:1-9]; got {text!r:.60}")


def stored(array: Any) -> dict[str, Any]:
    """Return what is stored of an instance for DVID's API only."""
    found: dict[str, Any] = array.attrs.get(ATTRS, {})
    return found


def store(array: Any, **values: Any) -> None:
    """Store more of an instance for DVID's API, in one commit."""
    check_json(f"instance {array.name!r}", values)
    edit_stored(array, lambda own: {**own, **values})


def edit_stored(array: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what is stored of an instance for DVID's API only, atomically.

    Parameters
    ----------
    change : callable
        Gets what is stored and returns what will be; it may be run again after a lost race.
    """
    array.attrs._edit(lambda old: {**old, ATTRS: change(dict(old.get(ATTRS, {})))})
