"""VBench-I2V's file names: a flat folder of {prompt}-{0..4}.mp4 and nothing else, pictures {prompt}.jpg.

VBench takes the first file's suffix for that of all, reads the prompt from the name, and finds the picture by it; so
a stray file or a sixth sample changes a result in silence. Segments of long rollouts, which only imaging quality
reads, are named {prompt}-{sample}.seg{nn}.mp4.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av

from aad1.errors import UserError
from aad1.evaluation.vbench.dimensions import SAMPLES

SUFFIX = ".mp4"  # what VBench reads besides .gif
LONGEST_NAME = 255  # bytes; the file systems' limit
SHOWN = 5  # of many mistakes of one kind
VIDEO = re.compile(r"(?P<prompt>.+)-(?P<sample>\d+)", re.DOTALL)
SEGMENT = re.compile(r"(?P<video>.+)\.seg(?P<index>\d+)", re.DOTALL)


def clean(prompt: str) -> str:
    """A prompt as a file name can hold it: runs of white space are one space, none at the ends."""
    return " ".join(prompt.split())


def video_name(prompt: str, sample: int) -> str:
    """ "a cat runs-3.mp4"; raises UserError for a prompt that no file name can hold."""
    stem = clean(prompt)
    if not stem:
        raise UserError("an empty prompt; VBench reads the prompt from the file's name, so give it one")
    if "/" in stem or "\0" in stem:
        raise UserError(f"prompt '{stem}' has a '/', which no file name can hold; write it without")
    if stem.startswith("."):
        raise UserError(f"prompt '{stem}' begins with a dot, so its files would be hidden; write it without")
    name = f"{stem}-{sample}{SUFFIX}"
    if (length := len(name.encode())) > LONGEST_NAME:
        raise UserError(
            f"prompt '{stem[:40]}...' makes a file name of {length} bytes; at most {LONGEST_NAME} are possible, "
            f"so shorten it by {length - LONGEST_NAME}"
        )
    return name


def segment_name(video: str, index: int) -> str:
    """Of a video's stem: "a cat runs-3.seg04.mp4"; raises UserError where that is too long."""
    name = f"{video}.seg{index:02d}{SUFFIX}"
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"'{name[:40]}...' is too long for a file name ({LONGEST_NAME} bytes); shorten the prompt")
    return name


class Parsed(NamedTuple):
    """What a name says: the prompt (= the picture's stem), the sample, and the segment (None for a whole video)."""

    prompt: str
    sample: int | None
    segment: int | None


def parse(stem: str) -> Parsed:
    """The parts of a file's stem; a stem without a sample is all prompt."""
    part = SEGMENT.fullmatch(stem)
    whole = part["video"] if part else stem
    named = VIDEO.fullmatch(whole)
    prompt, sample = (named["prompt"], int(named["sample"])) if named else (whole, None)
    return Parsed(prompt, sample, int(part["index"]) if part else None)


def refuse_collisions(names: Mapping[str, str]) -> None:
    """Raise UserError where two of {what it was: its file name} fall together, on some system at least.

    Some file systems take "A" for "a".
    """
    held = defaultdict[str, list[str]](list)
    for what, name in names.items():
        held[name.casefold()].append(what)
    for whats in held.values():
        if len(whats) > 1:
            raise UserError(f"{' and '.join(repr(what) for what in whats)} would be the same file; tell them apart")


# --- a folder of videos -----------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A folder of videos as VBench would take it.

    broken: videos that cannot be read, and why; problems: what else breaks VBench's rules, a line each.
    """

    path: Path
    videos: tuple[Path, ...]
    broken: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def stems(self) -> list[str]:
        """The videos' names without the suffix, sorted."""
        return [video.stem for video in self.videos]

    @property
    def segments(self) -> bool:
        """Whether these are segments of longer videos."""
        return bool(self.videos) and all(parse(stem).segment is not None for stem in self.stems)


def look(path: Path) -> Folder:
    """What a folder holds and what is wrong with it.

    Raises UserError when it is no folder, or has no videos at all.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give the flat folder of {{prompt}}-{{0..4}}{SUFFIX} files")
    entries = sorted(path.iterdir())
    videos = tuple(entry for entry in entries if entry.suffix == SUFFIX and entry.is_file() and entry.name[0] != ".")
    if not videos:
        raise UserError(f"{path} holds no {SUFFIX} files; `aad1 evaluate vbench export` makes them")
    strays = [entry.name for entry in entries if entry not in videos]
    broken, unlike = _video_problems(videos)
    problems = [
        *_listed("nothing but videos may be in the folder (VBench takes the first file's suffix for all)", strays),
        *_sample_problems([video.stem for video in videos]),
        *unlike,
    ]
    return Folder(path.resolve(), videos, tuple(broken), tuple(problems))


def _listed(what: str, names: Sequence[str]) -> list[str]:
    """One line for names that share a mistake, none where there are none."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what}: {', '.join(repr(name) for name in names[:SHOWN])}{more}"]


def _sample_problems(stems: Sequence[str]) -> list[str]:
    """Prompts whose samples are not exactly 0 to 4, names without a sample, segments beside whole videos."""
    parsed = {stem: parse(stem) for stem in stems}
    if all(p.segment is not None for p in parsed.values()):
        return []
    samples = defaultdict[str, set[int]](set)
    for p in parsed.values():
        if p.sample is not None and p.segment is None:
            samples[p.prompt].add(p.sample)
    wanted = set(range(SAMPLES))
    missing = [f"{p}: {sorted(wanted - held)}" for p, held in samples.items() if wanted - held]
    extra = [f"{p}: {sorted(held - wanted)}" for p, held in samples.items() if held - wanted]
    return [
        *_listed(
            "names that do not end in -0 to -4", [s for s, p in parsed.items() if p.sample is None and not p.segment]
        ),
        *_listed("segments beside whole videos", [s for s, p in parsed.items() if p.segment is not None]),
        *_listed(f"prompts without all {SAMPLES} samples, lacking", missing),
        *_listed(f"prompts with samples beyond {SAMPLES}, which VBench leaves out", extra),
    ]


class Shape(NamedTuple):
    """A video's frames, rate and (height, width)."""

    frames: int
    fps: float
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.frames} frames at {self.fps:g} fps, {self.size[1]}x{self.size[0]}"


def shape(video: Path) -> Shape:
    """Of a video; raises UserError where it cannot be read or has fewer than two frames."""
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise UserError(f"{video} holds no video; make it again")
            stream = container.streams.video[0]
            frames = sum(packet.size > 0 for packet in container.demux(stream))
            found = Shape(frames, float(stream.average_rate or 0), (stream.height, stream.width))
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{video} cannot be read ({reason}); make it again") from None
    if found.frames < 2:
        raise UserError(f"{video} has {found.frames} frame; VBench compares neighbouring frames, so give at least two")
    return found


def _video_problems(videos: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Videos that cannot be read, a line each, and shapes other than that of most."""
    broken, shapes = list[str](), defaultdict[Shape, list[str]](list)
    for video in videos:
        try:
            shapes[shape(video)].append(video.name)
        except UserError as error:
            broken.append(str(error))
    usual = max(shapes, key=lambda s: len(shapes[s]), default=None)
    other = [f"{name} ({s})" for s, names in shapes.items() if s != usual for name in names]
    return broken, _listed(f"videos unlike the other {len(shapes[usual])} ({usual})" if usual else "", other)


def fingerprint(files: Iterable[Path]) -> str:
    """What files are called and hold, in 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(files, key=lambda f: f.name):
        digest.update(f"{len(file.name)} {file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "blake2b").digest())
    return digest.hexdigest()
