"""Where evaluated clips come from: controls, the truth through the VAE, a teacher, students, a folder of videos.

A source says what its clips depend on, so that what was measured before is used again only while that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from aad1.data.clips import read_whole
from aad1.data.entries import VIDEO_SUFFIXES, ClipError
from aad1.data.world import FPS, SIZE, Clip
from aad1.errors import UserError, nearest
from aad1.evaluation.models import student_samples, teacher_samples, vae_samples
from aad1.evaluation.protocols import Protocol
from aad1.evaluation.world import CONTROLS, Sample
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import WanFolder, folder_hash
from aad1.recipe import Recipe
from aad1.teacher_sampling import TeacherSampling

BESIDE = ("truth", "truth_vae", "frozen", "constant_velocity", "teacher")  # what models are shown beside
RATE_TOLERANCE = 0.01  # frames a second


class Lost(NamedTuple):
    """A clip that a source cannot give, and why."""

    reason: str


Named = Sequence[tuple[str, Clip]]


@dataclass(frozen=True)
class Source:
    """samples: one for each named clip of a protocol, in order; frames: the one length that it can make, if it is one;
    key: what the samples depend on, beside the protocol; saved: it has what it has, other clips cannot be asked of it.
    """

    name: str
    samples: Callable[[Protocol, Named], Iterable[Sample | Lost]]
    key: Mapping[str, Any]
    frames: int | None = None
    saved: bool = False


def beside(name: str, folder: WanFolder, recipe: Recipe, seed: int = 0, allowed: Sequence[str] = BESIDE) -> Source:
    """One of BESIDE; the recipe says how a teacher is sampled.

    Raises UserError for another name, which tells what the caller allows.
    """
    if name in CONTROLS:
        return control(name)
    if name == "truth_vae":
        return through_vae(folder)
    if name == "teacher":
        return teacher(folder, recipe.showing.teacher, recipe.negative_prompt, recipe.data.frames, seed)
    raise UserError(f"there is no row '{name}'{nearest(name, allowed)}")


def control(name: str) -> Source:
    """One of CONTROLS, which need no model."""
    make = CONTROLS[name]
    return Source(name, lambda _, clips: (Sample(make(clip), clip.truth) for _, clip in clips), {"control": name})


def through_vae(folder: WanFolder) -> Source:
    """The truth, encoded and decoded: what no model of these latents can surpass."""
    key = {"vae": folder_hash(folder.path / "vae")}
    return Source("truth_vae", lambda _, clips: vae_samples(folder.vae(), _clips(clips)), key)


def teacher(folder: WanFolder, sampling: TeacherSampling, negative: str, frames: int, seed: int = 0) -> Source:
    """The many-step teacher; ``frames`` is the length it was trained on."""

    def samples(_: Protocol, clips: Named) -> Iterable[Sample]:
        model = folder.transformer(CausalWanTransformer3DModel).eval().requires_grad_(False)
        vae, text = folder.vae(), folder.text()
        return teacher_samples(model, vae, text, _clips(clips), sampling, negative, seed=seed)

    key = {**_parts(folder, folder.path / "transformer"), **asdict(sampling), "not": negative, "seed": seed}
    return Source("teacher", samples, key, frames)


def student(name: str, folder: WanFolder, place: Path, seed: int = 0) -> Source:
    """A student, by the folder that holds its weights, with its own passes."""

    def samples(_: Protocol, clips: Named) -> Iterable[Sample]:
        model = folder.transformer_at(CausalWanTransformer3DModel, place).eval().requires_grad_(False)
        return student_samples(model, folder.vae(), folder.text(), _clips(clips), seed=seed)

    if not (place / "config.json").is_file():
        raise UserError(f"'{place}' holds no student; give the folder that a run exported (.../final/student)")
    return Source(name, samples, {**_parts(folder, place), "seed": seed})


def _parts(folder: WanFolder, transformer: Path) -> dict[str, str]:
    places = {"vae": folder.path / "vae", "text": folder.path / "text_encoder", "transformer": transformer}
    return {name: folder_hash(place) for name, place in places.items()}


def _clips(named: Named) -> list[Clip]:
    return [clip for _, clip in named]


# --- videos that were made before -------------------------------------------------------------


def videos(name: str, folder: Path) -> Source:
    """Videos named as the protocol names its clips, in ``folder`` or in its subfolder of the protocol's name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one of videos named like test-determined-00000.mkv")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if _is_video(path)}
    if not found:
        raise UserError(f"{folder} holds no videos ({', '.join(VIDEO_SUFFIXES)})")
    facts = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in found.items()}
    return Source(name, partial(_read_all, folder), {"videos": facts}, saved=True)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _read_all(folder: Path, protocol: Protocol, clips: Named) -> Iterator[Sample | Lost]:
    for name, clip in clips:
        places = [place for place in (folder / protocol.name, folder) if place.is_dir()]
        paths = [path for place in places for path in sorted(place.glob(f"{name}.*")) if _is_video(path)]
        yield _read(paths[0], clip) if paths else Lost(f"{name} is not in {folder}")


def _read(path: Path, clip: Clip) -> Sample | Lost:
    """The clip's first frames, as they are: nothing is resized or repeated to make them fit."""
    try:
        frames, fps = read_whole(path)
    except ClipError as error:
        return Lost(str(error))
    wanted = f"{len(clip.frames)} frames of {SIZE}x{SIZE} at {FPS:g} a second"
    if len(frames) < len(clip.frames) or frames.shape[1:3] != (SIZE, SIZE) or abs(fps - FPS) > RATE_TOLERANCE:
        count, height, width, _ = frames.shape
        return Lost(f"{path}: {count} frames of {width}x{height} at {fps:g} a second; {wanted} are asked for")
    return Sample(frames[: len(clip.frames)], clip.truth)
