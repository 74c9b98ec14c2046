"""``python -m benchmarks.peers``: diced and its peers, interleaved in one run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import plot, report
from benchmarks.peers.adapters import ALL, DEFAULT, OURS, make
from benchmarks.peers.ops import OPS
from benchmarks.peers.run import Plan, run
from diced.pool import default_threads

OUT = pathlib.Path(__file__).resolve().parents[2] / ".bench"


def _names(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        chosen = list(dict.fromkeys(name for name in text.split(",") if name))
        unknown = [name for name in chosen if name not in known]
        if unknown or not chosen:
            raise argparse.ArgumentTypeError(f"unknown: {unknown}; there are {', '.join(known)}")
        return chosen

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = parser.add_argument
    add("--peers", type=_names(list(ALL)), default=list(DEFAULT), help="names, by comma")
    add("--data", type=_names(["em", "labels"]), default=["em", "labels"])
    add("--ops", type=_names(list(OPS)), default=list(OPS))
    add("--rounds", type=int, default=7)
    add("--size", choices=["full", "small", "tiny"], default="full")
    add("--threads", type=int, default=default_threads(), help="per call; diced's default")
    add("--budget", type=float, default=1.5, help="seconds per operation, peer and round")
    add("--control", action="store_true", help="run diced a second time, to see the noise")
    add("--out", type=pathlib.Path, default=OUT, help="directory for JSON, text and plot")
    add("--scratch", help="directory for the arrays, on the disk to measure")
    add("--list", action="store_true", help="say what there is and end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print tables, and write ``peers.json``, ``peers.txt`` and ``peers.png``."""
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        _list(chosen.threads)
        return 0
    peers = list(chosen.peers)
    if chosen.control:
        peers = list(dict.fromkeys([*peers, OURS, "diced-again"]))
    chosen.out.mkdir(parents=True, exist_ok=True)
    target = chosen.out / "peers.json"

    def save(results: dict[str, Any]) -> None:
        report.summarise(results)
        part = target.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1))
        os.replace(part, target)

    # So that a run that is ended cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    scratch = tempfile.mkdtemp(prefix="diced-peers-", dir=chosen.scratch)
    plan = Plan(
        peers=peers,
        data=chosen.data,
        ops=chosen.ops,
        rounds=chosen.rounds,
        size=chosen.size,
        threads=chosen.threads,
        budget=chosen.budget,
        scratch=scratch,
    )
    try:
        results = run(plan, save)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = report.tables(results)
    target.with_suffix(".txt").write_text(text + "\n")
    print(text)
    if importlib.util.find_spec("matplotlib"):
        plot.draw(results, target.with_suffix(".png"))
    else:
        print("\nno plot: not installed: matplotlib")
    print(f"\nwritten to {chosen.out}")
    return 1 if any(found["errors"] for found in results["data"].values()) else 0


def _list(threads: int) -> None:
    for name in ALL:
        labels = make(name, True, threads)
        image = make(name, False, threads)
        missing = image.available()
        print(f"{name}{' (by name only)' if name not in DEFAULT else ''}: {missing or image.kind}")
        if "em" in image.data:
            print(f"    em: {image.settings}")
        print(f"    labels: {labels.settings}")
        print(f"    fsync: {image.fsync}")
    for name, op in OPS.items():
        print(f"{name}: {op.what}")


if __name__ == "__main__":
    sys.exit(main())
