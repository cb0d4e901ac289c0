"""The stored trajectories: a slow integration of the guided teacher, and the same bytes however often stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import CHANNELS, lively, normal, text_of
from torch import Tensor, nn

from aad1.data.latents import LatentStore, Manifest, StoreWriter
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.stages.trajectories import TrajectoryConfig, make_trajectories
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
    with StoreWriter(folder, Manifest("latents", "vae", 16.0, (32, 32), 17)) as writer:
        for index, caption in enumerate(CAPTIONS):
            writer.add({"latents": normal(CHANNELS, FRAMES, 4, 4, seed=index)}, {"caption": caption, "source": "-"})
    return LatentStore(folder)


def make(teacher: Any, clips: LatentStore, out: Path, config: TrajectoryConfig = CONFIG) -> None:
    make_trajectories(
        teacher,
        Words(),
        clips,
        out,
        config,
        teacher_hash="t",
        seed=SEED,
        negative_prompt=NEGATIVE,  # type: ignore[arg-type]
    )


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


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when so many trajectories have been written."""
    add, left = StoreWriter.add, [None] * count

    def counted(writer: StoreWriter, *item: Any) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        add(writer, *item)

    monkeypatch.setattr(StoreWriter, "add", counted)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [3, 5])
def test_stopped_inside_a_batch_and_continued_it_has_the_same_bytes(
    clips: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    make(Neighbourly(), clips, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stop_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            make(Neighbourly(), clips, tmp_path / "broken")
    assert len(LatentStore(tmp_path / "broken", unfinished=True)) == count
    make(Neighbourly(), clips, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")
