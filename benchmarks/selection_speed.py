"""What choosing clips costs beside reading them: CPU time of the embedded world's mp4 clips, with and without motion.

    python benchmarks/selection_speed.py

Both are measured in turns in one process, by its CPU time, so that other processes count little; the best of a few runs
of each. The large clips are the same ones, enlarged, as 832x480.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aad1.data import clips
from aad1.data.entries import ClipFile
from aad1.data.media import VideoWriter
from aad1.data.selection import Selection, Size
from aad1.data.sources import find_clips
from aad1.data.world import FPS, SIZE, make_clip

SMALL, LARGE, FRAMES, RUNS = 48, 4, 81, 5
LARGE_SIZE = (480, 832)
WANTED = Selection(min_motion=0.001, max_jump=8.0)


def write_large(folder: Path) -> None:
    folder.mkdir()
    for index in range(LARGE):
        frames = make_clip("train", index, FRAMES).frames.repeat(8, axis=1).repeat(13, axis=2)[:, : LARGE_SIZE[0]]
        (folder / f"{index}.txt").write_text("a clip")
        with VideoWriter(folder / f"{index}.mp4", fps=FPS) as writer:
            writer.write(np.ascontiguousarray(frames))


def clips_per_second(files: Sequence[ClipFile], size: Size, *, choosing: bool) -> float:
    measured, begin = clips._motion, time.process_time()
    clips._motion = measured if choosing else lambda frames: {}
    try:
        for file in files:
            clips.read_clip(file, sizes=[size], fps=FPS, frames=FRAMES, selection=WANTED)
    finally:
        clips._motion = measured
    return len(files) / (time.process_time() - begin)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        clips.write_world_folder(Path(name) / "small", "train", SMALL, FRAMES)
        write_large(Path(name) / "large")
        for folder, size in (("small", (SIZE, SIZE)), ("large", LARGE_SIZE)):
            files = find_clips(Path(name) / folder)
            runs = [[clips_per_second(files, size, choosing=on) for on in (False, True)] for _ in range(RUNS)]
            read, chosen = np.max(runs, axis=0)
            cost = f"choosing costs {100 * (read / chosen - 1):.0f} %"
            print(f"{size[1]}x{size[0]}: read {read:.1f} clips/s, read and chosen {chosen:.1f} clips/s: {cost}")


if __name__ == "__main__":
    main()
