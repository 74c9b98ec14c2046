"""What tests order and ask: latency, faults, and the log of requests."""

import bisect
import random
import re
import time
from collections import Counter, deque
from urllib.parse import unquote

KINDS = ("lost", "reset", "hang", "slow", "cut")
LOG_LIMIT = 1_000_000


def depth(log):
    """Return the length of the longest chain of requests of which no two overlap in time."""
    chain, free = 0, float("-inf")
    for end, start in sorted((entry[1], entry[0]) for entry in log):
        if start >= free:
            chain, free = chain + 1, end
    return chain


def kind_of(name):
    """Return a fault by its name: one of KINDS, or a status such as 503, "503" or "e503"."""
    if name in KINDS:
        return name
    status = str(name).removeprefix("e")
    if not (status.isdigit() and 400 <= int(status) <= 599):
        raise ValueError(f"fault {name!r}: one of {', '.join(KINDS)} or a status is wanted")
    return int(status)


class Plan:
    """The faults to come and the requests that were."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.latency = 0.0
        self.rules = []
        self.order_faults(0, {})
        self.clear()

    def clear(self):
        self.log = deque(maxlen=LOG_LIMIT)
        self.counts = Counter()

    def order_faults(self, seed, rates):
        self.random = random.Random(seed)
        self.kinds, self.sums, total = [], [], 0.0
        for name, rate in rates.items():
            total += rate
            self.kinds.append(kind_of(name))
            self.sums.append(total)
        if total > 1:
            raise ValueError(f"the rates add up to {total}")

    def order_failure(self, count, how, method=None, path=None, operation=None, after=0, delay=0.3):
        rule = {"count": count, "how": kind_of(how), "method": method, "after": after}
        rule |= {"path": re.compile(path or ""), "operation": operation, "delay": delay}
        self.rules.append(rule)

    def draw(self, request):
        """Return (what goes wrong with this request or None, the extra delay)."""
        for rule in self.rules:
            if rule["method"] not in (None, request.method):
                continue
            if rule["operation"] not in (None, request.operation):
                continue
            pattern = rule["path"]
            if not (pattern.search(unquote(request.path)) or pattern.search(request.key)):
                continue
            if rule["after"]:
                rule["after"] -= 1
                continue
            rule["count"] -= 1
            if rule["count"] <= 0:
                self.rules.remove(rule)
            if rule["how"] == "slow":
                return None, rule["delay"]
            return rule["how"], 0.0
        if not self.kinds:
            return None, 0.0
        drawn = self.random.random()
        at = bisect.bisect_right(self.sums, drawn)
        if at == len(self.kinds):
            return None, 0.0
        if self.kinds[at] == "slow":
            return None, self.random.uniform(0, 0.3)
        return self.kinds[at], 0.0

    def retry_after(self):
        """Return the headers of a 429 or 503: a Retry-After now and then."""
        return (("Retry-After", "1"),) if self.random.random() < 0.25 else ()

    def note(self, request, status, sent):
        """Log a request whose answer is about to be complete (status 0: there was none)."""
        self.counts[request.operation] += 1
        entry = (request.start, time.monotonic(), request.method, request.operation)
        self.log.append((*entry, request.key, status, len(request.body), sent))
