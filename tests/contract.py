"""Rows of DVID's reference tables, asked of a server over its socket.

A row is (request, body, answer). The request is ``"GET node/{u}/kv/keys"``, its braces filled from
the names given to `hold`. The answer is a status, or what the body of a 200 is: bytes are the whole
body, text is a part of it, lists and dicts are JSON; (status, that) is another status.
"""

import json


def hold(server, rows, headers=None, **names):
    """Ask all rows in their order; fail with all that were answered otherwise."""
    wrong = []
    for request, body, wanted in rows:
        method, path = request.format(**names).split(" ", 1)
        if isinstance(body, str):
            body = body.format(**names).encode()
        reply = server.ask(method, path, body, headers=headers)
        said = _differs(reply, path, _filled(wanted, names))
        if said:
            wrong.append(f"{method} {path}: {said}; got {reply}")
    assert not wrong, "\n".join(wrong)


def _filled(wanted, names):
    """Return an answer with the names in the values of its JSON and its text filled in."""
    if isinstance(wanted, tuple):
        return tuple(_filled(each, names) for each in wanted)
    if isinstance(wanted, list):
        return [_filled(each, names) for each in wanted]
    if isinstance(wanted, dict):
        return {_filled(key, names): _filled(value, names) for key, value in wanted.items()}
    if isinstance(wanted, str) and "{" in wanted:
        for name, value in names.items():
            wanted = wanted.replace(f"{{{name}}}", str(value))
    return wanted


def _differs(reply, path, wanted):
    """Return in which way an answer is another one, or an empty text."""
    status = 200
    if isinstance(wanted, tuple):
        status, wanted = wanted
    elif type(wanted) is int:
        status, wanted = wanted, None
    if reply.status != status:
        return f"wanted {status}"
    if status >= 400 and reply.body and not _is_refusal(reply):
        return "a refusal is a line of plain text"
    if isinstance(wanted, bytes):
        return "" if reply.body == wanted else f"wanted {wanted[:100]!r}"
    if isinstance(wanted, str):
        return "" if wanted in reply.text else f"wanted {wanted!r}"
    if wanted is not None:
        try:
            found = json.loads(reply.body)
        except ValueError:
            return "wanted JSON"
        return "" if found == wanted else f"wanted {wanted!r:.300}"
    return ""


def _is_refusal(reply):
    return reply.headers["content-type"].startswith("text/plain") and reply.text.endswith("\n")
