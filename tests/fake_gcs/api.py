"""The JSON API: which request is which operation, and what it answers."""

import json
import re
import traceback
from email.utils import formatdate
from urllib.parse import unquote

from .objects import Bucket, Refused, error_body, listing, user_fields
from .upload import Uploads, parse_json

_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
JSON = ("Content-Type", "application/json; charset=UTF-8")


def select(value, fields):
    """Return of a resource only what the `fields` parameter names."""
    chosen, at, depth, begin = [], 0, 0, 0
    for at, sign in enumerate(fields + ","):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            chosen.append(fields[begin:at].strip())
            begin = at + 1
    if depth:
        raise Refused(400, f"Invalid field selection {fields}")
    return _pick(value, chosen)


def _pick(value, chosen):
    if isinstance(value, list):
        return [_pick(item, chosen) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for path in chosen:
        name, separator, inner = re.match(r"([^/(]*)([/(]?)(.*)", path, re.S).groups()
        if separator == "(":
            inner = inner.removesuffix(")")
        for key in value if name == "*" else [name]:
            if key in value:
                found[key] = select(value[key], inner) if separator else value[key]
    return found


def byte_range(text, size):
    """Return the (begin, end) a Range header asks for, None for the whole."""
    found = _RANGE.match(text or "")
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < begin:
            return None
    if begin >= size:
        raise Refused(416, "Requested range not satisfiable", "requestedRangeNotSatisfiable",
                      [("Content-Range", f"bytes */{size}")])  # fmt: skip
    return begin, end


class Api:
    """Finds the operation of a request, and performs it."""

    def __init__(self, state):
        self.state = state
        self.uploads = Uploads(state)

    def route(self, request):
        """Return a function that performs the request; sets its operation and key.

        The function answers (status, a resource or bytes or None, headers).
        """
        path = request.path
        for begin in ("/upload/storage/v1/", "/resumable/upload/storage/v1/"):
            if path.startswith(begin):
                parts = path[len(begin) :].split("/")
                if len(parts) != 3 or parts[0] != "b" or parts[2] != "o":
                    raise Refused(404, "Not Found", "notFound")
                bucket = request.bucket = unquote(parts[1])
                run = self.uploads.route(request, bucket)
                return self._guard(request, bucket, "write", run)
        media = path.startswith("/download/storage/v1/")
        if not media and not path.startswith("/storage/v1/"):
            raise Refused(404, "Not Found", "notFound")
        raw = path.split("/storage/v1/", 1)[1].split("/")
        parts = [unquote(part) for part in raw]
        if parts[0] == "b" and len(parts) > 1:
            request.bucket = parts[1]
        if len(parts) >= 4 and parts[0] == "b" and parts[2] == "o":
            media = media or request.query.get("alt") == "media"
            run, right = self._object_route(request, parts[1], parts[3], parts[4:], media)
            return self._guard(request, parts[1], right, run)
        if len(parts) == 3 and parts[0] == "b" and parts[2] == "o" and request.method == "GET":
            request.operation, request.key = "list", request.query.get("prefix", "")
            run = lambda: self._list(request, self.state.bucket(parts[1]))  # noqa: E731
            return self._guard(request, parts[1], "read", run)
        if parts[0] == "b":
            request.operation, request.key = "bucket", "/".join(parts[1:])
            return lambda: self._buckets(request, parts[1:])
        raise Refused(404, "Not Found", "notFound")

    def _guard(self, request, bucket, right, run):
        def guarded():
            self.state.bucket(bucket).demand(right, request.headers.get("authorization"))
            return run()

        return guarded

    def _object_route(self, request, bucket, name, rest, media):
        state, query, method = self.state, request.query, request.method
        request.key = name

        def resource(made, place=bucket):
            return 200, made.resource(place)

        def remove():
            state.remove(state.bucket(bucket), name, query)
            return 204, None

        def change():
            changes = parse_json(request.body)
            place = state.bucket(bucket)
            return resource(state.patch(place, name, changes, query, method == "PUT"))

        def stat():
            return resource(state.find(state.bucket(bucket), name, query))

        if not rest and method in ("GET", "HEAD"):
            request.operation = "get" if media else "stat"
            run = (lambda: self._media(request, state.bucket(bucket), name)) if media else stat
            return run, "read"
        if not rest and method == "DELETE":
            request.operation = "delete"
            return remove, "write"
        if not rest and method in ("PATCH", "PUT"):
            request.operation = "patch"
            return change, "write"
        if rest == ["compose"] and method == "POST":
            request.operation = "compose"
            return lambda: resource(self._compose(request, state.bucket(bucket), name)), "write"
        copies = len(rest) == 5 and rest[0] in ("rewriteTo", "copyTo")
        if copies and (rest[1], rest[3]) == ("b", "o") and method == "POST":
            request.operation, request.key = "rewrite", rest[4]
            source = (bucket, name)
            return lambda: self._copy(request, source, (rest[2], rest[4]), rest[0]), "read"
        raise Refused(404, "Not Found", "notFound")

    def _media(self, request, bucket, name):
        try:
            found = self.state.find(bucket, name, request.query)
        except Refused as error:
            if error.status != 404:
                raise
            return 404, error.message.encode(), [("Content-Type", "text/html; charset=UTF-8")]
        size, hashes = len(found.data), f"crc32c={found.crc32c}"
        if found.md5:
            hashes += f",md5={found.md5}"
        headers = [
            ("Content-Type", found.fields.get("contentType", "application/octet-stream")),
            ("ETag", found.etag),
            ("x-goog-generation", found.generation),
            ("x-goog-metageneration", found.metageneration),
            ("x-goog-hash", hashes),
            ("x-goog-storage-class", "STANDARD"),
            ("x-goog-stored-content-encoding", found.fields.get("contentEncoding", "identity")),
            ("x-goog-stored-content-length", size),
            ("Last-Modified", formatdate(found.updated / 1e6, usegmt=True)),
            ("Accept-Ranges", "bytes"),
        ]
        for field, header in (("cacheControl", "Cache-Control"),
                              ("contentEncoding", "Content-Encoding"),
                              ("contentDisposition", "Content-Disposition")):  # fmt: skip
            if field in found.fields:
                headers.append((header, found.fields[field]))
        asked = byte_range(request.headers.get("range"), size)
        if asked is None:
            return 200, found.data, headers
        headers.append(("Content-Range", f"bytes {asked[0]}-{asked[1] - 1}/{size}"))
        return 206, memoryview(found.data)[asked[0] : asked[1]], headers

    def _list(self, request, bucket):
        objects, prefixes, token = listing(bucket, request.query)
        found = {"kind": "storage#objects"}
        if token:
            found["nextPageToken"] = token
        if prefixes:
            found["prefixes"] = prefixes
        if objects:
            found["items"] = [made.resource(bucket.name) for made in objects]
        return 200, found

    def _compose(self, request, bucket, name):
        given = parse_json(request.body)
        sources = given.get("sourceObjects") or []
        if not 1 <= len(sources) <= 32:
            message = f"The number of source components provided ({len(sources)}) is not 1 to 32"
            raise Refused(400, message)
        parts, components = [], 0
        for source in sources:
            terms = {**source.get("objectPreconditions", {})}
            if "generation" in source:
                terms["generation"] = source["generation"]
            part = self.state.find(bucket, source.get("name", ""), terms)
            parts.append(part.data)
            components += part.components or 1
        destination = given.get("destination") or {}
        fields = user_fields(destination)
        fields.setdefault("contentType", "application/octet-stream")
        hashes = {"crc32c": destination["crc32c"]} if destination.get("crc32c") else {}
        joined = b"".join(parts)
        return self.state.put(bucket, name, joined, fields, request.query, hashes, components)

    def _copy(self, request, source, target, verb):
        bucket = self.state.bucket(target[0])
        bucket.demand("write", request.headers.get("authorization"))
        origin = self.state.bucket(source[0])
        found = self.state.find(
            origin, source[1], request.query, infix="Source", key="sourceGeneration"
        )
        given = parse_json(request.body)
        fields = user_fields(given) if given else dict(found.fields)
        fields.setdefault("contentType", found.fields.get("contentType", ""))
        made = self.state.put(
            bucket, target[1], found.data, fields, request.query, None, found.components
        )
        if verb == "copyTo":
            return 200, made.resource(bucket.name)
        size = str(len(made.data))
        return 200, {
            **{"kind": "storage#rewriteResponse", "totalBytesRewritten": size},
            **{"objectSize": size, "done": True, "resource": made.resource(bucket.name)},
        }

    def _buckets(self, request, parts):
        state, method = self.state, request.method
        authorization = request.headers.get("authorization")
        if not parts and method == "GET":
            names = sorted(state.buckets)
            items = [state.buckets[name].resource() for name in names]
            return 200, {"kind": "storage#buckets", "items": items}
        if not parts and method == "POST":
            name = parse_json(request.body).get("name")
            if not name:
                raise Refused(400, "Required parameter: name", "required")
            if name in state.buckets:
                raise Refused(409, f"The bucket {name} exists already", "conflict")
            state.buckets[name] = Bucket(name)
            return 200, state.buckets[name].resource()
        bucket = state.bucket(parts[0]) if parts else None
        if len(parts) == 1 and method in ("GET", "PATCH"):
            bucket.demand("read" if method == "GET" else "write", authorization)
            return 200, bucket.resource()
        if len(parts) == 1 and method == "DELETE":
            bucket.demand("write", authorization)
            if bucket.objects:
                raise Refused(409, "The bucket you tried to delete is not empty.", "conflict")
            del state.buckets[bucket.name]
            return 204, None
        if parts[1:] == ["iam", "testPermissions"] and method == "GET":
            rights = bucket.rights(authorization)
            asked = re.findall(r"permissions=([^&]+)", request.query_text)
            held = [name for name in map(unquote, asked) if _needs(name) in rights]
            return 200, {"kind": "storage#testIamPermissionsResponse", "permissions": held}
        raise Refused(404, "Not Found", "notFound")


def _needs(permission):
    return "read" if permission.rsplit(".", 1)[-1] in ("get", "list") else "write"


def refusal(error):
    """Return (status, headers, body) of an error: 500 for what should never be raised."""
    if not isinstance(error, Refused):
        traceback.print_exception(error)
        error = Refused(500, f"The fake failed: {error!r}", "internalError")
    if error.status == 304:
        return 304, [], b""
    body = error_body(error.status, error.message, error.reason)
    return error.status, [JSON, *error.headers], body


def perform(run, request):
    """Return (status, headers, body) of a request, errors included."""
    try:
        status, found, *headers = run()
        headers = list(headers[0]) if headers else []
        fields = request.query.get("fields")
        if fields and isinstance(found, dict):
            found = select(found, fields)
    except Exception as error:
        return refusal(error)
    if found is None:
        return status, headers, b""
    if not isinstance(found, dict):
        return status, headers, found
    if "etag" in found:
        headers.append(("ETag", found["etag"]))
    return status, [JSON, *headers], json.dumps(found).encode()
