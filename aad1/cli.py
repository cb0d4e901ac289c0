"""The command line: ``aad1 demo | new | prepare | train | distill | generate | serve | bench | world-image``.

Exit codes: 0 done, 1 a fault of ours, 2 a mistake the user can mend (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from aad1.assembly import Assembly, new_folder
from aad1.data.media import WRITABLE, VideoWriter, open_image
from aad1.data.world import SPLITS, make_clip
from aad1.demo import Demo, DemoConfig
from aad1.errors import UserError, nearest
from aad1.evaluation import speed
from aad1.files import write_atomic
from aad1.progress import Progress
from aad1.recipe import RECIPES, Recipe, load_recipe, recipe_names
from aad1.runtime import keep_freed_memory
from aad1.streaming import (
    DTYPES,
    STUDENT,
    Student,
    check_passes,
    frame_count,
    load_student,
    load_teacher,
    picture_size,
    record,
)
from aad1.streaming.batch import COLUMNS, Batch, Item, Mistakes, read_items, seed_items, weights_hash
from aad1.streaming.sheet import COLUMNS as SHEET
from aad1.streaming.sheet import SheetRow, write_sheet
from aad1.teacher_sampling import TeacherSampling
from aad1.training.loop import Interrupted
from aad1.workspace import Workspace

DESCRIPTION = """One-step streaming image-to-video, distilled: AAD-1.

Begin with `aad1 demo`. Every command explains itself with --help; those with a --recipe take any of its values, for
example --ode_init.steps 50 --data.source my_videos/ --model my_wan_folder. --debug shows where an error came from. Exit
codes: 0 done, 1 a fault of ours, 2 a mistake that you can mend (one line says how), 130 interrupted.
"""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")

Out = Annotated[
    Path | None,
    arg(aliases=["-o"], help="folder for everything it makes (default: runs/RECIPE)"),
]
NAMES = ", ".join(recipe_names())
RECIPE_HELP = f"one of {NAMES} (in {RECIPES}), or a YAML file; any of its values: --section.key VALUE"
RecipeName = Annotated[str, arg(help=RECIPE_HELP)]
ResumeFlag = Annotated[bool, arg(help="go on from the last checkpoint")]
ModelName = Annotated[str, arg(help="a Wan folder, or the name of a bundled one")]
StudentName = Annotated[str, arg(help="a student in that folder, or the folder that a run exported")]
Device = Annotated[str, arg(help="auto, cpu, or a GPU such as cuda:0")]
DType = Annotated[Literal["float32", "bfloat16", "float16"] | None, arg(help="default: bfloat16 on a GPU")]
Compile = Annotated[bool, arg(help="torch.compile: a minute of warming up first, then faster chunks")]
Install = Annotated[bool, arg(help="afterwards put the trained part into the Wan folder (--model)")]


@dataclass(frozen=True)
class New:
    """Write a Wan folder with random weights, to train from nothing.

    Example: aad1 new runs/model --recipe tiny
    """

    folder: Positional[Path]
    recipe: RecipeName = "tiny"

    def run(self, extra: Sequence[str]) -> None:
        """Write the folder."""
        new_folder(recipe_of(self, extra), self.folder)
        say(f"wrote {self.folder}; train its parts with aad1 train text|vae|teacher --model {self.folder} --install")


@dataclass(frozen=True)
class Prepare:
    """Make what the stages learn from: latent clips, or the teacher's trajectories. Continues what is there.

    Examples: aad1 prepare clips --recipe tiny -o runs/tiny
    aad1 prepare clips --recipe wan2.1-1.3b --model my_wan_folder --data.source my_videos/ -o runs/mine
    """

    what: Positional[Literal["clips", "trajectories"]]
    recipe: RecipeName = "tiny"
    out: Out = None

    def run(self, extra: Sequence[str]) -> None:
        """Encode clips or denoise trajectories."""
        assembly = Assembly(recipe_of(self, extra), Workspace(out_of(self)))
        assembly.prepare_clips() if self.what == "clips" else assembly.prepare_trajectories()


@dataclass(frozen=True)
class Train:
    """Run one training stage.

    text, vae and teacher make the parts of a Wan folder; ode_init, dmd_warmup and adversarial are the
    method's stages I, II and III. Example: aad1 train ode_init --recipe tiny -o runs/tiny --ode_init.steps 50
    """

    stage: Positional[Literal["text", "vae", "teacher", "ode_init", "dmd_warmup", "adversarial"]]
    recipe: RecipeName = "tiny"
    out: Out = None
    resume: ResumeFlag = False
    install: Install = False

    def run(self, extra: Sequence[str]) -> None:
        """Train, and say where the result is."""
        assembly = Assembly(recipe_of(self, extra), Workspace(out_of(self)))
        if self.install:
            assembly.refuse_install()
        say(f"wrote {assembly.train(self.stage, self.resume)}")
        if self.install:
            assembly.install(self.stage)
            say(f"installed in {assembly.folder.path}")


@dataclass(frozen=True)
class Distill:
    """Distil a bidirectional teacher into a one-step causal student: clips, trajectories, stages I to III.

    Example: aad1 distill --recipe tiny -o runs/tiny
    """

    recipe: RecipeName = "tiny"
    out: Out = None
    resume: ResumeFlag = False
    install: Install = False

    def run(self, extra: Sequence[str]) -> None:
        """Run every step that is not finished."""
        assembly = Assembly(recipe_of(self, extra), Workspace(out_of(self)))
        if self.install:
            assembly.refuse_install()
        say(f"wrote {assembly.distill(self.resume)}")
        if self.install:
            assembly.install("adversarial")
            say(f"installed in {assembly.folder.path}")


@dataclass(frozen=True)
class Generate:
    """Animate an image: one pass a chunk, written as it is made, so any length needs the same memory.

    Small pictures are enlarged by a whole factor (--scale), so that players do not blur them; --scale 1
    keeps every pixel as it is. .gif and .webp hold all frames in memory until the end; .mp4 and a folder
    of PNG frames do not. --batch and --seeds make many videos in a folder, beside a manifest.jsonl that says how each
    was made; the same command again makes only what is missing or has changed. Examples: aad1 generate
    --image still.png --prompt "a red disc moves left slowly" --seconds 20 -o video.mp4; aad1 generate
    --batch list.jsonl --sheet -o videos/
    """

    image: Annotated[Path | None, arg(help="any picture; it is cropped and scaled to the video's size (required)")] = (
        None
    )
    prompt: Annotated[str | None, arg(help="what happens (required)")] = None
    seconds: Annotated[float, arg(help="length of the video")] = 5.0
    out: Annotated[
        Path | None,
        arg(aliases=["-o"], help=".mp4, .gif, .webp, or a new folder for PNG frames; of many, the folder"),
    ] = None
    batch: Annotated[Path | None, arg(help=f"a .jsonl or .csv list of videos, with {', '.join(COLUMNS)}")] = None
    model: ModelName = "tiny"
    student: StudentName = STUDENT
    seed: Annotated[int, arg(help="another seed, another video; a longer video begins like a shorter one")] = 0
    seeds: Annotated[tuple[int, ...] | None, arg(help="a video from each of these seeds")] = None
    format: Annotated[Literal[".mp4", ".gif", ".webp", "frames"] | None, arg(help="of many videos (default: .mp4)")] = (
        None
    )
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
        image, student = open_image(picture), student_of(self)
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
        items, student = self._items(mistakes), student_of(self)
        hashed = weights_hash(self.model, self.student)
        batch = Batch(student, folder, suffix, self.fps, self.scale, self.passes, self.first_passes, hashed)
        jobs = batch.plan(items, mistakes)
        if self.compile:
            warm_up(student, self.size, self.passes)
        try:
            outcome = batch.make(jobs)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; what was finished is kept: the same command goes on") from None
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
class Serve:
    """Serve a student: a page at /, live video over a WebSocket, jobs in the shape of OpenAI's video API.

    It can be reached from this machine alone unless --host says otherwise; --api_key (or AAD1_API_KEY) asks clients
    for a key. What jobs make is kept under --out. Example: aad1 serve, then open http://127.0.0.1:8000
    """

    model: ModelName = "tiny"
    student: StudentName = STUDENT
    host: Annotated[str, arg(help="address to listen on; 0.0.0.0 for every network")] = "127.0.0.1"
    port: int = 8000
    names: Annotated[tuple[str, ...], arg(help="other names under which clients call this server")] = ()
    api_key: Annotated[str | None, arg(help="what clients must show (default: AAD1_API_KEY, else nothing)")] = None
    video_pixels: Annotated[int | None, arg(help="most pixels of a video (default: the model's own size)")] = None
    out: Annotated[Path, arg(aliases=["-o"], help="folder for finished videos")] = Path("runs/serve")
    quota_gb: Annotated[float, arg(help="what they may take together")] = 10.0
    live: Annotated[int, arg(help="live videos at once")] = 8
    queue: Annotated[int, arg(help="jobs that are made or wait")] = 32
    fps: Annotated[float, arg(help="frames a second")] = 16.0
    device: Device = "auto"
    dtype: DType = None
    compile: Compile = False

    def run(self, extra: Sequence[str]) -> None:
        """Load, warm up, serve."""
        refuse(extra, type(self))
        create_app, listen, run_server, settings = _server()
        key = os.environ.get("AAD1_API_KEY") or None if self.api_key is None else self.api_key
        listening = listen(self.host, self.port)
        open_to_all = ipaddress.ip_address(listening.getsockname()[0]).is_unspecified
        wanted = settings.checked(
            folder=self.out,
            quota_gb=self.quota_gb,
            api_key=key,
            hosts=self._names(open_to_all, settings.Settings.hosts),
            video_pixels=self.video_pixels,
            fps=self.fps,
            live=self.live,
            queue=self.queue,
        )
        student = student_of(self)
        app = create_app(student, wanted)
        if self.compile:
            warm_up(student)
        else:
            student.warm_up()
        if open_to_all and key is None:
            _complain("warning: anyone who can reach this machine can use this server; --api_key KEY asks for a key")
        listening.listen()  # who reads the next line may call at once
        host = "localhost" if open_to_all else in_url(self.host)
        say(f"serving {student.name}: open http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        run_server(app, wanted, listening)

    def _names(self, open_to_all: bool, usual: tuple[str, ...]) -> tuple[str, ...]:
        """What the server may be called; on every network that is anyone's guess."""
        for name in self.names:
            if not HOST_NAME.fullmatch(name):
                raise UserError(
                    f"--names {name}: give names or addresses without a port; *.example.org is all below one"
                )
        if open_to_all and not self.names:
            return ("*",)
        return (*usual, *(in_url(name) for name in (self.host, *self.names)))


def _server() -> tuple[Any, Any, Any, Any]:
    """The server's parts, or how to get them."""
    try:
        from aad1.serve import settings
        from aad1.serve.app import create_app
        from aad1.serve.run import listen, serve
    except ImportError as error:
        raise UserError(f"serving needs the package {error.name}; pip install 'aad1[serve]'") from None
    return create_app, listen, serve, settings


@dataclass(frozen=True)
class Bench:
    """Measure how fast a student streams, in one, two and four passes, beside its many-step teacher.

    First frame from the request, medians over the chunks after the second, VAE included; loading and files are
    not counted. Example: aad1 bench stream --model tiny
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
            student_of(self),
            [speed.pass_levels(passes) for passes in self.passes],
            self.chunks,
            partial(load_teacher, self.model, self.device, dtype_of(self)) if self.teacher_steps else None,
            TeacherSampling(steps=self.teacher_steps or 1),
        )
        say(speed.to_markdown(rows))
        if self.out:
            write_atomic(self.out, json.dumps([asdict(row) for row in rows], indent=1).encode())


@dataclass(frozen=True)
class WorldImage:
    """Write a still of the embedded world and print its caption: something to animate.

    Example: aad1 world-image 7 -o still.png
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


@dataclass(frozen=True)
class DemoCommand:
    """See the whole method work: distil the bundled teacher in minutes, score every stage, and look at it.

    Example: aad1 demo -o runs/demo
    """

    recipe: RecipeName = "demo"
    out: Out = None
    resume: ResumeFlag = False
    clips: Annotated[int, arg(help="test clips that every row of the table is measured on")] = 16
    shown: Annotated[int, arg(help="how many of them are on the page")] = 4

    def run(self, extra: Sequence[str]) -> None:
        """Run, and say where to look."""
        config = DemoConfig(self.clips, self.shown)
        page = Demo(recipe_of(self, extra), out_of(self), config, self.resume).run()
        say(f"open {page.resolve()} in a browser\nthe table is in {page.with_name('table.json')}")


Command = (
    Annotated[DemoCommand, subcommand("demo")]
    | Annotated[New, subcommand("new")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[WorldImage, subcommand("world-image")]
)


COMMANDS: list[str] = [get_args(command)[1].name for command in get_args(Command)]
HOST_NAME = re.compile(r"(\*\.)?[\w.-]+|[0-9A-Fa-f:]+")
GO_ON = ("demo", "prepare", "train", "distill")  # continue what they were stopped in


def recipe_of(command: New | Prepare | Train | Distill | DemoCommand, extra: Sequence[str]) -> Recipe:
    """The recipe a command names, with the values given beside it."""
    return load_recipe(command.recipe, extra, [field.name for field in fields(command)])


def dtype_of(command: Generate | Serve | Bench) -> torch.dtype | None:
    """The type of weights that a command names, None for the device's usual one."""
    return DTYPES[command.dtype] if command.dtype else None


def student_of(command: Generate | Serve | Bench) -> Student:
    """The student a command names, loaded as it says."""
    return load_student(
        command.model,
        student=command.student,
        device=command.device,
        dtype=dtype_of(command),
        compiled=command.compile,
    )


def warm_up(student: Student, size: tuple[int, int] | None = None, passes: Sequence[float] | None = None) -> None:
    """Warm a student up, and show how far that is."""
    with Progress("warming up", student.warming, unit="chunk") as bar:
        student.warm_up(size, passes, bar.advance)


def in_url(host: str) -> str:
    """A host as URLs and Host headers have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def out_of(command: Prepare | Train | Distill | DemoCommand) -> Path:
    """Where a command's results go: the folder that is given, or one named for the recipe."""
    return command.out or Path("runs") / Path(command.recipe).name.removesuffix(".yaml")


def say(text: str) -> None:
    """Print a line on stdout."""
    print(text, flush=True)


def refuse(extra: Sequence[str], command: type) -> None:
    """Raise UserError for the first word that a command without a recipe does not know."""
    if extra:
        names = [f"--{field.name}" for field in fields(command)]
        word = extra[0].partition("=")[0]
        raise UserError(f"'{word}' is not an option of this command{nearest(word, names)}")


def write_image(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write uint8 [height, width, 3]; raises UserError when it cannot be written."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"cannot write {path}: suffix {path.suffix!r}; use {', '.join(PICTURES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        warnings.showwarning = _show_warning
    keep_freed_memory()
    if words == ["--version"]:
        say(f"aad1 {version('aad1')}")
        return 0
    try:
        command, extra = parse(words)
        command.run(extra)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        code, line = _verdict(error, goes_on=words[0] in GO_ON)
        _complain(line)
        return code
    return 0


def parse(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command and the words it does not know: values of a recipe, or mistakes.

    Raises UserError with one line where tyro would print a box; ``--help`` prints and exits as ever.
    """
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UserError(f"there is no command '{words[0]}'{nearest(words[0], COMMANDS)}")
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(  # type: ignore[call-overload, no-any-return]
                Command, args=words or ["--help"], prog="aad1", description=DESCRIPTION, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(_unboxed(box.getvalue())) from None
        raise


def _unboxed(box: str) -> str:
    """The message of one of tyro's boxes: its title, and the lines down to the first rule."""
    title, *rows = [line.strip("╭╮╰╯│─-+| ") for line in box.strip().splitlines()]
    return f"{title.lower()}: {' '.join(rows[: rows.index('')] if '' in rows else rows)}"


def _verdict(error: BaseException, goes_on: bool) -> tuple[int, str]:
    """Exit code and line for what went wrong; ``goes_on``: whether the command can be continued."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        kept = "what was finished is kept: the same command goes on, with --resume where it has that option"
        return 130, str(error) or f"interrupted; {kept if goes_on else 'nothing was written'}"
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, BrokenPipeError):
        return 1, "whatever read the output has stopped reading"
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in first:
        return 2, f"not enough memory ({first}); use a smaller --size or batch, or a larger machine"
    return 1, f"internal error ({type(error).__name__}: {first}); --debug shows where; please report it"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _complain(f"warning: {message}")


def _complain(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"aad1: {line}", markup=False, emoji=False, highlight=False)
