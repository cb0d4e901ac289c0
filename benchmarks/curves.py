"""Plot the curves of finished runs: losses smoothed over 20 logged rows, and what held-out samples measured.

    python benchmarks/curves.py --runs runs/tiny -o docs/assets/curves.png

Draws a panel for each stage that the folder has. Needs matplotlib (the extra `eval`).
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
LOSSES = ("vae/loss", "text/loss", "teacher/loss", "generator/loss", "fake_score/loss", "critic/game")
MEASURED = ("eval/rho", "eval/presence", "eval/id_ok", "eval/psnr", "eval/all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="a folder given to -o, with the runs of its stages")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    workspace = Workspace(arguments.runs)
    stages = [stage for stage in STAGES if (workspace.run(stage) / "metrics.jsonl").exists()]
    figure, axes = plt.subplots(1, len(stages), figsize=(4.2 * len(stages), 3.4), squeeze=False)
    for stage, panel in zip(stages, axes[0], strict=True):
        draw(panel, stage, read_metrics(workspace.run(stage) / "metrics.jsonl"))
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=110)


def draw(panel: Axes, stage: str, rows: list[dict[str, float]]) -> None:
    """One stage: losses on the left axis, measures of held-out samples (marked) on the right."""
    panel.set(title=stage, xlabel="step", ylabel="loss")
    for name in LOSSES:
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            steps, values = np.array(points).T
            width = min(SMOOTHED, len(values))
            panel.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), label=name)
    right = panel.twinx()
    for name in MEASURED:
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            right.plot(*np.array(points).T, "o--", markersize=3, linewidth=0.8, label=name)
    lines = [*panel.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    panel.legend(lines, [str(line.get_label()) for line in lines], fontsize=7)


if __name__ == "__main__":
    main()
