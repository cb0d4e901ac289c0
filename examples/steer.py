"""Steer a video while it is made: every few seconds another prompt, and what each chunk cost.

    python examples/steer.py
    python examples/steer.py --image still.png --prompts "a red disc moves up" "a red disc moves left" -o disc.mp4

Without an image it takes a still of the embedded world. The session is an iterator of chunks, uint8 [frames, height,
width, 3]; what is done with them (here: a file) is up to you.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from aad1.data.media import VideoWriter, open_image
from aad1.data.world import make_clip
from aad1.streaming import enlargement, load_student

FPS = 16
STILL = make_clip("test", 5, 1).frames[0]
PROMPTS = [f"a cyan triangle moves {way}" for way in ("right fast", "left fast", "down slowly")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a bundled model, or a Wan folder with a student")
    parser.add_argument("--image", type=Path, help="the picture that the video begins with")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--chunks", type=int, default=3, help="chunks that each prompt lasts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("steered.mp4"))
    arguments = parser.parse_args()

    student = load_student(arguments.model)
    student.warm_up()
    image = open_image(arguments.image) if arguments.image else STILL
    session = student.session(image, arguments.prompts[0], seed=arguments.seed)
    chunks = session.chunks()
    with VideoWriter(arguments.out, fps=FPS, scale=enlargement(session.size)) as video:
        for prompt in arguments.prompts:
            session.switch(prompt)
            for frames in islice(chunks, arguments.chunks):
                video.write(frames)
                spent = session.account.recent[-1]
                print(f"{session.account.frames:4d} frames  {1000 * spent.total:4.0f} ms a chunk  {session.shown}")
    print(f"wrote {arguments.out}; the first frame took {1000 * (session.account.first_frame or 0):.0f} ms")


if __name__ == "__main__":
    main()
