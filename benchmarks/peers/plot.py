"""One picture of a run: every peer's time over diced's, per operation, on a log axis."""

from __future__ import annotations

import os
from typing import Any

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = "os^Dv"


def draw(results: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a PNG; needs `report.summarise` and matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = results["data"]
    peers = [name for name, each in results["peers"].items() if each["kind"] != "limit"]
    styles = {
        name: {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place // len(COLOURS) % len(MARKERS)],
        }
        for place, name in enumerate(peers)
    }
    ours = [name for name in peers if results["peers"][name]["kind"] == "ours"]
    for place, name in enumerate(ours):
        styles[name] = {"color": str(0.6 * place / len(ours)), "marker": "*"}
    longest = max((len(found["summary"]) for found in sets.values()), default=1)
    figure, panels = pyplot.subplots(
        1, len(sets), figsize=(6.5 * len(sets) + 2.5, 1.5 + 0.36 * longest), squeeze=False
    )
    shown = {}
    for panel, (data, found) in zip(panels[0], sets.items(), strict=True):
        series = [
            name for name, rows in found["summary"].items() if rows and name in found["headline"]
        ]
        for place, name in enumerate(series):
            for peer, row in found["summary"][name].items():
                over = row["over_diced"]
                if peer in styles and over and over["median"] > 0:
                    shown[peer] = panel.scatter(
                        over["median"], place, s=26, alpha=0.85, zorder=3, **styles[peer]
                    )
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.set_yticks(range(len(series)), series)
        panel.invert_yaxis()
        panel.grid(axis="x", which="both", alpha=0.25)
        shape = " x ".join(map(str, found["shape"]))
        panel.set_title(f"{data} ({found['source']}, {shape})", fontsize=10)
        panel.set_xlabel("peer / diced, right of 1: diced is faster or smaller")
    figure.legend(
        [shown[name] for name in peers if name in shown],
        [name for name in peers if name in shown],
        loc="center right",
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0, 1 - 2.0 / (6.5 * len(sets) + 2.5), 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
