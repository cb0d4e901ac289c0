"""A student's videos, or videos that are there already, as VBench-I2V wants them.

    OUT/videos/   flat: {prompt}-{0..4}.mp4 and nothing else (segments: {prompt}-{0..4}.seg{nn}.mp4)
    OUT/images/   {prompt}.jpg, the pictures as the student was shown them
    OUT/made/     what was made, under short names, with the manifest that a resumed call goes by

Videos are made by ``streaming.batch``, as `aad1 generate --batch` makes them. What is whole is linked into videos/
(copied where links cannot be made) in one step, so that nothing half-written is ever in it.
"""

from __future__ import annotations

import filecmp
import io
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aad1.data.entries import VIDEO_SUFFIXES
from aad1.data.lists import list_rows
from aad1.data.media import EXACT, VideoWriter, fit_image, open_image
from aad1.errors import UserError
from aad1.evaluation.vbench.dimensions import CAMERA, RATIOS, SAMPLES
from aad1.evaluation.vbench.environment import CROPS, check_clone
from aad1.evaluation.vbench.names import SUFFIX, clean, parse, refuse_collisions, segment_name, shape, video_name
from aad1.evaluation.vbench.run import official_rows
from aad1.files import write_atomic, write_errors
from aad1.progress import Progress
from aad1.streaming.batch import MANIFEST, Batch, Item, Job, Mistakes

SEEDS = (0, 1, 2, 3, 4)
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
CRF, PIXELS = 4, "yuv444p"  # of segments: 47 dB to the video they are cut from, where yuv420p is at 38 with any crf
JPEG_QUALITY = 98
COLUMNS = {"video": ("video", "path", "file"), "prompt": ("prompt", "caption", "text")}


# --- what is asked for ------------------------------------------------------------------------


def folder_items(folder: Path, usual: Item) -> list[Item]:
    """An item for each picture of a folder: its prompt is in the .txt of the same name, else it is the name itself.

    Raises UserError for a folder that is missing or has no pictures.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give --images a folder of pictures")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != ".")
    if not pictures:
        raise UserError(f"{folder} holds no pictures ({', '.join(PICTURES)}); put one there for each prompt")
    return [replace(usual, image=picture, prompt=_caption(picture)) for picture in pictures]


def _caption(picture: Path) -> str:
    sidecar = picture.with_suffix(".txt")
    try:
        return clean(sidecar.read_text(encoding="utf-8-sig")) if sidecar.exists() else clean(picture.stem)
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{sidecar} is not readable UTF-8 text; save it as such") from None


def official_items(clone: Path, ratio: str, usual: Item) -> list[Item]:
    """The official suite without camera motion: 355 pictures in this ratio.

    Raises UserError where the clone, its list or its pictures are missing.
    """
    if ratio not in RATIOS:
        raise UserError(f"ratio {ratio}; VBench-I2V has {', '.join(RATIOS)} (832x480 is 7-4)")
    clone = check_clone(clone)
    rows = [row for row in official_rows(clone) if "image_name" in row and set(row["dimension"]) != {CAMERA}]
    folder = clone / CROPS / ratio
    lost = [row["image_name"] for row in rows if not (folder / row["image_name"]).is_file()]
    if lost or not rows:
        raise UserError(
            f"{folder} lacks {len(lost)} of {len(rows)} pictures{f' ({lost[0]!r})' if lost else ''}; "
            "run VBench's vbench2_beta_i2v/download_data.sh in the clone"
        )
    return [replace(usual, image=folder / row["image_name"], prompt=row["prompt_en"]) for row in rows]


@dataclass(frozen=True)
class Sample:
    """A video that is asked for: ``item`` names it in OUT/made, ``name`` in the flat one."""

    item: Item
    name: str


def samples(items: Sequence[Item], seeds: Sequence[int], any_number: bool = False) -> list[Sample]:
    """Five samples of each item, sample k from the k-th seed.

    Raises UserError for other than five seeds (unless any_number), for prompts that cannot be names, and for two that
    would be the same file; all of them at once.
    """
    if len(set(seeds)) != len(seeds) or (len(seeds) != SAMPLES and not any_number) or not seeds:
        raise UserError(
            f"seeds {list(seeds)}; VBench-I2V takes {SAMPLES} samples of each picture, so give {SAMPLES} seeds"
        )
    mistakes, named = Mistakes(), dict[str, str]()
    for index, item in enumerate(items):
        with mistakes.noted(0):
            named[f"{item.image.name} ({index}): {item.prompt}"] = video_name(item.prompt, 0)
    with mistakes.noted(0):
        refuse_collisions(named)
    mistakes.refuse()
    return [
        Sample(replace(item, name=f"{index:04d}-{k}", seed=seed), video_name(item.prompt, k))
        for index, item in enumerate(items)
        for k, seed in enumerate(seeds)
    ]


# --- making -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """What an export left: files in the flat folder, how many were there already, and what failed, a line each."""

    videos: Path
    count: int
    there: int
    failed: tuple[str, ...] = ()


def generate(batch: Batch, wanted: Sequence[Sample], out: Path) -> Export:
    """Make the samples that are missing or have changed; ``batch.folder`` is OUT/made.

    Raises UserError for whatever can be found wrong beforehand, and where the folder holds something else.
    """
    refuse_strays(out / "videos", [sample.name for sample in wanted])
    mistakes = Mistakes()
    jobs = batch.plan([sample.item for sample in wanted], mistakes)
    named = {sample.item.name: sample for sample in wanted}
    _write_images(jobs, named, out / "images")
    outcome = batch.make(jobs)
    there = 0
    for job in jobs:
        target = out / "videos" / named[job.item.name].name
        if job in outcome.whole:
            there += not place(job.path, target, out / "made")
        else:
            target.unlink(missing_ok=True)  # of other settings
    failed = [f"{job.item.prompt}, seed {job.item.seed}" for job in jobs if job not in outcome.whole]
    return Export(out / "videos", len(outcome.whole), there, tuple(failed))


def _write_images(jobs: Iterable[Job], named: dict[str, Sample], folder: Path) -> None:
    """The pictures in the videos' shape, each once; VBench compares the videos with these."""
    written = set[str]()
    for job in jobs:
        stem = parse(Path(named[job.item.name].name).stem).prompt
        if stem not in written:
            height, width = job.settings["size"]
            picture = Image.fromarray(fit_image(open_image(job.item.image), (height, width)))
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            with write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / f"{stem}.jpg", data.getvalue())
            written.add(stem)


def refuse_strays(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError where a folder holds anything but these names: VBench would take it along."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strays := sorted(held - set(names)):
        raise UserError(
            f"{folder} also holds {len(strays)} other files ('{strays[0]}'); move them out, or give a new -o"
        )


def place(source: Path, target: Path, work: Path) -> bool:
    """Link a whole file (copy it where links cannot be made) to its name in one step; False if it was there."""
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return False
    temporary = work / ".placing"
    with write_errors(target):
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    return True


# --- videos that are there already ------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A video that exists, and the stem it gets: {prompt}-{sample}."""

    video: Path
    stem: str


def given_videos(source: Path, any_number: bool = False) -> list[Given]:
    """The videos of a folder or list, named by the rule.

    source: a folder that `aad1 generate` wrote (with its manifest), a folder of {prompt}-{k} files, or a .jsonl or .csv
    list with video and prompt. Samples of a prompt are numbered in the list's order. Raises UserError for all that is
    wrong at once: names, missing files, prompts without five samples (unless any_number).
    """
    manifest = source / MANIFEST
    listed = manifest if manifest.is_file() else source
    if not source.exists():
        raise UserError(f"there is no {source}; give a folder of videos, or a .jsonl or .csv list of video and prompt")
    pairs = _folder_pairs(source) if listed.is_dir() else _listed_pairs(listed)
    mistakes, grouped = Mistakes(), defaultdict[str, list[Path]](list)
    for video, prompt in pairs:
        with mistakes.noted(0):
            if not video.is_file():
                raise UserError(f"{video} does not exist; make it again, or take it out of {listed}")
            video_name(prompt, 0)
            grouped[clean(prompt)].append(video)
    for prompt, videos in grouped.items():
        with mistakes.noted(0):
            if len(videos) != SAMPLES and not any_number:
                raise UserError(f"'{prompt}' has {len(videos)} samples; VBench-I2V takes {SAMPLES}")
    with mistakes.noted(0):
        refuse_collisions({prompt: video_name(prompt, 0) for prompt in grouped})
    mistakes.refuse()
    return [Given(v, Path(video_name(p, k)).stem) for p, videos in grouped.items() for k, v in enumerate(videos)]


def _folder_pairs(folder: Path) -> list[tuple[Path, str]]:
    videos = [p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and p.name[0] != "."]
    if not videos:
        raise UserError(f"{folder} holds no videos; give a folder of {{prompt}}-{{0..4}} files, or a list")
    parsed = {video: parse(video.stem) for video in videos}
    if wrong := sorted(video.name for video, p in parsed.items() if p.sample is None):
        raise UserError(
            f"{folder} has {len(wrong)} names without -0 to -4 ('{wrong[0]}'); give a list of video and prompt"
        )
    ordered = sorted(videos, key=lambda video: (parsed[video].prompt, parsed[video].sample))
    return [(video, parsed[video].prompt) for video in ordered]


def _listed_pairs(source: Path) -> list[tuple[Path, str]]:
    pairs = []
    for line, row in list_rows(source, lambda columns: None):
        if row is not None and "error" in row:  # a manifest's row of a video that failed
            continue
        video, prompt = (next((row[c] for c in names if row and row.get(c)), None) for names in COLUMNS.values())
        if not isinstance(video, str) or not isinstance(prompt, str):
            raise UserError(f"{source}, line {line}: give a video and a prompt (columns video, prompt)")
        pairs.append((source.parent / video, prompt))
    if not pairs:
        raise UserError(f"{source} lists no videos; give each a line with video and prompt")
    return pairs


def adopt(given: Sequence[Given], out: Path) -> Export:
    """Link videos into OUT/videos under VBench's names; what cannot be read is left out and named."""
    if wrong := [g.video.name for g in given if g.video.suffix != SUFFIX]:
        raise UserError(
            f"{len(wrong)} videos are no {SUFFIX} ('{wrong[0]}'), which VBench reads; write them as {SUFFIX}"
        )
    refuse_strays(out / "videos", [f"{g.stem}{SUFFIX}" for g in given])
    there, failed = 0, list[str]()
    with Progress("exporting", len(given), unit="video") as bar:
        for g in given:
            try:
                shape(g.video)
                there += not place(g.video, out / "videos" / f"{g.stem}{SUFFIX}", out / "made")
            except UserError as error:
                failed.append(str(error))
            bar.advance(failed=len(failed))
    return Export(out / "videos", len(given) - len(failed), there, tuple(failed))


# --- segments of long rollouts ----------------------------------------------------------------


def cut(given: Sequence[Given], out: Path, seconds: float = 2.0) -> Export:
    """Cut videos into segments of ``seconds``; a rest shorter than that is left out.

    What cannot be read or is shorter than two segments is left out and named; whole segments are kept.
    """
    if not seconds > 0:
        raise UserError(f"segments of {seconds:g} seconds; give a number above 0 (AAD-1: 2)")
    names = {g: _segment_names(g, seconds) for g in given}
    refuse_strays(out / "videos", [name for parts in names.values() for name in parts])
    count, there, failed = 0, 0, list[str]()
    with Progress("cutting", len(given), unit="video") as bar:
        for g, parts in names.items():
            try:
                kept = _cut(g, parts, out, seconds)
                there, count = there + kept, count + len(parts)
            except UserError as error:
                failed.append(str(error))
            bar.advance(failed=len(failed))
    return Export(out / "videos", count, there, tuple(failed))


def _segment_names(given: Given, seconds: float) -> list[str]:
    """Names of the segments; none for a video that cannot be cut, which ``_cut`` explains."""
    try:
        whole = shape(given.video)
    except UserError:
        return []
    return [segment_name(given.stem, i) for i in range(whole.frames // max(1, round(seconds * whole.fps)))]


def _cut(given: Given, names: Sequence[str], out: Path, seconds: float) -> int:
    """Write a video's segments; returns how many were there. Raises UserError for one that cannot be cut."""
    whole = shape(given.video)
    length = max(1, round(seconds * whole.fps))
    if len(names) < 2:
        raise UserError(
            f"{given.video} is {whole.frames / whole.fps:.1f} s long; drift needs two segments of {seconds:g} s"
        )
    targets = [out / "videos" / name for name in names]
    if all(target.exists() and shape(target).frames == length for target in targets):
        return len(names)
    frames = read_stream(given.video)
    work = out / "made" / f"segment{SUFFIX}"
    for target in targets:
        with VideoWriter(work, fps=whole.fps, crf=CRF, pixel_format=PIXELS) as video:
            for frame in islice(frames, length):
                video.write(frame[None])
        if video.frames < length:
            raise UserError(f"{given.video} ends before its {whole.frames} frames; make it again")
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(work, target)
    return 0


def read_stream(video: Path) -> Iterator[NDArray[np.uint8]]:
    """A video's frames, uint8 [height, width, 3], one at a time; raises UserError where it cannot be decoded."""
    try:
        with av.open(str(video)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24", interpolation=EXACT)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{video} cannot be read ({reason}); make it again") from None
