"""Many videos in one call: a list of pictures and prompts in; a folder of videos and a manifest of them out.

Everything that is cheap to check is checked for all of them before the first is made. What fails after that
costs its own video alone, and the same call again makes what is missing: ``manifest.jsonl`` says with which
settings each file was made.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from aad1.data.lists import list_rows
from aad1.data.media import VideoWriter, open_image, read_metadata
from aad1.errors import UserError, nearest
from aad1.files import sync, write_atomic, write_errors
from aad1.models.checkpoint_io import folder_hash, open_folder
from aad1.models.text import check_words, clean_prompt
from aad1.progress import Progress
from aad1.streaming.noise import check_seed
from aad1.streaming.record import Recording, check_recording, enlargement, frame_count, record
from aad1.streaming.session import Student, check_passes, picture_size
from aad1.streaming.student import student_folder
from aad1.workspace import model_path

MANIFEST = "manifest.jsonl"
REQUIRED = ("image", "prompt")
SHOWN = 10  # mistakes that are listed
SLUG = 40  # characters of a prompt in a name
LONGEST_NAME = 200  # bytes; file systems allow 255, and VideoWriter's hidden name is longer
FRAME_NAME = re.compile(r"\d{5,}\.png")  # as VideoWriter calls them


@dataclass(frozen=True)
class Item:
    """One video that is asked for: ``seconds`` long, of ``size`` (height, width) or the student's own.

    line: where it stands in its list, 0 for what no list asked for.
    """

    name: str
    image: Path
    prompt: str
    seed: int
    seconds: float
    size: tuple[int, int] | None = None
    line: int = 0


class Mistakes:
    """What is wrong with a batch, collected so that all of it can be mended at once."""

    def __init__(self, source: Path | None = None) -> None:
        self.source = source
        self._found: dict[str, int] = {}  # the line each is in; the same is said once

    @contextmanager
    def noted(self, line: int) -> Iterator[None]:
        """A UserError in this block is noted as one of this line of the source; what follows it is skipped."""
        try:
            yield
        except UserError as error:
            where = f"{self.source}, line {line}: " if line else ""
            self._found[f"{where}{error}"] = line

    def refuse(self) -> None:
        """Raise UserError with all that were noted, the first ten line by line; do nothing if there are none."""
        found = sorted(self._found, key=self._found.__getitem__)
        if len(found) == 1:
            raise UserError(f"{found[0]}; nothing was made")
        if found:
            rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            raise UserError("\n  ".join([f"{len(found)} mistakes; nothing was made", *found[:SHOWN], *rest]))


# --- what is asked for ------------------------------------------------------------------------


def seed_items(seeds: Sequence[int], usual: Item) -> list[Item]:
    """The same video from several seeds, named for them; raises UserError for seeds that are none or the same."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {list(seeds)}; give one or more whole numbers, each once")
    return [replace(usual, name=f"seed-{check_seed(seed)}", seed=seed) for seed in seeds]


def read_items(source: Path, usual: Item, mistakes: Mistakes) -> list[Item]:
    """The items of a .jsonl or .csv list; paths are relative to its folder, what a line leaves out is as ``usual``.

    Lines with mistakes are noted, and left out when they lack a picture or a prompt. Raises UserError for a list
    that cannot be read, is empty, or whose header is wrong.
    """
    if source.suffix.lower() not in (".jsonl", ".csv"):
        raise UserError(f"{source} is no list of videos; give a .jsonl file, or a .csv file with a header")
    rows = list_rows(source, partial(_check_header, source))
    if not rows:
        raise UserError(f"{source} lists no videos; give each a line with {' and '.join(REQUIRED)}")
    items = [_item(row, replace(usual, line=line), source.parent, mistakes) for line, row in rows]
    return [item for item in items if item is not None]


def _check_header(source: Path, columns: tuple[str, ...]) -> None:
    mistakes = Mistakes(source)
    for column in columns:
        with mistakes.noted(1):
            _check_column(column)
    with mistakes.noted(1):
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise UserError(f"column {' and column '.join(twice)} more than once; name each once")
    with mistakes.noted(1):
        if lacking := [column for column in REQUIRED if column not in columns]:
            raise UserError(f"no column {' and no column '.join(lacking)}; the first line names the columns")
    mistakes.refuse()  # or every line would repeat them


def _item(row: Mapping[Any, object] | None, usual: Item, folder: Path, mistakes: Mistakes) -> Item | None:
    """The item of a list's row, or None without picture and prompt; empty values count as not given."""
    found: dict[str, Any] = {}
    given = {column: value for column, value in (row or {}).items() if value not in (None, "")}
    with mistakes.noted(usual.line):
        if row is None:
            raise UserError('not a JSON object; write {"image": "...", "prompt": "..."}')
        for column in REQUIRED:
            if column not in given:
                raise UserError(f"no {column}; every video needs {' and '.join(REQUIRED)}")
    for column, value in given.items():
        with mistakes.noted(usual.line):
            _check_column(column)
            found[column] = COLUMNS[column](value)
    if not found.keys() >= set(REQUIRED):
        return None
    found["image"] = folder / found["image"]
    return replace(usual, **{"name": _usual_name(usual.line, found["prompt"]), **found})


def _usual_name(line: int, prompt: str) -> str:
    """A name that sorts as the list does and says what is to be seen."""
    words = re.sub(r"\W+", "-", clean_prompt(prompt).lower()).strip("-")
    whole = words if len(words) <= SLUG else words[: SLUG + 1].rpartition("-")[0] or words[:SLUG]
    return f"{line:04d}-{whole}".strip("-")


def _check_column(column: object) -> None:
    if column is None:  # DictReader's key for what stands beyond the last column
        raise UserError('more values than columns; put "quotes" around a value that has a comma')
    if column not in COLUMNS:
        raise UserError(f"unknown column '{column}'{nearest(str(column), COLUMNS)}")


def _text(column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{column} {value!r}; use text")
    return value


# Numbers go through str(), for int(0.5) and int(True) are whole numbers to Python.


def _seed(value: object) -> int:
    try:
        return check_seed(int(str(value)))
    except ValueError:
        raise UserError(f"seed {value!r}; use a whole number, 0 or larger") from None


def _seconds(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise UserError(f"seconds {value!r}; use a number above 0") from None


def _size(value: object) -> tuple[int, int]:
    sides = value.lower().split("x") if isinstance(value, str) else value if isinstance(value, list) else ()
    try:
        height, width = (int(str(side)) for side in sides)
    except ValueError:
        raise UserError(f"size {value!r}; use HEIGHTxWIDTH, such as 480x832") from None
    return height, width


def _name(value: object) -> str:
    """A name that stays in its folder, on any system."""
    good = isinstance(value, str) and value.isprintable() and not re.search(r"^\.|[/\\:]", value)
    if not good or len(str(value).encode()) > LONGEST_NAME:
        raise UserError(
            f"name {value!r}; use text of up to {LONGEST_NAME} bytes, without slashes or colons or a dot in front"
        )
    return str(value)


COLUMNS: dict[str, Callable[[object], Any]] = {
    "image": partial(_text, "image"),
    "prompt": partial(_text, "prompt"),
    "seed": _seed,
    "seconds": _seconds,
    "name": _name,
    "size": _size,
}


# --- what was made ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """An item that can be made: where to, and all that decides what its video shows."""

    item: Item
    path: Path
    settings: Mapping[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """What the manifest says of it before it is made."""
        item, image = self.item, str(self.item.image.absolute())
        about = {"name": item.name, "file": self.path.name, "image": image, "seconds": item.seconds}
        return about | dict(self.settings)


class Manifest:
    """A folder's ``manifest.jsonl``: a line of JSON for each file, in the order in which they were finished.

    Raises UserError for a file of that name that is something else.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MANIFEST
        self.rows = self._read()

    def _read(self) -> list[dict[str, Any]]:
        try:
            *lines, last = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); choose another folder") from None
        rows = [_object(line) for line in lines]
        if None in rows:
            line = rows.index(None) + 1
            raise UserError(f"{self.path}, line {line} is no JSON object, so it is not aad1's; choose another folder")
        rows.append(_object(last))  # it may be torn, when whoever wrote it was killed
        return [row for row in rows if row is not None]

    def holds(self, job: Job) -> bool:
        """Whether this very video was made, and its file is still there."""
        rows = [row for row in self.rows if row.get("file") == job.path.name and "error" not in row]
        return bool(rows) and job.path.exists() and all(rows[-1].get(k) == v for k, v in job.settings.items())

    def drop(self, jobs: Iterable[Job]) -> None:
        """Forget what was said of files that are about to be made (again)."""
        stale = {job.path.name for job in jobs}
        self.rows = [row for row in self.rows if row.get("file") not in stale]
        whole = b"".join(_line(row) for row in self.rows)
        if self.path.exists() and self.path.read_bytes() != whole:
            write_atomic(self.path, whole)

    def add(self, row: dict[str, Any]) -> None:
        """Append a line."""
        self.rows.append(row)
        with write_errors(self.path):
            with self.path.open("ab") as file:
                file.write(_line(row))
            sync(self.path)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


# --- making -----------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A picture file's (height, width), and a hash of its bytes."""

    size: tuple[int, int]
    hash: str


@dataclass(frozen=True)
class Outcome:
    """The jobs whose videos are there now, how many of them were there already, and how many others failed."""

    whole: tuple[Job, ...]
    there: int
    failed: int


@dataclass(frozen=True)
class Batch:
    """A folder of videos and what all of them have in common; arguments as for ``Student.session`` and ``record``.

    suffix: .mp4, .mkv, .gif, .webp, or "" for folders of PNG frames. weights: ``weights_hash`` of the student, so that
    what another of the same name has made counts as changed.
    """

    student: Student
    folder: Path
    suffix: str = ".mp4"
    fps: float = 16.0
    scale: int | None = None
    passes: tuple[float, ...] | None = None
    first_passes: tuple[float, ...] | None = None
    weights: str = ""

    def plan(self, items: Iterable[Item], mistakes: Mistakes) -> list[Job]:
        """Check all that can be checked without making a video; writes nothing.

        Raises:
            UserError: for everything that is wrong with the items, what was noted before included.
        """
        jobs, names, look = [], dict[str, Item](), cache(_look)
        for item in items:
            with mistakes.noted(item.line):
                check_words(self.student.text.tokenizer, [clean_prompt(item.prompt)])
            with mistakes.noted(item.line):
                self._check_name(item, names)
            with mistakes.noted(item.line):
                jobs.append(self._job(item, look(item.image)))
        mistakes.refuse()
        return jobs

    def make(self, jobs: Sequence[Job]) -> Outcome:
        """Make what is not there yet, one after the other; each is in the manifest as soon as it is finished.

        Raises:
            UserError: when the folder or its manifest cannot be written. What fails otherwise is counted.
        """
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        manifest, failed = Manifest(self.folder), list[Job]()
        missing = [job for job in jobs if not manifest.holds(job)]
        there = len(jobs) - len(missing)
        manifest.drop(missing)
        with Progress("generating", len(jobs), done=there, unit="video") as bar:
            for job in missing:
                row = self._made(job, bar)
                manifest.add(row)
                failed += [job] if "error" in row else []
                bar.advance(failed=len(failed))
        return Outcome(tuple(job for job in jobs if job not in failed), there, len(failed))

    def _check_name(self, item: Item, names: dict[str, Item]) -> None:
        first = names.setdefault(item.name.casefold(), item)  # some file systems take "A" for "a"
        if first is not item:
            raise UserError(f"name '{item.name}' is that of line {first.line} too; give each its own")
        if not self.suffix and "." in item.name:
            raise UserError(f"name '{item.name}' has a dot, which folders of frames cannot have; leave it out")

    def _job(self, item: Item, picture: Picture) -> Job:
        student, path = self.student, self.folder / f"{item.name}{self.suffix}"
        size = picture_size(student.generator, student.vae, picture.size, item.size)
        frames, scale = frame_count(item.seconds, self.fps), self.scale or enlargement(size)
        passes = check_passes(student.generator.config.passes if self.passes is None else self.passes)
        check_recording(path, frames, size, fps=self.fps, scale=scale)
        if not _is_ours(path):
            VideoWriter(path, fps=self.fps, scale=scale)  # refuses a place that cannot be written
        settings = {
            "prompt": item.prompt,
            "image_hash": picture.hash,
            "seed": item.seed,
            "frames": frames,
            "fps": self.fps,
            "size": list(size),
            "scale": scale,
            "model": student.name,
            "weights": self.weights,
            "dtype": str(student.generator.dtype).removeprefix("torch."),
            "passes": list(passes),
            "first_passes": list(passes if self.first_passes is None else check_passes(self.first_passes)),
        }
        return Job(item, path, settings)

    def _made(self, job: Job, bar: Progress) -> dict[str, Any]:
        """Make a job's video; returns its row of the manifest, which says what went wrong if something did."""
        try:
            account = self._record(job, bar).account
        except Exception as error:  # whatever it was: a night's other videos must not be lost with this one
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            bar.print(f"{job.item.name}: {reason}")
            return job.row | {"error": reason}
        speed = {"first_frame_s": account.first_frame, "frames_per_s": account.fps}
        return job.row | {name: round(value or 0.0, 4) for name, value in speed.items()}

    def _record(self, job: Job, bar: Progress) -> Recording:
        item, total = job.item, job.settings["frames"]
        levels = {"passes": self.passes, "first_passes": self.first_passes}
        session = self.student.session(open_image(item.image), item.prompt, seed=item.seed, size=item.size, **levels)
        if job.path.is_dir():  # frames made with other settings; ``plan`` has refused every other folder
            shutil.rmtree(job.path)

        def advance(_: int) -> None:
            bar.advance(0, video=item.name, frames=f"{min(session.account.frames, total)}/{total}")

        return record(session, total, job.path, fps=self.fps, scale=job.settings["scale"], advance=advance)


def weights_hash(model: str, student: str) -> str:
    """What a student and the VAE and text encoder beside it hold, in 16 hexadecimal digits; as for ``load_student``."""
    folder = open_folder(model_path(model))
    own = student_folder(folder, student)
    hashes = [folder_hash(part) for part in (own, folder.path / "vae", folder.path / "text_encoder")]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _look(path: Path) -> Picture:
    height, width, _ = open_image(path).shape
    return Picture((height, width), hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def _is_ours(path: Path) -> bool:
    """Whether this is a folder that holds frames of a video of ours and nothing else, so that it may be replaced."""
    try:
        shown = [file.name for file in path.iterdir() if not file.name.startswith(".")]
        return all(FRAME_NAME.fullmatch(name) for name in shown) and "aad1" in read_metadata(path)
    except (OSError, ValueError):
        return False
