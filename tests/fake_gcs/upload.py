"""Uploads: multipart, media and resumable."""

import json
import re
import secrets

from .objects import Refused, check, user_fields

CHUNK = 1 << 18
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?')
_BLANK = re.compile(rb"\r?\n\r?\n")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$")


def parse_json(body):
    """Return the object a JSON body holds; no body is an empty one."""
    if not len(body):
        return {}
    try:
        found = json.loads(bytes(body))
    except ValueError:
        raise Refused(400, "Parse Error", "parseError") from None
    if not isinstance(found, dict):
        raise Refused(400, "Parse Error", "parseError")
    return found


def _hashes(headers, given):
    """Return the hashes the sender gave, in the resource or in X-Goog-Hash."""
    hashes = {key: given[key] for key in ("crc32c", "md5Hash") if given.get(key) is not None}
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind:
            hashes[{"md5": "md5Hash"}.get(kind, kind)] = value
    return hashes


def split_multipart(request):
    """Return (the resource, the content type of the data, the data) of a multipart body."""
    found = _BOUNDARY.search(request.headers.get("content-type", ""))
    if not found:
        raise Refused(400, "Missing multipart boundary")
    mark, body = b"--" + found[1].encode(), request.body
    whole = body if isinstance(body, bytes) else body.obj
    second = whole.find(mark, len(mark))
    last = whole.rfind(mark + b"--")
    if not whole.startswith(mark) or second < 0 or last <= second:
        raise Refused(400, "Missing end boundary in multipart body")
    first_blank = _BLANK.search(whole, 0, second)
    blank = _BLANK.search(whole, second, last)
    if not first_blank or not blank:
        raise Refused(400, "Malformed multipart body")
    head = bytes(whole[second + len(mark) : blank.start()]).decode("latin-1")
    kind = re.search(r"(?im)^content-type:\s*(.+?)\s*$", head)
    stop = last - (2 if whole[last - 2 : last] == b"\r\n" else 1)
    if stop < blank.end():
        raise Refused(400, "Malformed multipart body")
    given = parse_json(whole[first_blank.end() : second].rstrip())
    return given, kind[1] if kind else None, memoryview(whole)[blank.end() : stop].toreadonly()


class Resumable:
    """An upload whose bytes come in several requests."""

    def __init__(self, bucket, name, given, kind, query):
        self.bucket, self.name, self.given, self.query = bucket, name, given, query
        self.kind, self.parts, self.have, self.made = kind, [], 0, None


class Uploads:
    """The requests under /upload/."""

    def __init__(self, state):
        self.state = state
        self.open = {}

    def route(self, request, bucket_name):
        """Return the function that performs the upload; sets the request's key."""
        query, kind = request.query, request.query.get("uploadType")
        request.operation, request.key = "insert", query.get("name", "")
        if "upload_id" in query:
            session = self.open.get(query["upload_id"])
            request.key = session.name if session else ""
            return lambda: self._resume(request, session)
        if request.method != "POST":
            raise Refused(400, f"{request.method} needs an upload_id")
        if kind == "media":
            given, media, data = {}, None, request.body
        elif kind == "multipart":
            given, media, data = split_multipart(request)
        elif kind == "resumable":
            given, media, data = parse_json(request.body), None, b""
        else:
            raise Refused(400, f"Upload type {kind!r} is not supported")
        name = query.get("name", given.get("name"))
        if not name:
            raise Refused(400, "Required parameter: name", "required")
        request.key = name
        if kind == "resumable":
            return lambda: self._begin(request, bucket_name, name, given)
        media = media or request.headers.get("content-type")
        return lambda: self._put(request, self.state.bucket(bucket_name), name, given, media, data)

    def _put(self, request, bucket, name, given, media, data, query=None):
        fields = user_fields(given)
        fields.setdefault("contentType", media or "application/octet-stream")
        hashes = _hashes(request.headers, given)
        query = request.query if query is None else query
        made = self.state.put(bucket, name, data, fields, query, hashes)
        return 200, made.resource(bucket.name)

    def _begin(self, request, bucket_name, name, given):
        bucket = self.state.bucket(bucket_name)
        check(bucket.objects.get(name), request.query)
        upload_id = secrets.token_hex(16)
        kind = request.headers.get("x-upload-content-type")
        self.open[upload_id] = Resumable(bucket, name, given, kind, request.query)
        host = request.headers.get("host", "localhost")
        place = f"http://{host}{request.path}?uploadType=resumable&upload_id={upload_id}"
        return 200, None, [("Location", place), ("X-GUploader-UploadID", upload_id)]

    def _resume(self, request, session):
        if session is None:
            raise Refused(404, "No such upload session", "notFound")
        if request.method == "DELETE":
            del self.open[request.query["upload_id"]]
            return 499, None
        if session.made is not None:
            return 200, session.made
        data, text = request.body, request.headers.get("content-range")
        begin, total = 0, len(data)
        if text is not None:
            found = _CONTENT_RANGE.match(text)
            if not found:
                raise Refused(400, f"Invalid Content-Range: {text}")
            begin = int(found[1]) if found[1] else None
            total = None if found[3] == "*" else int(found[3])
            if begin is not None and int(found[2]) + 1 - begin != len(data):
                raise Refused(400, f"Content-Range {text} does not fit {len(data)} bytes")
        if begin is None:
            data = b""
        elif begin > session.have:
            raise Refused(400, f"The next byte wanted is {session.have}, not {begin}")
        else:
            data = memoryview(data)[session.have - begin :]
        end = session.have + len(data)
        if total is None or end < total:
            data = data[: len(data) // CHUNK * CHUNK]  # whole quanta are kept, the rest is not
        elif end > total:
            raise Refused(400, f"{end} bytes came for an object of {total}")
        if len(data):
            session.parts.append(data)
            session.have += len(data)
        if session.have != total:
            have = session.have
            return 308, None, [("Range", f"bytes=0-{have - 1}")] if have else []
        whole = session.parts[0] if len(session.parts) == 1 else b"".join(session.parts)
        status, made = self._put(
            *(request, session.bucket, session.name, session.given, session.kind, whole),
            query=session.query,
        )
        session.made, session.parts = made, []
        return status, made
