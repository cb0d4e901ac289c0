"""What models make of a protocol's clips: samples for the rows of ``evaluation.world``.

The transformer runs over a batch of clips; the VAE decodes clip by clip, which is as fast on a CPU and keeps
memory at one clip. Clip i always gets the noise of seed + i, whatever its batch: a session with that seed
streams the same video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from aad1.data.media import tensor_to_video, video_to_tensor
from aad1.data.world import Clip
from aad1.evaluation.world import Sample
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import TextEncoder
from aad1.models.vae import decode_video, encode_image, encode_video, geometry
from aad1.rollout import rollout
from aad1.streaming import StreamNoise
from aad1.teacher_sampling import TeacherSampling, sample_teacher
from aad1.training.randomness import generator_for

Frames = NDArray[np.uint8]
BATCH = 8


def vae_samples(vae: AutoencoderKLWan, clips: Iterable[Clip]) -> Iterator[Sample]:
    """The truth, encoded and decoded: what no model of these latents can surpass."""
    for clip in clips:
        yield Sample(_through_vae(vae, clip.frames), clip.truth)


def student_samples(
    generator: CausalWanTransformer3DModel,
    vae: AutoencoderKLWan,
    text: TextEncoder,
    clips: Iterable[Clip],
    *,
    passes: Sequence[float] | None = None,
    batch: int = BATCH,
    seed: int = 0,
) -> Iterator[Sample]:
    """A student's clips from each truth's first frame and caption; ``passes`` by default its own.

    All clips of a batch must be of one length, 1 + temporal n frames, short or long.
    """
    first = seed
    for part in _batches(clips, batch):
        seeds = range(first, first + len(part))
        latents = _rolled(generator, vae, text, part, passes or generator.config.passes, seeds)
        yield from decoded(vae, latents, part)
        first += len(part)


def teacher_samples(
    teacher: CausalWanTransformer3DModel,
    vae: AutoencoderKLWan,
    text: TextEncoder,
    clips: Iterable[Clip],
    sampling: TeacherSampling,
    negative_prompt: str = "",
    *,
    batch: int = BATCH,
    seed: int = 0,
) -> Iterator[Sample]:
    """The bidirectional teacher's clips from each caption, and from each truth's first frame if ``sampling`` gives it;
    else the teacher draws its own.
    """
    first = seed
    for part in _batches(clips, batch):
        seeds = range(first, first + len(part))
        negative = text.embed([negative_prompt] * len(part))
        latents = _denoised(teacher, vae, text, part, sampling, negative, seeds)
        yield from decoded(vae, latents, part, image_given=sampling.clean_image)
        first += len(part)


# The generators above hold no gradient mode while they wait: each piece of work switches gradients off for itself.


@torch.no_grad()
def _through_vae(vae: AutoencoderKLWan, frames: Frames) -> Frames:
    latents = encode_video(vae, video_to_tensor(frames[None]).to(vae.device))
    return tensor_to_video(decode_video(vae, latents))[0]


@torch.no_grad()
def _rolled(
    generator: CausalWanTransformer3DModel,
    vae: AutoencoderKLWan,
    text: TextEncoder,
    clips: Sequence[Clip],
    passes: Sequence[float],
    seeds: Sequence[int],
) -> Tensor:
    """Latents [batch, channels, frames, height, width], rolled out from the clips' first frames."""
    image = _images(vae, clips).to(generator.device, generator.dtype)
    embedded = text.embed([clip.caption for clip in clips]).to(image)
    chunk = generator.config.num_frames_per_block
    noise = StreamNoise(seeds, image, chunk)
    wanted = _latent_frames(vae, clips)
    made = rollout(generator, image, embedded, noise, levels=passes, renoise=noise.again)
    return torch.cat([image, *islice(made, -(-(wanted - 1) // chunk))], dim=2)[:, :, :wanted]


@torch.no_grad()
def _denoised(
    teacher: CausalWanTransformer3DModel,
    vae: AutoencoderKLWan,
    text: TextEncoder,
    clips: Sequence[Clip],
    sampling: TeacherSampling,
    negative: Tensor,
    seeds: Sequence[int],
) -> Tensor:
    """Latents [batch, channels, frames, height, width], sampled from the clips' captions (and images)."""
    shape = geometry(vae)
    size = shape.latent_size(*clips[0].frames.shape[1:3])
    each = (shape.channels, _latent_frames(vae, clips), *size)
    streams = [generator_for(seed, "teacher") for seed in seeds]

    def draw(like: Tensor) -> Tensor:
        return torch.stack([torch.randn(each, generator=stream) for stream in streams]).to(like)

    noise = draw(torch.empty(0, device=teacher.device, dtype=teacher.dtype))
    embedded = text.embed([clip.caption for clip in clips]).to(noise)
    image = _images(vae, clips).to(noise) if sampling.clean_image else None
    return sample_teacher(teacher, noise, embedded, negative.to(noise), sampling, draw, image)


def _images(vae: AutoencoderKLWan, clips: Sequence[Clip]) -> Tensor:
    """The clips' first frames, encoded."""
    return encode_image(vae, video_to_tensor(np.stack([clip.frames[:1] for clip in clips])).to(vae.device))


@torch.no_grad()
def _decode(vae: AutoencoderKLWan, latents: Tensor) -> Frames:
    return tensor_to_video(decode_video(vae, latents[None]))[0]


def decoded(
    vae: AutoencoderKLWan, latents: Tensor, clips: Sequence[Clip], *, image_given: bool = True
) -> Iterator[Sample]:
    """Latents [batch, channels, frames, height, width] as frames, each beside its clip's truth."""
    for clip, own in zip(clips, latents, strict=True):
        yield Sample(_decode(vae, own), clip.truth, image_given)


def _latent_frames(vae: AutoencoderKLWan, clips: Sequence[Clip]) -> int:
    return geometry(vae).latent_frames(len(clips[0].frames))


def _batches(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    left = iter(clips)
    while part := list(islice(left, size)):
        yield part
