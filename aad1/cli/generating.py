"""Commands that make video, or the picture to begin with: generate, world-image; and how fast: bench."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tyro.conf import Positional, arg

from aad1.cli.options import (
    FINISHED,
    Compile,
    Device,
    DType,
    ModelName,
    StudentName,
    dtype_of,
    keeping,
    refuse,
    say,
    warm_up,
)
from aad1.data.media import WRITABLE, VideoWriter, open_image
from aad1.data.world import SPLITS, make_clip
from aad1.errors import UserError, nearest
from aad1.evaluation import speed
from aad1.files import write_atomic
from aad1.progress import Progress
from aad1.streaming import STUDENT, check_passes, frame_count, load_student, load_teacher, picture_size, record
from aad1.streaming.batch import COLUMNS, Batch, Item, Mistakes, read_items, seed_items, weights_hash
from aad1.streaming.sheet import COLUMNS as SHEET
from aad1.streaming.sheet import SheetRow, write_sheet
from aad1.teacher_sampling import TeacherSampling

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Generate:
    """Animate an image: one pass a chunk, written as it is made, so any length needs the same memory.

    Small pictures are enlarged by a whole factor (--scale), so that players do not blur them; --scale 1
    keeps every pixel as it is. .gif and .webp hold all frames in memory until the end; .mp4 and a folder
    of PNG frames do not. --batch and --seeds make many videos in a folder, beside a manifest.jsonl that says how each
    was made; the same command again makes only what is missing or has changed.

    For example:
      aad1 generate --image still.png --prompt "a red disc moves left slowly" --seconds 20 -o video.mp4
      aad1 generate --batch list.jsonl --sheet -o videos/
    """

    image: Annotated[Path | None, arg(help="any picture; it is cropped and scaled to the video's size (required)")] = (
        None
    )
    prompt: Annotated[str | None, arg(help="what happens (required)")] = None
    seconds: Annotated[float, arg(help="length of the video")] = 5.0
    out: Annotated[
        Path | None,
        arg(
            aliases=["-o"],
            help=".mp4, .mkv (lossless), .gif, .webp, or a new folder for PNG frames; of many, the folder",
        ),
    ] = None
    batch: Annotated[Path | None, arg(help=f"a .jsonl or .csv list of videos, with {', '.join(COLUMNS)}")] = None
    model: ModelName = "tiny"
    student: StudentName = STUDENT
    seed: Annotated[int, arg(help="another seed, another video; a longer video begins like a shorter one")] = 0
    seeds: Annotated[tuple[int, ...] | None, arg(help="a video from each of these seeds")] = None
    format: Annotated[
        Literal[".mp4", ".mkv", ".gif", ".webp", "frames"] | None, arg(help="of many videos (default: .mp4)")
    ] = None
    sheet: Annotated[bool, arg(help="also write a contact sheet: OUT.sheet.png, or sheet.png in the folder")] = False
    sheet_frames: Annotated[int | None, arg(help=f"the same, with so many frames a row (default: {SHEET})")] = None
    fps: Annotated[float, arg(help="frames a second")] = 16.0
    scale: Annotated[int | None, arg(help="enlarge pixels by this factor (default: small pictures only)")] = None
    size: Annotated[tuple[int, int] | None, arg(help="height and width (default: what the student was trained at)")] = (
        None
    )
    passes: Annotated[tuple[float, ...] | None, arg(help="noise levels of a chunk's passes (default: its own)")] = None
    first_passes: Annotated[tuple[float, ...] | None, arg(help="those of the first chunk, if others")] = None
    device: Device = "auto"
    dtype: DType = None
    compile: Compile = False

    def run(self, extra: Sequence[str]) -> None:
        """Check what is cheap to check, load, stream, and say how fast it went."""
        refuse(extra, type(self))
        self._refuse_contradictions()
        for levels in (self.passes, self.first_passes):
            if levels is not None:
                check_passes(levels)
        if self.batch is None and self.seeds is None:
            self._one(self.out or Path("out.mp4"))
        else:
            self._many(self.out or Path("out"))

    def _refuse_contradictions(self) -> None:
        """Raise UserError for options that would have no effect beside others."""
        if self.batch and (self.image or self.prompt is not None or self.seeds is not None):
            raise UserError("--batch has images, prompts and seeds of its own; leave out --image, --prompt and --seeds")
        if self.seeds is not None and self.seed:
            raise UserError(f"--seed {self.seed} beside --seeds; add it to --seeds")
        if self.format and not self.batch and self.seeds is None:
            raise UserError("--format is for --batch and --seeds; for one video the name given with -o says it")
        if self.sheet_frames is not None and self.sheet_frames < 1:
            raise UserError(f"--sheet_frames {self.sheet_frames}; use 1 or a larger whole number")

    def _one(self, out: Path) -> None:
        VideoWriter(out, fps=self.fps)  # refuses a bad name or rate before anything is loaded
        total = frame_count(self.seconds, self.fps)
        picture, prompt = self._asked()
        image, student = (
            open_image(picture),
            load_student(
                self.model, student=self.student, device=self.device, dtype=dtype_of(self.dtype), compiled=self.compile
            ),
        )
        levels = {"passes": self.passes, "first_passes": self.first_passes}
        if self.compile:
            warm_up(student, picture_size(student.generator, student.vae, image.shape[:2], self.size), self.passes)
        session = student.session(image, prompt, seed=self.seed, size=self.size, **levels)
        with Progress("generating", total, unit="frame") as bar:
            made = record(session, total, out, fps=self.fps, scale=self.scale, advance=bar.advance)
        say(
            f"wrote {made.path}: {total} frames, {total / self.fps:.4g} s at {self.fps:g} fps, "
            f"{made.size[1]}x{made.size[0]}\n"
            f"first frame after {made.account.first_frame:.2f} s, then {made.account.fps:.1f} frames a second"
        )
        self._write_sheet(out.with_suffix(".sheet.png"), [SheetRow(out, out.stem, prompt, self.seed)])

    def _many(self, folder: Path) -> None:
        if folder.suffix.lower() in WRITABLE:
            raise UserError(f"-o {folder} names one video; --batch and --seeds need a folder, --format says what in it")
        suffix = "" if self.format == "frames" else self.format or ".mp4"
        VideoWriter(folder / f"*{suffix}", fps=self.fps, scale=1 if self.scale is None else self.scale)
        mistakes = Mistakes(self.batch)
        items, student = (
            self._items(mistakes),
            load_student(
                self.model, student=self.student, device=self.device, dtype=dtype_of(self.dtype), compiled=self.compile
            ),
        )
        hashed = weights_hash(self.model, self.student)
        batch = Batch(student, folder, suffix, self.fps, self.scale, self.passes, self.first_passes, hashed)
        jobs = batch.plan(items, mistakes)
        if self.compile:
            warm_up(student, self.size, self.passes)
        with keeping(FINISHED):
            outcome = batch.make(jobs)
        say(f"{folder}: {len(outcome.whole)} videos, {outcome.there} of {len(jobs)} were there already")
        rows = [SheetRow(job.path, job.item.name, job.item.prompt, job.item.seed) for job in outcome.whole]
        self._write_sheet(folder / "sheet.png", rows)
        if outcome.failed:
            raise UserError(
                f"{outcome.failed} of {len(jobs)} videos failed, for the reasons above; "
                "the same command tries them once more"
            )

    def _items(self, mistakes: Mistakes) -> list[Item]:
        picture, prompt = (Path(), "") if self.batch else self._asked()
        usual = Item("", picture, prompt, self.seed, self.seconds, self.size)
        return read_items(self.batch, usual, mistakes) if self.batch else seed_items(self.seeds or (), usual)

    def _asked(self) -> tuple[Path, str]:
        """Image and prompt; raises UserError where one is missing."""
        if self.image is not None and self.prompt is not None:
            return self.image, self.prompt
        lacking = "an --image and a --prompt" if self.image is None and self.prompt is None else ""
        lacking = lacking or ("an --image" if self.image is None else "a --prompt")
        raise UserError(
            f"generate needs {lacking}; for the embedded world `aad1 world-image 7 -o x.png` makes one of each"
        )

    def _write_sheet(self, path: Path, rows: Sequence[SheetRow]) -> None:
        if self.sheet or self.sheet_frames:
            for page in write_sheet(path, rows, self.sheet_frames or SHEET):
                say(f"wrote {page}")


@dataclass(frozen=True)
class Bench:
    """Measure how fast a student streams, in one, two and four passes, beside its many-step teacher.

    First frame from the request, medians over the chunks after the second, VAE included; loading and files are
    not counted.

    For example:
      aad1 bench stream --model tiny
    """

    what: Positional[Literal["stream"]]
    model: ModelName = "tiny"
    student: StudentName = STUDENT
    chunks: Annotated[int, arg(help="chunks of a session")] = 20
    passes: Annotated[tuple[int, ...], arg(help="numbers of passes a chunk to measure")] = (1, 2, 4)
    teacher_steps: Annotated[int, arg(help="the teacher's steps, two passes each; 0 leaves it out")] = 48
    out: Annotated[Path | None, arg(aliases=["-o"], help="JSON with every number")] = None
    device: Device = "auto"
    dtype: DType = None
    compile: Compile = False

    def run(self, extra: Sequence[str]) -> None:
        """Measure, and print the table."""
        refuse(extra, type(self))
        if self.chunks < 4 or not self.passes or min(self.passes) < 1 or self.teacher_steps < 0:
            raise UserError("bench needs at least 4 --chunks, --passes of 1 or more, and --teacher_steps of 0 or more")
        rows = speed.stream_speeds(
            load_student(
                self.model, student=self.student, device=self.device, dtype=dtype_of(self.dtype), compiled=self.compile
            ),
            [speed.pass_levels(passes) for passes in self.passes],
            self.chunks,
            partial(load_teacher, self.model, self.device, dtype_of(self.dtype)) if self.teacher_steps else None,
            TeacherSampling(steps=self.teacher_steps or 1),
        )
        say(speed.to_markdown(rows))
        if self.out:
            write_atomic(self.out, json.dumps([asdict(row) for row in rows], indent=1).encode())


@dataclass(frozen=True)
class WorldImage:
    """Write a still of the embedded world and print its caption: something to animate.

    For example:
      aad1 world-image 7 -o still.png
    """

    index: Positional[Annotated[int, arg(help="which scene, from 0")]]
    out: Annotated[Path | None, arg(aliases=["-o"], help="the picture (default: world-INDEX.png)")] = None
    split: Annotated[str, arg(help=f"one of {', '.join(SPLITS)}")] = "test"

    def run(self, extra: Sequence[str]) -> None:
        """Draw the scene's first frame."""
        refuse(extra, type(self))
        if self.split not in SPLITS:
            raise UserError(f"there is no world split '{self.split}'{nearest(self.split, SPLITS)}")
        if self.index < 0:
            raise UserError(f"there is no scene {self.index}; use 0 or a larger whole number")
        clip, out = make_clip(self.split, self.index, 1), self.out or Path(f"world-{self.index}.png")
        write_image(out, clip.frames[0])
        say(f"wrote {out}; its caption:\n{clip.caption}")
        line = shlex.join(["aad1", "generate", "--image", str(out), "--prompt", clip.caption])
        say(f"animate it with:\n{line} -o {shlex.quote(str(out.with_suffix('.mp4')))}")


def write_image(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write uint8 [height, width, 3]; raises UserError when it cannot be written."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"cannot write {path}: suffix {path.suffix!r}; use {', '.join(PICTURES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
