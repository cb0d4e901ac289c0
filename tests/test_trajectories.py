"""The stored trajectories: a slow integration of the guided teacher, and the same bytes however often stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import CHANNELS, lively, normal, text_of
from torch import Tensor, nn

from aad1.data.blocks import Clip, StoreWriter, write_block
from aad1.data.filling import fill
from aad1.data.latents import LatentStore
from aad1.data.store import Manifest
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.stages.trajectories import Denoising, TrajectoryConfig, trajectory_work
from aad1.training.randomness import generator_for

SEED, STEPS, SHIFT, GUIDANCE, FRAMES = 3, 8, 5.0, 3.0, 5
NEGATIVE = "nothing"
CAPTIONS = ("a red disc", "a blue ring", "a green star")
CONFIG = TrajectoryConfig(count=6, batch=4, steps=STEPS, shift=SHIFT, guidance=GUIDANCE)


class Words:
    """In place of a text encoder: every caption has its own random embedding."""

    def embed(self, captions: Sequence[str]) -> Tensor:
        return torch.cat([text_of(seed=sum(map(ord, caption))) for caption in captions])


class Neighbourly(nn.Module):
    """A field in which every sample depends on its whole batch, as its last bits may in a real one."""

    device = torch.device("cpu")

    def forward(self, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return latents.mean(dim=0, keepdim=True).expand_as(latents) + text.mean()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    folder = tmp_path_factory.mktemp("store") / "clips"
    return store_of([(4, 4)] * len(CAPTIONS), folder)


def store_of(sizes: Sequence[tuple[int, int]], folder: Path) -> LatentStore:
    """A store of clips with these latent sizes and the captions in turn."""
    buckets = tuple(dict.fromkeys((height * 8, width * 8) for height, width in sizes))
    manifest = Manifest("latents", "vae", 16.0, buckets[0], 17, buckets)
    made = []
    for index, (height, width) in enumerate(sizes):
        latents = normal(CHANNELS, FRAMES, height, width, seed=index)
        row = {"caption": CAPTIONS[index % len(CAPTIONS)], "source": "-"}
        made.append(Clip({"latents": latents}, row, buckets.index((height * 8, width * 8))))
    with StoreWriter(folder, manifest, ["-"] * len(made), block=len(made)) as writer:
        write_block(folder, manifest, 0, made)
        writer.look()
        writer.complete()
    return LatentStore(folder)


def make(teacher: Any, clips: LatentStore, out: Path, config: TrajectoryConfig = CONFIG) -> None:
    source = Denoising(lambda: teacher, Words(), clips, config, SEED, NEGATIVE)  # type: ignore[arg-type]
    fill([trajectory_work(source, out, "t")], "trajectories")


def slow_path(teacher: CausalWanTransformer3DModel, index: int, image: Tensor | None) -> list[Tensor]:
    """Euler's method written out for one trajectory, in float64, at all its levels."""
    text, negative = (Words().embed([caption]) for caption in (CAPTIONS[index % len(CAPTIONS)], NEGATIVE))
    x = torch.randn(1, CHANNELS, FRAMES, 4, 4, generator=generator_for(SEED, "trajectories", index)).double()
    moving = torch.ones(FRAMES)
    if image is not None:
        x[:, :, 0], moving[0] = image, 0
    path = [x]
    for step in range(STEPS):
        t, after = (SHIFT * u / (1 + (SHIFT - 1) * u) for u in (1 - step / STEPS, 1 - (step + 1) / STEPS))
        cond, uncond = (teacher(x.float(), t * moving[None], words) for words in (text, negative))
        v = (uncond + GUIDANCE * (cond - uncond)).double()
        x = x + (after - t) * moving[:, None, None] * v
        path.append(x)
    return path


@pytest.mark.parametrize("clean_image", [False, True])
@torch.no_grad()
def test_what_is_stored_is_eulers_path_at_the_levels_in_their_order(
    clips: LatentStore, tmp_path: Path, clean_image: bool
) -> None:
    teacher = lively(seed=0)
    settings = {"count": 4, "batch": 3, "steps": STEPS, "guidance": GUIDANCE, "clean_image": clean_image}
    make(teacher, clips, tmp_path / "out", TrajectoryConfig(**settings))
    stored, rows = LatentStore(tmp_path / "out").read(range(4))
    assert [row["caption"] for row in rows] == [*CAPTIONS, CAPTIONS[0]]
    images = clips.read([0, 1, 2, 0])[0]["latents"][:, :, 0]
    for index, points in enumerate(stored["points"].double()):
        path = slow_path(teacher, index, images[index] if clean_image else None)
        expected = torch.cat(path)[:: STEPS // 4]  # levels 1, .75, .5, .25 before the shift, and 0
        torch.testing.assert_close(points, expected, atol=5e-3 * float(expected.abs().max()), rtol=0)
        if clean_image:
            assert torch.equal(points[:, :, 0], images[index].half().double().expand(5, -1, -1, -1))


class Interrupting(Neighbourly):
    """The same field, until Ctrl-C at one of its evaluations."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(latents, t, text)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("evaluations", "kept"), [(3, 0), (2 * STEPS + 5, 4)])
def test_stopped_inside_a_batch_and_continued_it_has_the_same_bytes(
    clips: LatentStore, tmp_path: Path, evaluations: int, kept: int
) -> None:
    make(Neighbourly(), clips, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        make(Interrupting(evaluations), clips, tmp_path / "broken")
    if kept:
        assert len(LatentStore(tmp_path / "broken", unfinished=True)) == kept
    make(Neighbourly(), clips, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")
    make(Interrupting(0), clips, tmp_path / "broken")  # nothing is left to do


def test_more_can_be_made_and_fewer_wanted(clips: LatentStore, tmp_path: Path) -> None:
    make(Neighbourly(), clips, tmp_path / "all")
    make(Neighbourly(), clips, tmp_path / "grown", replace(CONFIG, count=5))
    make(Neighbourly(), clips, tmp_path / "grown")
    assert contents(tmp_path / "grown") == contents(tmp_path / "all")
    make(Interrupting(0), clips, tmp_path / "all", replace(CONFIG, count=2))
    assert contents(tmp_path / "grown") == contents(tmp_path / "all")


def test_a_smaller_batch_goes_on_in_the_same_store(clips: LatentStore, tmp_path: Path) -> None:
    """Out of memory is mended by a smaller batch, and what is made is kept."""
    with pytest.raises(KeyboardInterrupt):
        make(Interrupting(2 * STEPS + 5), clips, tmp_path / "out")
    first = contents(tmp_path / "out")["block-00000-32x32.safetensors"]
    make(Neighbourly(), clips, tmp_path / "out", replace(CONFIG, batch=1))
    assert len(LatentStore(tmp_path / "out")) == CONFIG.count
    assert contents(tmp_path / "out")["block-00000-32x32.safetensors"] == first


def test_trajectories_have_the_shapes_of_their_clips(tmp_path: Path) -> None:
    sizes = [(4, 4), (2, 6), (4, 4)]
    clips = store_of(sizes, tmp_path / "clips")
    make(Neighbourly(), clips, tmp_path / "out")
    stored = LatentStore(tmp_path / "out")
    assert stored.buckets.tolist() == [0, 1, 0] * 2
    assert stored.manifest.buckets == clips.manifest.buckets
    for index in range(6):
        points = stored.read([index])[0]["points"]
        assert points.shape == (1, 5, CHANNELS, FRAMES, *sizes[index % 3])
        own = torch.randn(1, *points.shape[2:], generator=generator_for(SEED, "trajectories", index))
        assert torch.equal(points[:, 0], own.half())
