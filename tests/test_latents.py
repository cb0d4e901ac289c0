"""The latent store survives crashes; the sampler's order depends on nothing but its seed."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from aad1.data.latents import LatentStore, Manifest, Sampler, StoreWriter, require
from aad1.errors import UserError

MANIFEST = Manifest("latents", "abc123", 16.0, (64, 64), 5, extra={"steps": 4})
BAD = (3, 6)  # source items that cannot be used


def item(position: int) -> tuple[dict[str, Tensor], dict[str, object]]:
    latents = torch.full((4, 2, 3, 3), float(position))
    return {"latents": latents, "t": latents[0, :, 0, 0].half()}, {"source": f"s{position}", "caption": "c\u2028é"}


def fill(writer: StoreWriter, stop: int) -> None:
    for position in range(writer.completed, stop):
        if position in BAD:
            writer.skip(f"s{position}", "torn")
        else:
            writer.add(*item(position))


def fill_and_stop(folder: Path, stop: int) -> None:
    with StoreWriter(folder, MANIFEST, 4) as writer:
        fill(writer, stop)
        raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def write(folder: Path, stop: int = 11, manifest: Manifest = MANIFEST) -> Path:
    with StoreWriter(folder, manifest, 4) as writer:
        fill(writer, stop)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole")


def test_what_is_written_is_read(whole: Path) -> None:
    store = LatentStore(whole)
    kept = [p for p in range(11) if p not in BAD]
    assert len(store) == len(kept) == 9
    tensors, rows = store.read([8, 0, 4, 4])
    assert tensors["latents"].shape == (4, 4, 2, 3, 3)
    assert tensors["latents"][:, 0, 0, 0, 0].tolist() == [kept[i] for i in (8, 0, 4, 4)]
    assert tensors["t"].dtype == torch.float16
    assert [row["source"] for row in rows] == [f"s{kept[i]}" for i in (8, 0, 4, 4)]
    assert rows[0]["caption"] == "c\u2028é"
    assert [(s.position, s.reason) for s in store.skipped()] == [(3, "torn"), (6, "torn")]
    assert store.manifest == replace(MANIFEST, latent_shape=(4, 2, 3, 3))
    facts = json.loads((whole / "manifest.json").read_text())
    assert (facts["count"], [s["count"] for s in facts["shards"]]) == (9, [4, 4, 1])
    with pytest.raises(IndexError):
        store.read([9])


@pytest.mark.parametrize("stop", range(12))
def test_resumed_equals_unbroken(stop: int, whole: Path, tmp_path: Path) -> None:
    """A run killed after any item, a run stopped by Ctrl-C there, and a store extended from there."""
    killed = StoreWriter(tmp_path / "killed", MANIFEST, 4)
    fill(killed, stop)
    with pytest.raises(KeyboardInterrupt):
        fill_and_stop(tmp_path / "stopped", stop)
    with StoreWriter(tmp_path / "stopped", MANIFEST, 4) as writer:
        assert writer.completed == stop
        fill(writer, 11)
    write(write(tmp_path / "extended", stop))
    write(tmp_path / "killed")
    for name in ("killed", "stopped", "extended"):
        assert contents(tmp_path / name) == contents(whole), name


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "no rows", "fewer rows", "zeros"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_torn_shard_is_named_and_made_again(damage: str, number: int, whole: Path) -> None:
    before = contents(whole)
    tensors, rows = whole / f"shard-{number:05d}.safetensors", whole / f"shard-{number:05d}.jsonl"
    data = tensors.read_bytes()
    match damage:
        case "truncated":
            tensors.write_bytes(data[:-7])
        case "empty":
            tensors.write_bytes(b"")
        case "zeros":
            tensors.write_bytes(bytes(len(data)))
        case "missing":
            tensors.unlink()
        case "no rows":
            rows.unlink()
        case "fewer rows":
            rows.write_text("")
    with pytest.raises(UserError, match=f"shard-{number:05d}"):
        LatentStore(whole)
    with pytest.warns(UserWarning, match=f"shard-{number:05d}"):
        write(whole)
    assert contents(whole) == before


def test_a_crash_between_shard_and_manifest_is_redone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = StoreWriter(tmp_path / "a", MANIFEST, 4)
    monkeypatch.setattr(writer, "_write_index", lambda complete: None)
    fill(writer, 11)
    (tmp_path / "a" / ".shard-00002.safetensors.tmp").write_bytes(b"half")
    with (tmp_path / "a" / "skipped.jsonl").open("ab") as file:
        file.write(b'{"position": 9, "sou')
    write(tmp_path / "a")
    left = contents(tmp_path / "a")
    assert left.pop(".shard-00002.safetensors.tmp", None) is None
    assert left == contents(whole)


def test_skipped_items_are_neither_retried_nor_forgotten(tmp_path: Path) -> None:
    killed = StoreWriter(tmp_path, MANIFEST, 2)
    fill(killed, 6)
    writer = StoreWriter(tmp_path, MANIFEST, 2)
    assert writer.completed == 5
    assert list(writer.skips) == [3]
    fill(writer, 11)
    writer.close()
    assert len(LatentStore(tmp_path).skipped()) == 2
    assert StoreWriter(tmp_path, MANIFEST, 2).sources() == {p: f"s{p}" for p in range(11)}


def test_a_store_that_kept_nothing_binds_nobody(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, MANIFEST) as writer:
        writer.skip("s0", "no caption")
    with StoreWriter(tmp_path, replace(MANIFEST, encoder="other")) as writer:
        assert (writer.completed, dict(writer.skips)) == (0, {})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": "def"}, "encoder abc123, this run has def"),
        ({"fps": 24.0}, "fps 16.0, this run has 24.0"),
        ({"size": (32, 64)}, r"size \[64, 64\], this run has \[32, 64\]"),
        ({"frames": 9}, "frames 5, this run has 9"),
        ({"kind": "trajectories"}, "kind latents, this run has trajectories"),
        ({"extra": {"steps": 5}}, "extra.steps 4, this run has 5"),
        ({"extra": {}}, "extra.steps 4, this run has not set"),
        ({"latent_shape": (1, 1)}, "latent_shape"),
    ],
)
def test_other_settings_are_refused(change: dict[str, object], named: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match=named):
        StoreWriter(whole, replace(MANIFEST, **change), 4)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="shard_size"):
        StoreWriter(whole, MANIFEST, 5)
    assert contents(whole) == before


def test_uneven_clips_are_a_programming_error(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, MANIFEST, 4)
    writer.add({"latents": torch.zeros(1, 2)}, {})
    for wrong in ({"latents": torch.zeros(1, 3)}, {"x": torch.zeros(1, 2)}, {"latents": torch.zeros(1, 2).half()}, {}):
        with pytest.raises(ValueError, match="in a store of"):
            writer.add(wrong, {})
    with pytest.raises(ValueError, match="kind"):
        replace(MANIFEST, kind="videos")


def test_a_full_disk_leaves_the_store_usable(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = StoreWriter(tmp_path / "a", MANIFEST, 4)
    fill(writer, 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            fill(writer, 11)
        with pytest.raises(UserError, match="disk is full"):
            write(tmp_path / "new")
    assert not list((tmp_path / "a").glob("*.tmp"))
    assert not list((tmp_path / "a").glob(".*.tmp"))
    write(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(whole)


# --- opening ----------------------------------------------------------------------------------


def test_what_is_no_store_is_said_so(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LatentStore(tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UserError, match="no latent store"):
        LatentStore(tmp_path / "other")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        StoreWriter(tmp_path / "other", MANIFEST)
    facts = json.loads((whole / "manifest.json").read_text())
    (whole / "manifest.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match=r"format 99.*update"):
        LatentStore(whole)
    (whole / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        LatentStore(whole)


def test_an_unfinished_store_opens_only_when_asked(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, MANIFEST, 4)
    with pytest.raises(UserError, match="empty"):
        LatentStore(tmp_path, unfinished=True)
    fill(writer, 7)
    with pytest.raises(UserError, match="unfinished"):
        LatentStore(tmp_path)
    assert len(LatentStore(tmp_path, unfinished=True)) == 4


def test_require_says_what_differs(whole: Path) -> None:
    store = LatentStore(whole)
    require(store, encoder="abc123", size=(64, 64), kind="latents", latent_shape=(4, 2, 3, 3), steps=4)
    with pytest.raises(UserError, match=r"another VAE \(hash abc123\), this model's is zzz.*aad1 prepare"):
        require(store, encoder="zzz")
    with pytest.raises(UserError, match=r"fps 16\.0, this run needs 24"):
        require(store, fps=24)
    with pytest.raises(UserError, match="solver not set, this run needs euler"):
        require(store, solver="euler")


def test_shards_are_plain_safetensors(whole: Path) -> None:
    with safe_open(whole / "shard-00000.safetensors", framework="pt") as tensors:
        assert tensors.get_tensor("latents").shape == (4, 4, 2, 3, 3)


# --- sampler ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    before=st.lists(st.integers(1, 50), max_size=5),
    after=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_a_restored_sampler_goes_on_the_same(count: int, seed: int, before: list[int], after: list[int]) -> None:
    sampler = Sampler(count, seed)
    for batch in before:
        sampler.next(batch)
    state = json.loads(json.dumps(sampler.state()))
    restored = Sampler.restore(state, count)
    assert [sampler.next(b) for b in after] == [restored.next(b) for b in after]
    assert sampler.state() == restored.state()


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 99), world=st.integers(1, 5), batch=st.integers(1, 9))
def test_the_order_does_not_depend_on_the_world_size(count: int, seed: int, world: int, batch: int) -> None:
    alone = Sampler(count, seed)
    ranks = [Sampler(count, seed, rank=r, world_size=world) for r in range(world)]
    for _ in range(4):
        together = [index for rank in ranks for index in rank.next(batch)]
        assert together == alone.next(batch * world)
    assert {json.dumps(s.state()) for s in (alone, *ranks)} == {json.dumps(alone.state())}


def test_a_restored_sampler_leaves_out_clips_that_came_later() -> None:
    sampler = Sampler(20, seed=3)
    sampler.next(8)
    restored = Sampler.restore(sampler.state(), 22)
    assert [restored.next(8) for _ in range(6)] == [sampler.next(8) for _ in range(6)]


def test_every_epoch_is_another_permutation() -> None:
    sampler = Sampler(50, seed=1)
    epochs = [sampler.next(50) for _ in range(3)]
    assert all(sorted(e) == list(range(50)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    straddling = Sampler(50, seed=1)
    assert [i for _ in range(5) for i in straddling.next(30)] == [i for epoch in epochs for i in epoch]


def test_impossible_samplers_are_refused() -> None:
    for count, rank, world in ((0, 0, 1), (5, 1, 1), (5, -1, 2)):
        with pytest.raises(ValueError, match="sampler"):
            Sampler(count, 0, rank=rank, world_size=world)
    with pytest.raises(UserError, match="only 5"):
        Sampler.restore({"count": 9, "seed": 0, "epoch": 0, "consumed": 2}, 5)
