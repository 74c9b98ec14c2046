"""What a seed says: the settings of a schedule, and what each process does in it."""

from __future__ import annotations

import struct
from random import Random
from zlib import crc32

from scheduler import Process, Scheduler

TOKEN = struct.Struct(">HH")
KINDS = (
    *("append",) * 6, "depend", "depend", "blind", "blind", "mixed", "wipe", "whole", "once",
    "ride", "ride", "read", "read", "read",
)  # fmt: skip

Content = dict[bytes, bytes]


class Op:
    """One call: what it is to do, and what came of it.

    Attributes
    ----------
    reads, appends, sets, wipes : tuple of bytes
        Keys that it depends on; that it adds its token to; that become its token; that go.
    fate : str
        "open" (it never ended), "acked", "same" (nothing to do), "failed" or "locked".
    seen : list of (int, tuple of bytes or None, dict)
        Record numbers, the keys asked for (None: all), and what was there.
    """

    def __init__(self, number: int, kind: str, random: Random, names: list[bytes]):
        self.number, self.kind = number, kind
        some = sorted(random.sample(names, min(len(names), random.choice((1, 1, 1, 2, 3)))))
        self.appends: tuple[bytes, ...] = ()
        self.sets: tuple[bytes, ...] = ()
        self.wipes: tuple[bytes, ...] = ()
        if kind in ("append", "once", "ride", "whole"):
            self.appends = tuple(some)
        elif kind == "blind":
            self.sets = tuple(some)
        elif kind == "wipe":
            self.wipes = tuple(some)
        elif kind == "mixed":
            self.appends, self.sets = tuple(some[:1]), tuple(some[1:])
        elif kind == "depend":  # reads some, writes others
            self.sets = tuple(some[:1])
        self.reads = tuple(some) if kind in ("read", "depend") else self.appends
        self.fate = "open"
        self.record = 0
        self.began = self.ended = 0.0
        self.seen: list[tuple[int, tuple[bytes, ...] | None, Content]] = []
        self.error = ""

    def is_done(self, contents: Content) -> bool:
        """Tell whether there is nothing to do."""
        return self.kind == "once" and any(len(contents.get(k, b"")) >= 8 for k in self.reads)

    def changes(self, contents: Content) -> dict[bytes, bytes | None]:
        """What the keys become, given what those it depends on hold."""
        names = sorted(contents) if self.kind == "whole" else self.reads
        held = b";".join(name + b"=" + contents.get(name, b"") for name in names)
        token = TOKEN.pack(self.number, crc32(held) & 0xFFFF)
        made: dict[bytes, bytes | None] = {k: contents.get(k, b"") + token for k in self.appends}
        made.update(dict.fromkeys(self.sets, token))
        made.update(dict.fromkeys(self.wipes))
        return made

    def __repr__(self) -> str:
        what = {"reads": self.reads, "appends": self.appends, "sets": self.sets}
        told = " ".join(f"{k}={b''.join(v).decode()}" for k, v in what.items() if v)
        wipes = b"".join(self.wipes).decode()
        return f"#{self.number} {self.kind} {told}{wipes and ' wipes=' + wipes}"


class Plan:
    """What a seed says: settings, and what each process does."""

    def __init__(self, seed: int):
        self.random = random = Random(seed)
        pick = random.choice
        chance = random.random
        calm = pick((60, 150, 300, 600))
        nasty = chance() < 0.75
        # Proposals from the first change on, which newcomers meet, or whose leaders are stopped;
        # or no proposals, and leaders are stopped.
        focus = pick(("", "", "", "newcomers", "newcomers", "leaders"))
        if seed % 8 == 7:
            focus = "direct"
        if focus == "newcomers":
            calm = pick((150, 300))
        elif focus:
            nasty = True
        events: dict[int, str] = {}
        kinds = [
            ("demote", 6),
            ("slow", 20 if focus else pick((0, 3, 8, 20))),
            ("stall", pick((0, 1, 3))),
        ]
        if nasty:
            kinds += [
                ("kill", pick((0, 0, 1, 2))),
                ("interrupt", 8 if focus in ("leaders", "direct") else pick((0, 0, 2, 6))),
            ]
        for kind, count in kinds:
            events.update((random.randrange(1, calm), kind) for _ in range(count))
        self.scheduler = Scheduler(
            random,
            sticky=pick((0.0, 0.5, 0.9)),
            ranked=chance() < 0.4,
            tick=pick((0.001, 0.02, 0.1)),
            faults=pick((0.0, 0.01, 0.05)) if nasty else 0.0,
            late=pick((0.0, 0.02, 0.3)),
            premature=pick((0.0, 0.0, 0.1)),
            parallel=chance() < 0.25,
            page=pick((2, 1000, 1000)),
            events=events,
            calm=calm,
            limit=calm + 8000,
        )
        self.max_age = pick((0.0, 0.05, 1.0))
        self.snapshots = 1 if focus else pick((1, 1, 2, 4, 1024))
        self.contended = "always" if focus else pick(("", "first", "always"))
        if focus == "direct":
            self.contended = ""
        self.tuned: dict[str, float] = {"CROWD": pick((1, 2, 2, 3, 4))}
        few = not focus and chance() < 0.6
        for name, values in {
            "MOST_PROPOSALS": (1, 2, 256), "EXPIRY": (1, 3, 512), "REMEMBERED": (10, 16384),
            "CONTENDED": (0.1, 30.0), "BUSY": (0.0, 4.0, 1e6), "PATIENT": (1, 2, 8),
            "PATIENCE": (1, 3, 12), "TERM": (0, 2, 16), "ROUND": (0.0, 5.0),
            "MOST_KEYS": (2, 5, 2048), "RECENT": (1, 3, 4096),
            "RECENT_ENTRIES": (2, 8, 65536), "RIDING_BYTES": (0, 262144),
            "INLINE_BODY": (200, 49152),
        }.items():  # fmt: skip
            if few and chance() < 0.4:
                self.tuned[name] = pick(values)
        if focus == "direct":
            self.tuned["BUSY"] = 0.0
        if {"RECENT", "RECENT_ENTRIES", "EXPIRY"} & self.tuned.keys():
            self.tuned.pop("PATIENT", None)  # each question would make changes unknown to others
        processes = pick((3, 4, 5) if focus else (2, 2, 3, 3, 4, 5))
        names = [b"abcdefghijkl"[i : i + 1] for i in range(pick((1, 2, 3, 6, 12)))]
        numbers = iter(range(1, 1000))
        locks = chance() < 0.2
        self.processes: list[tuple[Process, float, list[list[Op]]]] = []
        for i in range(processes):
            threads = 2 if focus in ("leaders", "direct") else pick((1, 1, 1, 2))
            crowd = Process(f"p{i}", threads > 1, pick((0.0, 0.0, -3.0, 500.0)))
            begin = 100.0 + self.scheduler._tick * pick((0, 0, 0, 20, 50, 100)) * chance()
            work = []
            for _ in range(threads):
                kinds_ = random.choices(KINDS, k=pick((1, 2, 3, 5)))
                if locks and chance() < 0.3:
                    kinds_.append("lock")
                if threads == 1 and chance() < (0.6 if focus else 0.25):
                    kinds_.insert(random.randrange(len(kinds_) + 1), "reopen")
                work.append([Op(next(numbers), kind, random, names) for kind in kinds_])
            self.processes.append((crowd, begin, work))

    def __str__(self) -> str:
        s = self.scheduler
        lines = [
            f"sticky={s._sticky} ranked={s._ranked} tick={s._tick} faults={s._faults}"
            f" late={s._late} premature={s._premature} parallel={s.parallel} page={s.page}"
            f" max_age={self.max_age} snapshots={self.snapshots} contended={self.contended}",
            f"tuned {self.tuned}, calm at {s._calm}, events {sorted(s._events.items())}",
        ]
        for process, begin, work in self.processes:
            lines += [f"{process.name} from {begin:.2f}: {ops}" for ops in work]
        return "\n".join(lines)
