"""Who may do what: modes, the admin token, users and their rights per repo."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from diced.server.answer import Refused
from diced.server.options import Options
from diced.server.routes import ADMIN, NONE

if TYPE_CHECKING:
    from diced.server.call import Call
    from diced.server.routes import Route

READING = frozenset(("GET", "HEAD", "OPTIONS"))


class Access:
    """What the configuration says of rights."""

    def __init__(self, options: Options):
        self.options = options

    def identify(self, call: Call) -> None:
        """Find out who calls: sets ``call.user`` and ``call.admin``, or refuses."""
        token, given = self.options.admin_token, call.query.get("admintoken")
        if given and token and hmac.compare_digest(given.encode(), token.encode()):
            call.admin = True

    def check(self, call: Call, route: Route) -> None:
        """Refuse what the caller may not do; ``call.repo`` is known where the path names one."""
        if route.needs == NONE or call.admin:
            return
        if route.needs == ADMIN and self.options.admin_token:
            raise Refused(400, f"{call.method} {call.path} needs the admin token")
        if self.options.mode == "readonly" and call.method not in READING and route.changes:
            raise Refused(
                400, f"Server in read-only mode and will only accept GET and HEAD ({call.path}).\n"
            )
