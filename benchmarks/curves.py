"""Plot the curves of finished runs: losses smoothed over up to 20 logged rows, and what held-out samples measured.

    python benchmarks/curves.py --runs runs/tiny -o docs/assets/curves.png

Draws a panel for each stage that each folder has. Needs matplotlib (the extra `eval`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from aad1.training.metrics import read_metrics
from aad1.workspace import STAGES, Workspace

SMOOTHED = 20
LOSSES = ("vae/loss", "encoder/loss", "teacher/loss", "generator/loss", "fake_score/loss", "critic/game")
MEASURED = ("eval/rho", "eval/presence", "eval/id_ok", "eval/psnr", "eval/all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders given to -o, with their stages")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    logs = [(stage, Workspace(root).run(stage) / "metrics.jsonl") for root in arguments.runs for stage in STAGES]
    found = [(stage, log) for stage, log in logs if log.exists()]
    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.4), squeeze=False)
    for (stage, log), panel in zip(found, axes[0], strict=True):
        draw(panel, stage, read_metrics(log))
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=110)


def draw(panel: Axes, stage: str, rows: list[dict[str, float]]) -> None:
    """One stage: losses on the left axis, measures of held-out samples (marked) on the right."""
    panel.set(title=stage, xlabel="step", ylabel="loss")
    for name in LOSSES:
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            steps, values = np.array(points).T
            width = max(1, min(SMOOTHED, len(values) // 5))
            panel.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), label=name)
    right = panel.twinx()
    for name in MEASURED:
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            right.plot(*np.array(points).T, "o--", markersize=3, linewidth=0.8, label=name)
    lines = [*panel.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    panel.legend(lines, [str(line.get_label()) for line in lines], fontsize=7, loc="center right")


if __name__ == "__main__":
    main()
