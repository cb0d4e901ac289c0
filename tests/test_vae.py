"""The streamed VAE equals diffusers' own, whatever the chunks, and streams do not disturb each other."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from aad1.errors import UserError
from aad1.models.vae import (
    DecodeStream,
    EncodeStream,
    decode_video,
    denormalise,
    encode_image,
    encode_video,
    geometry,
    normalise,
)

TOLERANCE = 1e-4  # float32 rounding; a frame decoded with the wrong past is off by a hundred times more


def build_vae(kind: str) -> AutoencoderKLWan:
    small = {"base_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "z_dim": 4}
    moments = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
    residual = {"is_residual": True, "decoder_base_dim": 8}
    patched = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    flags = {"plain": {}, "residual": residual, "patched": residual | patched}[kind]
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**small, **moments, **flags).eval().requires_grad_(False)
    with torch.no_grad():  # a random VAE's output is faint: lift it so that a difference would show
        for module in (vae.decoder.conv_out, vae.encoder.conv_out):
            module.weight *= 5
    return vae


@pytest.fixture(scope="module", params=["plain", "residual", "patched"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    return build_vae(request.param)


def random_latents(vae: AutoencoderKLWan, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, vae.config.z_dim, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def random_frames(vae: AutoencoderKLWan, frames: int, seed: int = 0) -> torch.Tensor:
    factor = vae.config.scale_factor_spatial
    noise = torch.randn(1, 3, frames, 2 * factor, 3 * factor, generator=torch.Generator().manual_seed(seed))
    return noise.mul(0.5).clamp(-1, 1)


def reference_decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(denormalise(vae, latents)).sample


@pytest.mark.parametrize("chunks", [(1, 4, 4), (1,) * 9, (5, 4), (9,), (1, 3, 2, 3), (2, 7)])
@pytest.mark.parametrize("frames_per_call", [None, 2])
def test_decoding_in_chunks_equals_diffusers(
    vae: AutoencoderKLWan, chunks: tuple[int, ...], frames_per_call: int | None
) -> None:
    latents = random_latents(vae, 9)
    stream = DecodeStream(vae, frames_per_call=frames_per_call)
    pieces = [stream.decode(part) for part in latents.split(list(chunks), dim=2)]
    assert [p.shape[2] for p in pieces] == [4 * m - 3 * (i == 0) for i, m in enumerate(chunks)]
    whole = reference_decode(vae, latents)
    assert whole.std() > 0.01
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunks", [(1, 8, 8), (1, 4, 4, 4, 4), (9, 8), (17,), (5, 12)])
@pytest.mark.parametrize("frames_per_call", [None, 1])
def test_encoding_in_chunks_equals_diffusers(
    vae: AutoencoderKLWan, chunks: tuple[int, ...], frames_per_call: int | None
) -> None:
    frames = random_frames(vae, 17)
    stream = EncodeStream(vae, frames_per_call=frames_per_call)
    latents = torch.cat([stream.encode(part) for part in frames.split(list(chunks), dim=2)], 2)
    whole = normalise(vae, vae.encode(frames).latent_dist.mode())
    assert whole.std() > 0.01
    torch.testing.assert_close(latents, whole, atol=TOLERANCE, rtol=0)


def test_two_streams_on_one_vae_do_not_disturb_each_other(vae: AutoencoderKLWan) -> None:
    a, b = random_latents(vae, 5, seed=1), random_latents(vae, 5, seed=2)
    first, second = DecodeStream(vae), DecodeStream(vae)
    got_a, got_b = [], []
    for part_a, part_b in zip(a.split([1, 2, 2], 2), b.split([1, 2, 2], 2), strict=True):
        got_a.append(first.decode(part_a))
        got_b.append(second.decode(part_b))
        reference_decode(vae, random_latents(vae, 2, seed=3))  # nor does diffusers' own decode
    torch.testing.assert_close(torch.cat(got_a, 2), reference_decode(vae, a), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(torch.cat(got_b, 2), reference_decode(vae, b), atol=TOLERANCE, rtol=0)


def test_reset_begins_a_new_video(vae: AutoencoderKLWan) -> None:
    stream = DecodeStream(vae)
    stream.decode(random_latents(vae, 3, seed=1))
    stream.reset()
    torch.testing.assert_close(stream.decode(random_latents(vae, 3)), decode_video(vae, random_latents(vae, 3)))


def test_a_picture_is_the_first_latent_frame(vae: AutoencoderKLWan) -> None:
    frames = random_frames(vae, 5)
    latents = encode_video(vae, frames)
    torch.testing.assert_close(encode_image(vae, frames[:, :, 0]), latents[:, :, :1], atol=TOLERANCE, rtol=0)
    assert encode_image(vae, frames[:, :, :1]).shape == (1, vae.config.z_dim, 1, 2, 3)


def test_gradients_pass_through_the_decoder() -> None:
    vae = build_vae("plain")
    latents = random_latents(vae, 3).requires_grad_()
    stream = DecodeStream(vae)
    torch.cat([stream.decode(latents[:, :, :1]), stream.decode(latents[:, :, 1:])], 2).square().sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad.flatten(3).abs().sum((0, 1, 3)) > 0).all())
    assert not decode_video(vae, random_latents(vae, 2)).requires_grad


def test_normalisation_is_inverted(vae: AutoencoderKLWan) -> None:
    latents = random_latents(vae, 2)
    torch.testing.assert_close(denormalise(vae, normalise(vae, latents)), latents)
    channel = (latents[:, 1] + 0.2) / 0.5
    torch.testing.assert_close(normalise(vae, latents)[:, 1], channel)


def test_geometry_comes_from_the_config(vae: AutoencoderKLWan) -> None:
    shape = geometry(vae)
    assert (shape.temporal, shape.spatial) == (4, 16 if vae.config.patch_size else 8)
    assert shape.frames(21) == 81
    assert shape.latent_frames(81) == 21


def test_sizes_that_do_not_divide_are_refused(vae: AutoencoderKLWan) -> None:
    frames = random_frames(vae, 5)
    with pytest.raises(UserError, match=r"4 frames do not fit.*use 1 or 5"):
        encode_video(vae, frames[:, :, :4])
    with pytest.raises(UserError, match="0 frames"):
        encode_video(vae, frames[:, :, :0])
    with pytest.raises(UserError, match=f"multiples of {vae.config.scale_factor_spatial}"):
        encode_video(vae, frames[..., :-1])
    stream = EncodeStream(vae)
    stream.encode(frames)
    with pytest.raises(UserError, match="multiples of 4"):
        stream.encode(frames)


def test_a_config_that_belies_its_layers_is_refused() -> None:
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 2], temperal_downsample=[True], num_res_blocks=1, z_dim=4)
    with pytest.raises(UserError, match="scale_factor_temporal"):
        geometry(vae)
