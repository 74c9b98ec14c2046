"""A fake Google Cloud Storage server for tests: the JSON API, strict about preconditions.

`start()` runs it in a process of its own and returns a `Server`; the standard library is enough.
There are no old generations, no access control lists, no batch requests, no gzip transcoding, and
a resource has no md5Hash if the object is large. Where the documents say nothing it follows
Google's own testbench: a missing object is 404 before its preconditions count, except to an
upload, and a failed if...NotMatch is 304 for every verb.
"""

from .control import Request, Server, start

__all__ = ["Request", "Server", "start"]
