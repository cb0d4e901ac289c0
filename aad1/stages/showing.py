"""Held-out samples during training: rolled out, decoded, measured, and left as a video to look at.

Clips of the embedded world are measured against their truth; any other data by its motion relative to
the real clips, since there is no truth to compare with. Brightness, colour and a grid of tokens are looked for in
both, beside the real clips as the autoencoder gives them back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from aad1.data.latents import LatentStore
from aad1.data.media import VideoWriter, tensor_to_video
from aad1.data.prepare import parse_world_source
from aad1.data.world import Truth, sample_scene, simulate
from aad1.flow import Noise
from aad1.limits import Count
from aad1.measures.appearance import grid_peak
from aad1.measures.motion import MotionReport, luma, measure_motion, saturation, slope_per_100
from aad1.measures.reference import Reference
from aad1.measures.world import measure_clip, pooled
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import TextEncoder
from aad1.models.vae import decode_video, geometry
from aad1.parallel.crew import ALONE, Crew
from aad1.rollout import roll_clip
from aad1.teacher_sampling import TeacherSampling, sample_teacher
from aad1.training.randomness import Draws

SHOWN = ("rho", "kappa", "freeze", "presence", "id_ok", "law_residual", "quality", "heading")
NOISE_SEED = 20_000
SMALL_PICTURE = 128


@dataclass(frozen=True)
class ShowingConfig:
    """clips: how many held-out clips; teacher: how it is sampled when it is shown, here and by the demo."""

    clips: Count = 8
    teacher: TeacherSampling = field(default_factory=TeacherSampling)


@dataclass
class Showing:
    """Held-out clips of ``store`` and all that is needed to imitate them.

    The groups of a crew imitate some of the clips each; its leader decodes, measures and writes, and tells the others.
    """

    config: ShowingConfig
    store: LatentStore
    vae: AutoencoderKLWan
    text: TextEncoder
    levels: Sequence[float]
    negative_prompt: str
    device: torch.device
    crew: Crew = ALONE

    def student(self, generator: CausalWanTransformer3DModel, path: Path) -> dict[str, float]:
        """Animate the held-out images with the student's own passes; truth above, student below."""
        own = self._own
        image, text, noise = self._latents[own, :, :1], self._text[own], self._noise(1)[own]
        latents = roll_clip(generator, image, text, noise, levels=self.levels, renoise=self._renoise())
        return self._measure(latents, path, image_given=True, period=self._token_side(generator))

    def teacher(self, teacher: CausalWanTransformer3DModel, path: Path) -> dict[str, float]:
        """Sample the held-out captions with the many-step teacher, and the images where the sampling gives them."""
        own, sampling = self._own, self.config.teacher
        image, text, noise = self._latents[own, :, :1], self._text[own], self._noise(0)[own]
        negative = self.text.embed([self.negative_prompt] * len(own)).to(self.device)
        latents = sample_teacher(teacher, noise, text, negative, sampling, self._renoise(), image)
        return self._measure(latents, path, image_given=sampling.clean_image, period=self._token_side(teacher))

    def _token_side(self, transformer: CausalWanTransformer3DModel) -> int:
        """Pixels along a side of a token, where a grid would show."""
        return int(transformer.config.patch_size[-1]) * geometry(self.vae).spatial

    def _measure(self, latents: Tensor, path: Path, image_given: bool, period: int) -> dict[str, float]:
        """What this process's group has made, with all that others have."""
        leads_group = self.crew.rank % (self.crew.ranks // self.crew.groups) == 0  # its others have the same clips
        made = latents if self.crew.ranks == 1 else latents.cpu()
        everyones = self.crew.collect(made if leads_group else None)
        measured: dict[str, float] = {}
        if self.crew.leads:
            together = torch.cat([one for one in everyones if one is not None])[: self._count]
            measured = self._measure_all(together.to(self.device), path, image_given, period)
        return self.crew.tell(measured)

    @property
    def _own(self) -> list[int]:
        """The clips that this group imitates: as many as any other, so some come twice where they do not divide."""
        share = math.ceil(self._count / self.crew.groups)
        return [index % self._count for index in range(self.crew.group * share, (self.crew.group + 1) * share)]

    def _measure_all(self, latents: Tensor, path: Path, image_given: bool, period: int) -> dict[str, float]:
        made = self._decode(latents)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [self._real, made], fps=self.store.manifest.fps)
        of_world = all(row["source"].startswith("world:") for row in self._rows)
        measured = self._against_truth(made, image_given) if of_world else self._against_real(made)
        return measured | looks(made, self._real, period)

    def _against_truth(self, made: NDArray[np.uint8], image_given: bool) -> dict[str, float]:
        truths = [world_truth(row["source"], made.shape[1]) for row in self._rows]
        clips = [
            measure_clip(frames, Reference.of(truth, image_given), with_flow=False)
            for frames, truth in zip(made, truths, strict=True)
        ]
        values = pooled(clips)
        return {name: values[name] for name in SHOWN if not math.isnan(values[name])}

    def _against_real(self, made: NDArray[np.uint8]) -> dict[str, float]:
        """rho: motion over the real clips'; kappa: what is left of it in the last quarter, over the real clips'."""
        real = self._real_motion
        ours = [measure_motion(clip, reference_energy=_mean(real, "energy")) for clip in made]
        return {
            "rho": _ratio(_mean(ours, "motion"), _mean(real, "motion")),
            "kappa": _ratio(_retention(ours), _retention(real)),
            "static": float(np.mean([m.static for m in ours])),
        }

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        return [self.store.row(index) for index in range(self._count)]

    @cached_property
    def _latents(self) -> Tensor:
        tensors, _ = self.store.read(range(self._count))
        return tensors["latents"].float().to(self.device)

    @cached_property
    def _text(self) -> Tensor:
        return self.text.embed([row["caption"] for row in self._rows]).to(self.device)

    @cached_property
    def _real(self) -> NDArray[np.uint8]:
        return self._decode(self._latents)

    @cached_property
    def _real_motion(self) -> list[MotionReport]:
        return [measure_motion(clip) for clip in self._real]

    @property
    def _count(self) -> int:
        return min(self.config.clips, len(self.store))

    def _noise(self, skipped_frames: int) -> Tensor:
        """The same noise at every evaluation, so that only the weights differ."""
        shape = list(self._latents.shape)
        shape[2] -= skipped_frames
        return torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(self._latents)

    def _renoise(self) -> Noise:
        """The fresh noise of later passes and steps, the same at every evaluation."""
        draws, own = Draws(torch.Generator().manual_seed(NOISE_SEED + 1)), self._own
        return lambda like: draws.normal(like.new_empty(self._count, *like.shape[1:]))[own]

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> NDArray[np.uint8]:
        return np.concatenate([tensor_to_video(decode_video(self.vae, clip[None])) for clip in latents])


def looks(made: NDArray[np.uint8], real: NDArray[np.uint8], period: int) -> dict[str, float]:
    """How pictures change beside the real ones', uint8 [clips, frames, height, width, 3]; means over clips.

    luma_slope, saturation_slope: per 100 frames, less the real clips' (0 ideal); grid: ``grid_peak`` at ``period`` px
    over the real clips' (1 ideal), left out where a side holds too few periods. Real clips come from the autoencoder
    as the made ones do, so what it adds itself counts on both sides.
    """
    found = {
        "luma_slope": _mean_slope(luma, made) - _mean_slope(luma, real),
        "saturation_slope": _mean_slope(saturation, made) - _mean_slope(saturation, real),
        "grid": _mean_grid(made, period) / _mean_grid(real, period),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _mean_slope(series: Callable[[NDArray[np.uint8]], NDArray[np.float64]], clips: NDArray[np.uint8]) -> float:
    return float(np.mean([slope_per_100(series(clip)) for clip in clips]))


def _mean_grid(clips: NDArray[np.uint8], period: int) -> float:
    return float(np.mean([grid_peak(clip, period) for clip in clips]))


def world_truth(source: str, frames: int) -> Truth:
    """The truth behind a stored clip of the embedded world."""
    split, index, track = parse_world_source(source)
    return simulate(sample_scene(split, index, track), frames)


def write_rows(path: Path, rows: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write clips side by side, one row of them above the other: each row [clips, frames, height, width, 3]."""
    picture = np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1)
    with VideoWriter(path, fps=fps, scale=2 if rows[0].shape[2] < SMALL_PICTURE else 1) as video:
        video.write(picture)


def _ratio(part: float, whole: float) -> float:
    """Of what does not move at all, nothing is a share."""
    return part / whole if whole > 0 else 0.0


def _retention(reports: Sequence[MotionReport]) -> float:
    """Motion of the last quarters over that of the first, of all clips together: one still start decides nothing."""
    return _ratio(_mean(reports, "last_quarter"), _mean(reports, "first_quarter"))


def _mean(reports: Sequence[MotionReport], name: str) -> float:
    return float(np.mean([getattr(report, name) for report in reports]))
