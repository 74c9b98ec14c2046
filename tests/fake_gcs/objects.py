"""The state of the fake: buckets, objects, preconditions, and the fields of their resources.

One thread runs everything, so a function that checks a precondition and then replaces an object
does both at one instant.
"""

import base64
import hashlib
import json
import time
from bisect import bisect_left, insort

try:  # installed with google-cloud-storage
    from google_crc32c import extend as _extend
except ImportError:  # slow, right

    def _extend(crc, chunk, _table=[]):  # noqa: B006 - made once
        if not _table:
            for value in range(256):
                for _ in range(8):
                    value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
                _table.append(value)
        crc ^= 0xFFFFFFFF
        for byte in chunk:
            crc = crc >> 8 ^ _table[(crc ^ byte) & 255]
        return crc ^ 0xFFFFFFFF


# Real answers lack md5Hash for composite objects; here for large ones too, whose md5 would
# cost more than all the rest of their upload.
MD5_LIMIT = 1 << 16
USER_FIELDS = (
    *("contentType", "contentEncoding", "contentDisposition", "contentLanguage"),
    *("cacheControl", "customTime", "metadata", "storageClass"),
)


def error_body(status, message, reason):
    """Return an error in the shape Google answers it."""
    detail = {"message": message, "domain": "global", "reason": reason}
    error = {"code": status, "message": message, "errors": [detail]}
    return json.dumps({"error": error}).encode()


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status, message="", reason="", headers=()):
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason or "invalid"
        self.headers = tuple(headers)


def crc32c(data):
    """Return the crc32c of `data` as resources spell it."""
    crc, view = 0, memoryview(data)
    for begin in range(0, len(view), 1 << 20):  # the C function takes nothing but bytes
        crc = _extend(crc, bytes(view[begin : begin + (1 << 20)]))
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def md5(data):
    """Return the md5 of `data` as resources spell it."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def stamp(micros):
    """Return a time in microseconds since 1970 as resources spell it."""
    whole, rest = divmod(micros, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest // 1000:03}Z"


class Object:
    """One generation of one object."""

    __slots__ = (
        *("name", "data", "fields", "generation", "metageneration", "crc32c", "md5"),
        *("created", "updated", "components"),
    )

    def __init__(self, name, data, fields, generation, crc, md5_hash, components=0):
        self.name, self.data, self.fields = name, data, fields
        self.generation, self.metageneration = generation, 1
        self.crc32c, self.md5, self.components = crc, md5_hash, components
        self.created = self.updated = generation

    @property
    def etag(self):
        raw = f"{self.generation}/{self.metageneration}".encode()
        return base64.b64encode(raw).decode()

    def resource(self, bucket):
        """Return the object's resource as a dict."""
        found = {
            "kind": "storage#object",
            "id": f"{bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "etag": self.etag,
            "timeCreated": stamp(self.created),
            "updated": stamp(self.updated),
            **self.fields,
        }
        if self.md5:
            found["md5Hash"] = self.md5
        if self.components:
            found["componentCount"] = self.components
        return found


class Bucket:
    """A bucket's objects, and who may do what in it.

    `access` is "open" (anybody may do anything), "private" (a token for everything) or "public"
    (a token for writes only); `tokens` maps a token to "read" or "write".
    """

    def __init__(self, name, access="open", tokens=None):
        self.name, self.access, self.tokens = name, access, dict(tokens or {})
        self.objects = {}
        self.names = []  # sorted; code points sort as their UTF-8 does
        self.created = time.time_ns() // 1000

    def resource(self):
        return {
            **{"kind": "storage#bucket", "id": self.name, "name": self.name},
            **{"location": "US", "locationType": "multi-region", "storageClass": "STANDARD"},
            **{"timeCreated": stamp(self.created), "metageneration": "1", "etag": "CAE="},
        }

    def rights(self, authorization):
        """Return what the sender of this Authorization header may do; refuse unknown tokens."""
        if self.access == "open":
            return {"read", "write"}
        granted = {"read"} if self.access == "public" else set()
        if authorization:
            kind, _, token = authorization.partition(" ")
            if kind.lower() != "bearer" or token not in self.tokens:
                raise Refused(401, "Invalid Credentials", "authError")
            granted |= {"read"} if self.tokens[token] == "read" else {"read", "write"}
        return granted

    def demand(self, right, authorization):
        """Refuse with 401 or 403 unless the sender has `right`."""
        if right in self.rights(authorization):
            return
        who = "Caller" if authorization else "Anonymous caller"
        message = f"{who} does not have {right} access to the bucket {self.name}."
        if authorization:
            raise Refused(403, message, "forbidden")
        raise Refused(401, message, "required", [("WWW-Authenticate", "Bearer")])


def number(query, name):
    """Return an integer parameter, or None without it."""
    if name not in query:
        return None
    try:
        return int(query[name])
    except (TypeError, ValueError):
        raise Refused(400, f"Invalid value for {name}: {query[name]}") from None


def check(found, query, infix=""):
    """Refuse unless all preconditions in `query` hold for `found` (an Object or None)."""
    generation = found.generation if found else 0
    metageneration = found.metageneration if found else None
    failed = "At least one of the pre-conditions you specified did not hold."
    for field, current in (("Generation", generation), ("Metageneration", metageneration)):
        wanted = number(query, f"if{infix}{field}Match")
        if wanted is not None and wanted != current:
            raise Refused(412, failed, "conditionNotMet")
        unwanted = number(query, f"if{infix}{field}NotMatch")
        if unwanted is not None and unwanted == current:
            raise Refused(304, failed, "conditionNotMet")


class State:
    """All buckets, and the rule of one update per `interval` seconds on a name (0: no rule)."""

    def __init__(self):
        self.buckets = {}
        self.interval = 0.0
        self._generation = 0
        self._updated = {}

    def bucket(self, name):
        try:
            return self.buckets[name]
        except KeyError:
            message = "The specified bucket does not exist."
            raise Refused(404, message, "notFound") from None

    def find(self, bucket, name, query, infix="", key="generation"):
        """Return the object; without it refuse with 404, before any precondition."""
        found, asked = bucket.objects.get(name), number(query, key)
        if found is None or (asked is not None and asked != found.generation):
            raise Refused(404, f"No such object: {bucket.name}/{name}", "notFound")
        check(found, query, infix)
        return found

    def tick(self):
        """Return a new generation: microseconds since 1970, never twice the same."""
        self._generation = max(self._generation + 1, time.time_ns() // 1000)
        return self._generation

    def limit(self, bucket, name):
        """Refuse with 429 what comes too soon after the name's last update."""
        if not self.interval:
            return
        now, key = time.monotonic(), (bucket.name, name)
        if now - self._updated.get(key, -1e9) < self.interval:
            message = f"The object {bucket.name}/{name} exceeded the rate limit for object mutation"
            raise Refused(429, message, "rateLimitExceeded")
        self._updated[key] = now

    def put(self, bucket, name, data, fields, query, hashes=None, components=0):
        """Replace an object if its preconditions hold and the hashes given are right."""
        if not 0 < len(name.encode()) <= 1024 or name in (".", "..") or set(name) & set("\r\n"):
            raise Refused(400, f"Invalid object name: {name!r}")
        hashes = hashes or {}
        crc = crc32c(data)
        wanted = hashes.get("crc32c")
        if wanted is not None and wanted != crc:
            message = f'Provided CRC32C "{wanted}" doesn\'t match calculated CRC32C "{crc}".'
            raise Refused(400, message)
        wanted, digest = hashes.get("md5Hash"), None
        if not components and (wanted is not None or len(data) <= MD5_LIMIT):
            digest = md5(data)
            if wanted is not None and wanted != digest:
                message = f'Provided MD5 hash "{wanted}" doesn\'t match calculated "{digest}".'
                raise Refused(400, message)
        check(bucket.objects.get(name), query)
        self.limit(bucket, name)
        made = Object(name, data, fields, self.tick(), crc, digest, components)
        if name not in bucket.objects:
            insort(bucket.names, name)
        bucket.objects[name] = made
        return made

    def remove(self, bucket, name, query):
        """Remove an object if its preconditions hold."""
        self.find(bucket, name, query)
        self.limit(bucket, name)
        del bucket.objects[name]
        del bucket.names[bisect_left(bucket.names, name)]

    def patch(self, bucket, name, changes, query, whole=False):
        """Change an object's own fields; None removes one, and so does leaving it out of all."""
        found = self.find(bucket, name, query)
        self.limit(bucket, name)
        fields = {} if whole else dict(found.fields)
        for field, value in user_fields(changes, nulls=True).items():
            if field == "metadata" and isinstance(value, dict):
                merged = {**fields.get("metadata", {}), **value}
                value = {key: text for key, text in merged.items() if text is not None}
            if value is None:
                fields.pop(field, None)
            else:
                fields[field] = value
        found.fields = fields
        found.metageneration += 1
        found.updated = max(found.updated, time.time_ns() // 1000)
        return found


def user_fields(given, nulls=False):
    """Return those fields of a resource that its writer chooses."""
    fields = {key: given[key] for key in USER_FIELDS if key in given}
    if not nulls:
        fields = {key: value for key, value in fields.items() if value is not None}
    metadata = fields.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise Refused(400, "metadata must be a map of strings")
    return fields


def listing(bucket, query):
    """Return one page of names: (objects, prefixes, the next page's token or None)."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start, stop = query.get("startOffset", ""), query.get("endOffset", "")
    most = number(query, "maxResults")
    most = 1000 if most is None else most
    if most < 1:
        raise Refused(400, f"Invalid value for maxResults: {most}")
    most, last = min(most, 1000), chr(0x10FFFF)
    objects, prefixes = [], []
    at = bisect_left(bucket.names, max(prefix, start))
    if "pageToken" in query:
        try:
            token = base64.b64decode(query["pageToken"], b"-_", validate=True).decode()
        except ValueError:
            raise Refused(400, "Invalid page token") from None
        at = max(at, bisect_left(bucket.names, token))
    previous = None
    while at < len(bucket.names):
        name = bucket.names[at]
        if not name.startswith(prefix) or (stop and name >= stop):
            break
        if len(objects) + len(prefixes) == most:
            return objects, prefixes, base64.urlsafe_b64encode(previous.encode()).decode()
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            objects.append(bucket.objects[name])
            at, previous = at + 1, name + "\0"
        else:
            prefixes.append(name[: cut + len(delimiter)])
            previous = prefixes[-1] + last
            at = bisect_left(bucket.names, previous)
    return objects, prefixes, None
