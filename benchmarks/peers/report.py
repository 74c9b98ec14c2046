"""From samples to medians, spreads, ratios and tables.

A ratio is the median, over the rounds, of a quotient of two medians of one round. In the headline
it is diced over the best other store: below 1, diced is faster. In the other tables it is the peer
over diced: above 1, diced is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.adapters import OURS
from benchmarks.peers.ops import CONTEXT

Rounds = Sequence[Sequence[float]]

OURS_SYNC = "diced-power"


def summarise(results: dict[str, Any]) -> None:
    """Add ``summary``, ``headline`` and ``limits`` to each data set of `results`."""
    kinds = {name: each["kind"] for name, each in results["peers"].items()}
    for found in results["data"].values():
        found["summary"], found["headline"] = {}, {}
        for series, samples in found["samples"].items():
            samples = {name: rounds for name, rounds in samples.items() if any(rounds)}
            ours = _ours(samples, series)
            rows = {name: _describe(rounds) for name, rounds in samples.items()}
            for name, row in rows.items():
                row["over_diced"] = quotient(samples[name], samples[ours]) if ours else None
            found["summary"][series] = rows
            peers = [name for name in rows if kinds[name] == "peer"]
            if ours and series not in CONTEXT:
                best = min(peers, key=lambda name: rows[name]["median"], default=None)
                found["headline"][series] = {
                    "ours": ours,
                    "best": best,
                    "ratio": quotient(samples[ours], samples[best]) if best else None,
                }
        found["limits"] = _limits(found["samples"])


def _ours(samples: dict[str, Rounds], series: str) -> str | None:
    """Return diced's row: the one that fsyncs where that is what is measured."""
    name = OURS_SYNC if series == "c_block_sync" else OURS
    return name if name in samples else None


def _describe(rounds: Rounds) -> dict[str, Any]:
    every = np.concatenate([np.asarray(each, float) for each in rounds])
    low, lower, median, upper, high = np.percentile(every, (10, 25, 50, 75, 90)).tolist()
    return {"median": median, "p10": low, "p90": high, "iqr": upper - lower, "n": len(every)}


def quotient(over: Rounds, under: Rounds) -> dict[str, float] | None:
    """Return the median and the quartiles, over the rounds that both have, of over / under.

    A round in which noise made a difference of times negative has no quotient.
    """
    found = [
        float(np.median(a) / np.median(b))
        for a, b in zip(over, under, strict=False)
        if len(a) and len(b) and np.median(a) > 0 and np.median(b) > 0
    ]
    if not found:
        return None
    lower, median, upper = np.percentile(found, (25, 50, 75)).tolist()
    return {"median": median, "q25": lower, "q75": upper, "rounds": len(found)}


def _limits(samples: dict[str, dict[str, Rounds]]) -> dict[str, Any]:
    """Return how near diced comes to a copy, how it scales, and what a deep history costs it."""
    whole = samples.get("r_full", {}).get(OURS)
    copy = samples.get("copy_fresh", {}).get("machine")
    newest = samples.get("deep", {}).get(OURS)
    first = samples.get("deep_first", {}).get(OURS)

    def scaling(one: str, two: str) -> dict[str, float] | None:
        a, b = samples.get(one, {}).get(OURS), samples.get(two, {}).get(OURS)
        return quotient(a, b) if a and b else None

    return {
        "r_full, share of a fresh copy's speed": quotient(copy, whole) if copy and whole else None,
        "2 reader processes over 1": scaling("r_1p", "r_2p"),
        "4 reader processes over 1": scaling("r_1p", "r_4p"),
        "2 reader threads over 1": scaling("r_1t", "r_2t"),
        "deep, newest / first version": quotient(newest, first) if newest and first else None,
    }


# -- text --------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """Return everything as text; needs `summarise`."""
    lines = []
    for name, each in results["peers"].items():
        if each["missing"]:
            lines.append(f"{name}: left out, {each['missing']}")
    for data, found in results["data"].items():
        shape = " x ".join(map(str, found["shape"]))
        lines += ["", f"== {data}: {found['source']}, {shape} =="]
        for name, errors in found["errors"].items():
            lines += [f"ERROR {name}: {error}" for error in errors]
        lines += _headline(found)
        lines += _limit_lines(found["limits"])
        for series, rows in found["summary"].items():
            lines += _series(series, rows, found["units"][series], results)
            skipped = found["skipped"].get(series, {})
            for reason in dict.fromkeys(skipped.values()):
                names = [name for name, each in skipped.items() if each == reason]
                lines.append(f"  not {', '.join(names)}: {reason}")
    return "\n".join(lines)


def _headline(found: dict[str, Any]) -> list[str]:
    rows = [
        ["op", "diced", "p10-p90", "best peer", "its median", "p10-p90", "diced/best", "q25-q75"]
    ]
    for series, head in found["headline"].items():
        unit = found["units"][series]
        summary = found["summary"][series]
        ours = summary[head["ours"]]
        row = [series, amount(ours["median"], unit), _spread(ours, unit)]
        if head["ours"] != OURS:
            row[0] += f" ({head['ours']})"
        if head["best"] and head["ratio"]:
            best, ratio = summary[head["best"]], head["ratio"]
            row += [head["best"], amount(best["median"], unit), _spread(best, unit)]
            row += [f"{ratio['median']:.2f}", f"{ratio['q25']:.2f}-{ratio['q75']:.2f}"]
        rows.append(row + [""] * (8 - len(row)))
    return [
        "diced time / best peer's time, median over rounds; below 1: diced is faster",
        *_grid(rows),
    ]


def _limit_lines(limits: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in limits.items():
        if found and "share" in name:
            spread = f"{100 * found['q25']:.0f}-{100 * found['q75']:.0f} %"
            lines.append(f"diced {name}: {100 * found['median']:.0f} % ({spread})")
        elif found:
            spread = f"{found['q25']:.2f}-{found['q75']:.2f}"
            lines.append(f"diced {name}: {found['median']:.2f} ({spread})")
    return lines


def _series(series: str, rows: dict[str, Any], unit: str, results: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    table = [[series, "median", "p10-p90", "IQR", "n", "/ diced", "q25-q75"]]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median"]):
        over = row["over_diced"]
        mark = " (limit)" if results["peers"][name]["kind"] == "limit" else ""
        table.append(
            [
                f"{name}{mark}",
                amount(row["median"], unit),
                _spread(row, unit),
                amount(row["iqr"], unit),
                str(row["n"]),
                f"{over['median']:.2f}" if over else "",
                f"{over['q25']:.2f}-{over['q75']:.2f}" if over else "",
            ]
        )
    what = results["settings"]["what"].get(series)
    return ["", *([f"{series}: {what}"] if what else []), *_grid(table)]


def _spread(row: dict[str, Any], unit: str) -> str:
    return f"{amount(row['p10'], unit)}-{amount(row['p90'], unit)}"


def amount(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    if not unit:
        return f"{value:.0f}"
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB"
    for factor, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value * 1e6:.2g} us"


def _grid(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
