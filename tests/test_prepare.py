"""Clips become latents once; a stopped job goes on where it stopped and one bad file stops nothing."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import avg_pool3d

from aad1.data.clips import write_world_folder
from aad1.data.filling import Summary, fill
from aad1.data.latents import LatentStore
from aad1.data.media import VideoWriter, video_to_tensor
from aad1.data.prepare import (
    Encode,
    SourceClip,
    clip_work,
    file_clips,
    parse_world_source,
    require_clips,
    world_clips,
)
from aad1.data.selection import Picked
from aad1.data.sources import find_clips
from aad1.data.store import Manifest
from aad1.data.world import FPS, SIZE, SPLITS, make_clip
from aad1.errors import UserError
from aad1.progress import Progress

FRAMES = 5
MANIFEST = Manifest("latents", "toy", float(FPS), (SIZE, SIZE), FRAMES)


def encode(video: Tensor) -> Tensor:
    """A stand-in VAE whose last bits depend on the batch, as a real one's may."""
    assert video.dtype == torch.float32
    assert video.abs().max() <= 1
    return avg_pool3d(video, (1, 8, 8)) + 1e-7 * len(video)


def stopping(after: int) -> Encode:
    """An encoder that is interrupted on its call number ``after``."""
    calls = iter(range(after + 1))

    def interrupted(video: Tensor) -> Tensor:
        if next(calls) == after:
            raise KeyboardInterrupt
        return encode(video)

    return interrupted


def prepare_clips(
    clips: Sequence[SourceClip], out: Path, encode: Encode, manifest: Manifest, batch_size: int = 8, block: int = 4
) -> Summary:
    (summary,) = fill([clip_work(clips, out, encode, manifest, batch_size=batch_size, block=block)], "Encoding clips")
    require_clips(summary)
    return summary


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_world_clips_keep_their_truth(tmp_path: Path) -> None:
    summary = prepare_clips(world_clips("val", 5, FRAMES), tmp_path, encode, MANIFEST, batch_size=2)
    assert summary == Summary(tmp_path, 5, ())
    store = LatentStore(tmp_path)
    tensors, rows = store.read(range(5))
    for latents, row in zip(tensors["latents"], rows, strict=True):
        split, index, track = parse_world_source(row["source"])
        clip = make_clip(split, index, FRAMES, track)
        assert row == {"source": f"world:val:{index}:{track}", "caption": clip.caption, "track": track}
        torch.testing.assert_close(latents, encode(video_to_tensor(clip.frames)[None])[0])
    assert [row["track"] for row in rows] == ["determined", "free"] * 2 + ["determined"]


@pytest.mark.parametrize("source", ["world:val:1", "world:val:-1:free", "world:x:1:free", "world:val:1:both", "a.mp4"])
def test_other_sources_have_no_truth(source: str) -> None:
    with pytest.raises(UserError, match="truth is unknown"):
        parse_world_source(source)
    with pytest.raises(UserError, match=r"trian.*did you mean 'train'"):
        world_clips("trian", 1, FRAMES)
    assert [parse_world_source(f"world:{s}:3:free")[0] for s in SPLITS] == list(SPLITS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight clips of which two are broken and one has no caption."""
    videos = write_world_folder(tmp_path / "clips", "train", 8, FRAMES, "free")
    videos[1].write_bytes(b"broken")
    videos[2].with_suffix(".txt").unlink()
    videos[6].write_bytes(videos[6].read_bytes()[:700])
    return tmp_path / "clips"


def prepare_folder(folder: Path, out: Path, encoder: Encode = encode) -> Summary:
    clips = file_clips(find_clips(folder), sizes=[(64, 64)], fps=16, frames=FRAMES)
    return prepare_clips(clips, out, encoder, MANIFEST, batch_size=2, block=3)


def test_bad_files_are_reported_not_fatal(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = prepare_folder(folder, tmp_path / "out")
    assert summary.count == 5
    assert [s.source[-6:-4] for s in summary.skipped] == ["01", "02", "06"]
    printed = capsys.readouterr().err
    assert "5 clips, 3 skipped: 3 broken" in printed
    assert "train-free-00002.mp4: no caption: train-free-00002.txt is missing" in printed
    store = LatentStore(tmp_path / "out")
    assert store.skipped() == list(summary.skipped)
    assert [row["source"] for row in store.rows()] == [f"train-free-0000{i}.mp4" for i in (0, 3, 4, 5, 7)]


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_resumed_equals_unbroken(calls: int, folder: Path, tmp_path: Path) -> None:
    prepare_folder(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(folder, tmp_path / "broken", stopping(calls))
    prepare_folder(folder, tmp_path / "broken")
    prepare_folder(folder, tmp_path / "broken", stopping(0))  # nothing is left to encode
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_batch_is_of_one_block_and_of_one_size(tmp_path: Path) -> None:
    """Two sizes of clips come in turn; each is encoded with its own, and what is left when the block ends."""
    shapes = [(64, 64), (32, 64)]
    made = {size: make_clip("val", 0, FRAMES).frames[:, : size[0], : size[1]] for size in shapes}
    clips = [
        SourceClip(f"s{i}", "c", lambda size=shapes[i % 2]: Picked(made[size], {"motion": 1.5})) for i in range(14)
    ]
    seen: list[tuple[int, ...]] = []

    def spy(video: Tensor) -> Tensor:
        seen.append((len(video), *video.shape[-2:]))
        return encode(video)

    prepare_clips(clips, tmp_path, spy, replace(MANIFEST, buckets=tuple(shapes)), batch_size=2, block=6)
    full = [(2, 64, 64), (2, 32, 64)]
    assert seen == [*full, (1, 64, 64), (1, 32, 64)] * 2 + [(1, 64, 64), (1, 32, 64)]
    store = LatentStore(tmp_path)
    assert store.buckets.tolist() == [0, 1] * 7
    assert store.read([1, 3])[0]["latents"].shape == (2, 3, FRAMES, 4, 8)
    assert store.row(3) == {"source": "s3", "caption": "c", "motion": 1.5}


def test_no_more_than_a_few_decoded_clips_wait(tmp_path: Path) -> None:
    """However long the list, and however slow the encoder."""
    held, most, lock = 0, 0, threading.Lock()
    frames = make_clip("val", 0, FRAMES).frames

    def read() -> Picked:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return Picked(frames)

    def slow(video: Tensor) -> Tensor:
        nonlocal held
        threading.Event().wait(0.01)
        with lock:
            held -= len(video)
        return encode(video)

    clips = [SourceClip(f"s{i}", "c", read) for i in range(40)]
    fill([clip_work(clips, tmp_path, slow, MANIFEST, batch_size=2, block=4, readers=3)], "Encoding clips")
    assert most <= 2 + 2 + 3  # a batch at hand, and what waits


def test_a_clip_gets_the_size_nearest_in_shape(tmp_path: Path) -> None:
    sizes = [(64, 64), (32, 64), (64, 32)]
    for index, (height, width) in enumerate([(60, 70), (40, 90), (80, 36), (66, 64)]):
        with VideoWriter(tmp_path / "clips" / f"{index}.mp4", fps=16) as writer:
            writer.write(np.full((FRAMES, height, width, 3), 99, np.uint8))
        (tmp_path / "clips" / f"{index}.txt").write_text("grey")
    clips = file_clips(find_clips(tmp_path / "clips"), sizes=sizes, fps=16, frames=FRAMES)
    prepare_clips(clips, tmp_path / "out", encode, replace(MANIFEST, buckets=tuple(sizes)))
    assert LatentStore(tmp_path / "out").buckets.tolist() == [0, 1, 2, 0]


def test_a_list_may_grow_but_not_change(tmp_path: Path) -> None:
    prepare_clips(world_clips("val", 3, FRAMES), tmp_path / "a", encode, MANIFEST, batch_size=1, block=2)
    prepare_clips(world_clips("val", 6, FRAMES), tmp_path / "a", encode, MANIFEST, batch_size=1, block=2)
    prepare_clips(world_clips("val", 6, FRAMES), tmp_path / "b", encode, MANIFEST, batch_size=1, block=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    changed: list[Callable[[], object]] = [
        lambda: prepare_clips(world_clips("test", 6, FRAMES), tmp_path / "a", encode, MANIFEST, block=2),
        lambda: prepare_clips(world_clips("val", 5, FRAMES), tmp_path / "a", encode, MANIFEST, block=2),
    ]
    for attempt in changed:
        with pytest.raises(UserError, match="was begun with world:val:"):
            attempt()
    with pytest.raises(UserError, match="encoder toy, this run has other"):
        prepare_clips(
            world_clips("val", 6, FRAMES), tmp_path / "a", encode, replace(MANIFEST, encoder="other"), block=2
        )


def test_latents_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    def spoilt(video: Tensor) -> Tensor:
        latents = encode(video)
        latents[0, 0, 0, 0, 0] = float("nan")
        return latents

    summary = prepare_clips(world_clips("val", 4, FRAMES), tmp_path, spoilt, MANIFEST, batch_size=2)
    assert [s.reason for s in summary.skipped] == ["its latents are not finite"] * 2
    assert summary.count == 2


def test_no_usable_clip_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of the 1 clips.*a\.txt is missing"):
        prepare_folder(tmp_path / "clips", tmp_path / "out")


def test_a_wrong_manifest_is_a_programming_error(tmp_path: Path) -> None:
    wrong = Manifest("latents", "toy", 16.0, (32, 32), FRAMES)
    with pytest.raises(ValueError, match="shape"):
        prepare_clips(world_clips("val", 1, FRAMES), tmp_path, encode, wrong)


# --- progress ---------------------------------------------------------------------------------


def run_progress(console: Console, every: int | None = None) -> str:
    with Progress("Training", 10, done=2, unit="step", every=every, console=console) as bar:
        for step in range(8):
            bar.advance(loss=0.123456 / (step + 1), note="x")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_plain_lines() -> None:
    text = run_progress(Console(file=io.StringIO()), every=3)
    lines = text.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Training 5/10", "Training 8/10", "Training 10/10"]
    assert "left" in lines[0]
    assert "loss 0.04115 note x" in lines[0]
    assert run_progress(Console(file=io.StringIO()), every=0) == ""


def test_the_time_left_forgets_a_slow_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("aad1.progress.time.monotonic", lambda: now)
    console = Console(file=io.StringIO())
    with Progress("adversarial", 20, unit="step", every=1, console=console) as bar:
        for step in range(20):
            now += 200 if step == 0 else 6
            bar.advance()
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "200 s/step" in lines[0]
    assert "6 s/step, 0:04:14 elapsed, 0:01:00 left" in lines[9]


def test_a_terminal_gets_a_bar() -> None:
    text = run_progress(Console(file=io.StringIO(), force_terminal=True, width=160))
    assert all(word in text for word in ("Training", "10/10", "left", "loss 0.01543"))


@pytest.mark.parametrize("width", [80, 120])
def test_many_numbers_leave_the_bar_its_room(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    numbers = {f"critic/number_{index}": index / 7 for index in range(20)}
    with Progress("adversarial", 200, unit="step", console=console) as bar:
        bar.advance(100, **numbers, **{"eval/rho": 0.875})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    first = next(line for line in reversed(text.splitlines()) if "adversarial" in line)
    assert all(word in first for word in ("━" * 10, "100/200", "step", "left"))
    assert "eval/rho" in text
    assert "0.875" in text  # perhaps on the next line


def test_an_endless_job_has_no_time_left() -> None:
    console = Console(file=io.StringIO())
    with Progress("Streaming", every=1, console=console) as bar:
        bar.advance()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith("Streaming 1,")
    assert "left" not in console.file.getvalue()


def test_frames_reach_the_encoder_as_tensors(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def spy(video: Tensor) -> Tensor:
        seen.append(video)
        return encode(video)

    prepare_clips(world_clips("val", 3, FRAMES), tmp_path, spy, MANIFEST, batch_size=2)
    assert [v.shape for v in seen] == [(2, 3, FRAMES, 64, 64), (1, 3, FRAMES, 64, 64)]
    frames = make_clip("val", 0, FRAMES).frames
    np.testing.assert_allclose(seen[0][0, :, 2, 10, 20], frames[2, 10, 20] / 127.5 - 1, atol=1e-6)
