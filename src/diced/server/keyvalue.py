"""The data type ``keyvalue``: named byte values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from diced import protobuf
from diced.errors import InvalidError, NotFoundError
from diced.protobuf import KeyRange
from diced.repo import DicedRepo
from diced.server import streams
from diced.server.answer import OCTETS, Answer, Refused, to_json
from diced.server.call import Call
from diced.server.datatype import ATTRS, DVID_TYPES, DataType, Settings
from diced.server.describe import instance_json
from diced.server.routes import READ, Route
from diced.values import MAX_VALUE, Value

if TYPE_CHECKING:
    from diced.server.site import Site

TAR = "application/tar"
TAR_MODE = 0o755
KEYS_BYTES = 2**26  # of a list of keys
VALUES_BYTES = 3 * 2**30  # of many values
MANY_KEYS = 2**20
SMALL_VALUE = 2**16  # read beside the event loop

# What a client wants to have many values as, and the parameter that says so.
FORMS = {"json": "json", "tar": "tar", "jsontar": "tar", "protobuf": "protobuf"}
FORM_QUERY = {
    "json": "true: a JSON object of values, which are JSON themselves",
    "tar": "true: a tar file with a file for each key; jsontar is the same",
    "protobuf": "true, and if nothing else is asked for: a KeyValues message",
    "check": "false: values are not looked at before they become part of JSON",
}

Item = tuple[str, bytes | None]


class KeyValue(DataType):
    """Named byte values."""

    name = "keyvalue"
    url = DVID_TYPES + "keyvalue"
    version = "0.2"
    kind = "keyvalue"
    text = """Named byte values, for each version. Keys are text of up to 4096 bytes; their order
is that of the bytes. Protobuf messages: KeyValue {string key = 1; bytes value = 2;} KeyValues
{repeated KeyValue kvs = 1;} Keys {repeated string keys = 1; repeated KeyRange key_ranges = 2;}
KeyRange {string key = 1; uint64 byte_start = 2; uint64 byte_end = 3;}"""

    def create(self, repo: DicedRepo, name: str, settings: Settings, versioned: bool) -> Any:
        return repo.create_array(
            name, kind=self.kind, versioned=versioned, attrs={ATTRS: self.attributes(settings)}
        )

    @property
    def commands(self) -> dict[str, Any]:
        return {"put": _command_put}

    def routes(self) -> list[Route]:
        return [
            Route("GET", "keys[/{rest...}]", _keys, "Returns all keys as a JSON list."),
            Route(
                "GET", "keyrange/{first}/{last}", _key_range,
                "Returns all keys from one to another, both included, as a JSON list.",
            ),
            Route(
                "GET", "keyrangevalues/{first}/{last}", _key_range_values,
                "Returns all keys from one to another, both included, and their values.",
                query=FORM_QUERY,
            ),
            Route(
                "HEAD", "key/{key...}", _head, "Tells by its status whether there is a key.",
                light=True,
            ),
            Route(
                "GET", "key/{key...}", _get, "Returns a value, or a part of it.",
                query={
                    "byte_start": "first byte",
                    "byte_end": "last byte; a Range header serves as well",
                },
                light=True,
            ),
            Route(
                "POST", "key/{key...}", _post, "Stores a value.",
                body="the value", limit=MAX_VALUE,
            ),
            Route("DELETE", "key/{key...}", _delete, "Removes a key from this version."),
            Route(
                "GET", "keyvalues", _get_many, "Returns the values of keys, in their order.",
                query=FORM_QUERY, limit=KEYS_BYTES,
                body="a Keys message; for JSON and tar a JSON list of keys or of objects with"
                " key, byte_start and byte_end",
            ),
            Route(
                "POST", "keyvalues", _post_many, "Stores values, all or none of them.",
                body="a KeyValues message", limit=VALUES_BYTES,
            ),
            Route(
                "POST PUT DELETE", "info", _info,
                "Returns what the instance is, as JSON, and changes nothing.",
                needs=READ, changes=False,
            ),
        ]  # fmt: skip

    def fallback(self, call: Call, pieces: list[str]) -> Route | None:
        """Return the route of ``node/UUID/NAME/<key>``, as keys were asked for in 2014."""
        words = {route.pattern.partition("/")[0].partition("[")[0] for route in self.table.routes}
        if not pieces or pieces[0] in words | RESERVED:
            return None
        found = self.table.find(call.method, ["key", *pieces])
        if found is None:
            return None
        route, call.args = found
        return route


RESERVED = frozenset(
    ("help", "tags", "mutations", "mutations-range", "command", "metadata", "blobstore", "diced")
)
TYPE = KeyValue()


# -- one value -----------------------------------------------------------------------------


def _missing(key: str) -> Refused:
    return Refused(404, f'Key "{key}" not found\n')


def _head(call: Call) -> Answer:
    key = call.args["key"]
    if key not in call.array:
        raise _missing(key)
    return Answer(b"", OCTETS, headers={"accept-ranges": "bytes"})


def _get(call: Call) -> Answer:
    key, asked = call.args["key"], call.headers.get("range")
    by_query = "byte_start" in call.query or "byte_end" in call.query
    if by_query and asked:
        raise InvalidError("a part is given by byte_start and byte_end or by Range, not by both")
    value = call.array.find(key)
    if value is None:
        raise _missing(key)
    headers = {"accept-ranges": "bytes"}
    size = value.size
    if by_query:
        return _part(value, *_ends(key, call.number("byte_start"), call.number("byte_end"), size))
    part = parse_range(asked, size) if asked else None
    if part is None:
        return _part(value, 0, size - 1)
    start, end = part
    if start > end:
        raise Refused(
            416, f"Range {asked!r:.80} is beyond {size} bytes\n",
            {**headers, "content-range": f"bytes */{size}"},
        )  # fmt: skip
    answer = _part(value, start, end)
    answer.status = 206
    answer.headers["content-range"] = f"bytes {start}-{end}/{size}"
    return answer


def _part(value: Value, start: int, end: int) -> Answer:
    headers = {"accept-ranges": "bytes"}
    if value.size <= SMALL_VALUE:
        return Answer(value.read(start, end + 1), OCTETS, headers=headers)

    # Pieces are made on a worker thread.
    return Answer(value.pieces(start, end + 1), OCTETS, headers=headers, length=end + 1 - start)


_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return first and last byte of a Range header.

    Returns
    -------
    tuple of int or None
        None if the header says nothing that is understood, which is several ranges, too; the last
        is before the first if there is no such part.
    """
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return size - length, size - 1
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None
    end = min(int(match[2]), size - 1) if match[2] else size - 1
    return start, end


def _ends(key: str, start: int, end: int, size: int) -> tuple[int, int]:
    if not 0 <= start <= end < size:
        raise InvalidError(
            f"bytes {start} to {end} are not within the {size} bytes of key {key!r:.80}"
        )
    return start, end


def _post(call: Call) -> None:
    call.array[call.args["key"]] = call.body


def _delete(call: Call) -> None:
    key = call.args["key"]
    try:
        del call.array[key]
    except NotFoundError:
        if key in call.array:  # or raise, if it is the instance that is not there
            raise


def _info(call: Call) -> Any:
    return instance_json(call.site, call.repo, call.array, call.type)


def _command_put(
    _site: Site, array: Any, words: list[str], _settings: Settings, stdin: bytes
) -> str:
    """Stores standard input: dvid -stdin node UUID NAME put KEY < FILE."""
    if len(words) != 1:
        raise InvalidError("The key name must be specified after 'put'")
    if not stdin:
        raise InvalidError("No data was passed into standard input")
    array[words[0]] = stdin
    return f'Put {len(stdin)} bytes into key "{words[0]}" for keyvalue "{array.name}"\n'


# -- keys ----------------------------------------------------------------------------------


def _json_keys(keys: Iterable[str]) -> Answer:
    return streams.json_list(to_json(key) for key in keys)


def _keys(call: Call) -> Answer:
    return _json_keys(call.array.keys())


def _span(call: Call) -> dict[str, str]:
    # The first key after the last, for the end of a range is not in it.
    return {"start": call.args["first"], "stop": call.args["last"] + "\0"}


def _key_range(call: Call) -> Answer:
    return _json_keys(call.array.keys(**_span(call)))


# -- many values ---------------------------------------------------------------------------


def _form(call: Call) -> str:
    asked = {form for name, form in FORMS.items() if call.query.get(name) == "true"}
    if len(asked) > 1:
        raise InvalidError(f"only one of {', '.join(sorted(asked))} can be asked for")
    return asked.pop() if asked else "protobuf"


def _key_range_values(call: Call) -> Answer:
    return _send(call, _form(call), call.array.items(**_span(call)))


def _get_many(call: Call) -> Answer:
    form = _form(call)
    if form == "protobuf":
        keys, ranges = protobuf.read_keys(call.body, MANY_KEYS)
        wanted: list[str | KeyRange] = [*keys, *ranges]
    else:
        wanted = [_wanted(each) for each in call.json(list, most=2 * MANY_KEYS)]
    if len(wanted) > MANY_KEYS:
        raise InvalidError(f"at most {MANY_KEYS} keys at a time; got {len(wanted)}")
    parts = [each for each in wanted if isinstance(each, KeyRange)]
    sizes = dict(call.array.sizes({each.key for each in parts}))
    for each in parts:  # before anything is sent
        if (size := sizes[each.key]) is not None:
            _ends(each.key, each.start, each.end, size)
    names = [each if isinstance(each, str) else each.key for each in wanted]
    found = call.array.get_many(names)

    def items() -> Iterator[Item]:
        for each, (key, value) in zip(wanted, found, strict=True):
            if value is not None and isinstance(each, KeyRange):
                yield key, value[each.start : each.end + 1]
            else:
                yield key, value

    return _send(call, form, items())


def _wanted(given: Any) -> str | KeyRange:
    if isinstance(given, str):
        return given
    if isinstance(given, dict) and isinstance(given.get("key"), str):
        start, end = given.get("byte_start"), given.get("byte_end")
        if start is None and end is None:
            return str(given["key"])
        if isinstance(start, int) and isinstance(end, int):
            return KeyRange(given["key"], start, end)
    raise InvalidError(
        f"the body is a JSON list of keys, or of objects with key, byte_start and byte_end;"
        f" got {given!r:.100}"
    )


def _send(call: Call, form: str, items: Iterable[Item]) -> Answer:
    """Return many values; one that is not there is empty."""
    if form == "json":
        check = call.query.get("check", "true").lower() not in ("false", "0", "off")
        return streams.json_object(_json_pieces(items, check))
    if form == "tar":
        return streams.answer(_tar_pieces(items), TAR)
    return streams.answer(_protobuf_pieces(items), OCTETS)


def _protobuf_pieces(items: Iterable[Item]) -> Iterator[bytes]:
    for key, value in items:
        data = value or b""
        yield protobuf.key_value_head(key, len(data))
        yield data


def _json_pieces(items: Iterable[Item], check: bool) -> Iterator[bytes]:
    for key, value in items:
        data = value or b"{}"
        if check:
            try:
                json.loads(data, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                raise InvalidError(f"the value of key {key!r:.80} is not JSON: {error}") from None
        yield b"%b:%b" % (to_json(key), data)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _tar_pieces(items: Iterable[Item]) -> Iterator[bytes]:
    from tarfile import PAX_FORMAT, TarInfo

    for key, value in items:
        data = value or b""
        info = TarInfo(key)
        info.size, info.mode = len(data), TAR_MODE
        yield info.tobuf(PAX_FORMAT)
        yield data
        yield bytes(-len(data) % 512)
    yield bytes(1024)


# -- storing many --------------------------------------------------------------------------


def _post_many(call: Call) -> None:
    values = {}
    for key, value in protobuf.read_key_values(call.body):
        values[key] = value
        if len(values) > MANY_KEYS:
            raise InvalidError(f"at most {MANY_KEYS} keys at a time")
    call.array.put_many(values, operation=f"put {len(values)} keys")
    values.clear()
