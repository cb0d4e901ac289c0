"""A student's videos of a folder of pictures and prompts, made to be measured: the batch that `generate` runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from aad1.data.entries import ClipFile
from aad1.errors import UserError
from aad1.evaluation.folder import Videos
from aad1.models.vae import geometry
from aad1.streaming import Student, frame_count
from aad1.streaming.batch import Batch, Item, Job, Manifest, Mistakes, read_items

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SUFFIX = ".mkv"  # lossless: what is measured is what the model made
NOTHING_MADE = "; nothing was made"


def make_videos(name: str, batch: Batch, source: Path, usual: Item) -> Videos:
    """Make a video of each picture, but for those that are there already; ``batch`` writes SUFFIX files.

    source: a folder of pictures, each with its prompt in a .txt file of the same stem (else ``usual.prompt``, if there
    is one), or a .jsonl or .csv list as `generate --batch` reads it. A picture of a folder that cannot be used is
    named and the rest goes on; a list is refused as a whole. Raises UserError for a source without anything to make.
    """
    jobs, lost = _list_jobs(batch, source, usual) if source.is_file() else _folder_jobs(batch, source, usual)
    if not jobs:
        raise UserError("; ".join([f"{source} has nothing to animate", *lost[:3]]))
    outcome = batch.make(jobs)
    errors = {row["file"]: row["error"] for row in Manifest(batch.folder).rows if "error" in row}
    failed = [job for job in jobs if job not in outcome.whole]
    lost = [f"{name}: {line}" for line in [*lost, *(f"{j.item.name}: {errors.get(j.path.name)}" for j in failed)]]
    clips = [ClipFile(job.path, job.item.prompt, job.item.name) for job in outcome.whole]
    return Videos(name, clips, lost, chunk_frames(batch.student), token_side(batch.student))


def whole_chunks(student: Student, seconds: float, fps: float) -> float:
    """About as many seconds, after which a chunk ends: the first frame and whole chunks, at least one."""
    size = chunk_frames(student)
    return (1 + size * max(1, round((frame_count(seconds, fps) - 1) / size))) / fps


def chunk_frames(student: Student) -> int:
    """Pixel frames of a student's chunk."""
    return int(student.generator.config.num_frames_per_block) * geometry(student.vae).temporal


def token_side(student: Student) -> int:
    """Pixels along a side of a student's token, where a grid would show."""
    return int(student.generator.config.patch_size[-1]) * geometry(student.vae).spatial


def _list_jobs(batch: Batch, source: Path, usual: Item) -> tuple[list[Job], list[str]]:
    mistakes = Mistakes(source)
    return batch.plan(read_items(source, usual, mistakes), mistakes), []


def _folder_jobs(batch: Batch, folder: Path, usual: Item) -> tuple[list[Job], list[str]]:
    jobs, lost = list[Job](), list[str]()
    for path, name in _pictures(folder):
        try:
            item = replace(usual, name=name, image=path, prompt=_prompt(path, usual.prompt))
            jobs += batch.plan([item], Mistakes())
        except UserError as error:
            lost.append(str(error).removesuffix(NOTHING_MADE))
    return jobs, lost


def _pictures(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each picture of a folder and the name of its video: its stem, or its whole name where two share a stem."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a folder of pictures, or a .jsonl or .csv list of them")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    stems = Counter(path.stem.casefold() for path in found)
    yield from ((path, path.stem if stems[path.stem.casefold()] == 1 else path.name) for path in found)


def _prompt(picture: Path, usual: str) -> str:
    """What the .txt file beside a picture says."""
    path = picture.with_suffix(".txt")
    try:
        prompt = " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        prompt = usual
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} is not readable UTF-8 text; save the prompt of {picture.name} in it") from None
    if not prompt:
        raise UserError(f"{picture} has no prompt; write it into {path.name} beside it, or give --prompt for all")
    return prompt
