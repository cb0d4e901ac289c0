"""What failing looks like: a frozen clip, drifting ones, one that ends in a grid; and the grid peak of every condition.

    python benchmarks/failure_pictures.py runs/evidence/videos -o docs/assets/failures.png

Reads the videos that ``aad1 reproduce`` keeps: six test clips side by side, two pixels a side. They are compressed, so
their grid peaks are a little above those of the frames themselves; compare them with each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from result_picture import picture

from aad1.data.clips import read_whole
from aad1.data.world import SIZE, make_clip
from aad1.measures.appearance import grid_peak
from aad1.reproduction.pieces import SCALE, SHOWN

ROWS = {
    "III, window 9": "base-adversarial-seed{}-long",
    "drift: window 21": "base-adversarial-local_attn_size21-seed{}-long",
    "drift, grid: no sink": "base-adversarial-sink_size0-seed{}-long",
}
AT = [0, 40, 80, 160, 240, 320]
LATE = 240  # frames from here on are looked at for a grid
PERIOD = 16  # px a token of the embedded student
Frames = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--clip", type=int, default=1, help="index in the test split, one of the first six")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    clip = make_clip("test", arguments.clip, AT[-1] + 1)
    rows = {"truth": clip.frames, "frozen": np.repeat(clip.frames[:1], len(clip.frames), axis=0)}
    for label, name in ROWS.items():
        rows[label] = clips_of(arguments.videos / f"{name.format(arguments.seed)}.mp4")[arguments.clip]
    picture(rows, AT, clip.caption).save(arguments.out)
    for path in sorted(arguments.videos.glob("*-long.mp4")):
        peaks = [grid_peak(frames[LATE:], PERIOD) for frames in clips_of(path)]
        print(f"{path.stem:60} grid peak from frame {LATE}: {np.mean(peaks):.2f} (clips {np.std(peaks):.2f})")


def clips_of(path: Path) -> list[Frames]:
    """The clips of one video, pixel by pixel as they were made but for the compression."""
    frames = read_whole(path)[0][:, ::SCALE, ::SCALE]
    return [frames[:, :, SIZE * index : SIZE * (index + 1)] for index in range(SHOWN)]


if __name__ == "__main__":
    main()
