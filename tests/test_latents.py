"""The latent store: a block is there whole or not at all, and has the same bytes whoever made it, and when."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aad1.data import store as store_module
from aad1.data.blocks import Clip, StoreWriter, write_block
from aad1.data.latents import OPEN_BLOCKS, LatentStore, require
from aad1.data.store import BlockFacts, Header, Manifest, Skip, json_lines, record_path, write_header, write_index
from aad1.errors import UserError

SIZES = ((64, 64), (32, 64))
MANIFEST = Manifest("latents", "abc123", 16.0, (64, 64), 5, SIZES, extra={"steps": [4]})
BAD, WIDE = (3, 6), (1, 5)  # source items that cannot be used, and those of the other size
ITEMS = 11


def item(position: int) -> Clip | Skip:
    if position in BAD:
        return Skip(position, f"s{position}", "torn", "filtered" if position == 6 else "broken")
    bucket = int(position in WIDE)
    latents = torch.full((4, 2, SIZES[bucket][0] // 8, 8), float(position))
    tensors = {"latents": latents, "t": latents[0, :, 0, 0].half()}
    return Clip(tensors, {"source": f"s{position}", "caption": "c\u2028é"}, bucket)


def sources(stop: int) -> list[str]:
    return [f"s{position}" for position in range(stop)]


def write(
    folder: Path, stop: int = ITEMS, manifest: Manifest = MANIFEST, block: int = 4, order: Sequence[int] | None = None
) -> Path:
    with StoreWriter(folder, manifest, sources(stop), block=block) as writer:
        plan = writer.publish()
        for number in plan.blocks if order is None else order:
            write_block(folder, manifest, number, [item(p) for p in plan.range_of(number)])
        writer.look()
        if not writer.missing:
            writer.complete()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole")


def test_what_is_written_is_read(whole: Path) -> None:
    store = LatentStore(whole)
    kept = [p for p in range(ITEMS) if p not in BAD]
    assert len(store) == len(kept) == 9
    assert store.buckets.tolist() == [int(p in WIDE) for p in kept]
    chosen = [8, 0, 3, 3]
    tensors, rows = store.read(chosen)
    assert tensors["latents"].shape == (4, 4, 2, 8, 8)
    assert tensors["latents"][:, 0, 0, 0, 0].tolist() == [kept[i] for i in chosen]
    assert tensors["t"].dtype == torch.float16
    assert [row["source"] for row in rows] == [f"s{kept[i]}" for i in chosen]
    assert rows[0]["caption"] == "c\u2028é"
    wide = store.read([4, 1])[0]["latents"]
    assert wide.shape == (2, 4, 2, 4, 8)
    assert wide[:, 0, 0, 0, 0].tolist() == [5, 1]
    assert [(s.position, s.reason, s.kind) for s in store.skipped()] == [(3, "torn", "broken"), (6, "torn", "filtered")]
    assert store.manifest == MANIFEST
    assert [json.loads(line)["source"] for line in (whole / "skipped.jsonl").read_text().splitlines()] == ["s3", "s6"]
    for wrong in ([9], [-1]):
        with pytest.raises(IndexError):
            store.read(wrong)
    with pytest.raises(RuntimeError):
        store.read([0, 1])  # two sizes make no batch


@pytest.mark.parametrize("order", [[0], [2], [1, 2], [2, 0], [2, 1, 0], []])
def test_blocks_made_in_any_order_by_anybody_make_the_same_store(order: list[int], whole: Path, tmp_path: Path) -> None:
    """A run killed after any blocks, and another one that goes on with those that are missing."""
    write(tmp_path / "a", order=order)
    assert (len(order) == 3) == (not missing(tmp_path / "a"))
    write(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(whole)


def missing(folder: Path, stop: int = ITEMS) -> list[int]:
    with StoreWriter(folder, MANIFEST, sources(stop), block=4) as writer:
        return writer.missing


@pytest.mark.parametrize("stop", range(1, ITEMS))
def test_a_list_that_has_grown_extends_its_store(stop: int, whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "a", stop)
    assert missing(tmp_path / "a") == list(range(stop // 4, 3))  # a last block that was short is made again
    write(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(whole)


def test_a_store_keeps_its_block(whole: Path) -> None:
    before = contents(whole)
    write(whole, block=5)
    assert contents(whole) == before


def read_all(folder: Path) -> None:
    store = LatentStore(folder)
    for index in range(len(store)):
        store.read([index])


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "no rows", "fewer rows", "zeros", "no json"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_torn_block_is_named_and_made_again(damage: str, number: int, whole: Path) -> None:
    before = contents(whole)
    tensors, rows = whole / f"block-{number:05d}-64x64.safetensors", whole / f"block-{number:05d}.jsonl"
    match damage:
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-7])
        case "empty":
            tensors.write_bytes(b"")
        case "zeros":
            tensors.write_bytes(bytes(len(tensors.read_bytes())))
        case "missing":
            tensors.unlink()
        case "no rows":
            rows.unlink()
        case "fewer rows":
            rows.write_text("")
        case "no json":
            rows.write_bytes(b"{" * len(rows.read_bytes()))
    with pytest.raises(UserError, match=f"block-{number:05d}.*aad1 prepare"):
        read_all(whole)
    if damage not in ("no rows", "fewer rows"):  # a block without lines is none
        with pytest.warns(UserWarning, match=f"block-{number:05d}"):
            assert missing(whole) == [number]
    write(whole)
    assert contents(whole) == before


@pytest.mark.parametrize("name", ["index.jsonl", "skipped.jsonl"])
def test_what_is_derived_is_written_again(name: str, whole: Path) -> None:
    before = contents(whole)
    (whole / name).unlink()
    write(whole)
    assert contents(whole) == before


def test_what_a_killed_process_leaves_is_cleared_away(whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "a", order=[1])
    (tmp_path / "a" / ".block-00002.jsonl.tmp").write_bytes(b"half")
    (tmp_path / "a" / "block-00000-64x64.safetensors").write_bytes(b"no lines came after it")
    assert missing(tmp_path / "a") == [0, 2]
    assert sorted(contents(tmp_path / "a")) == [
        ".lock",
        "block-00001-32x64.safetensors",
        "block-00001-64x64.safetensors",
        "block-00001.jsonl",
        "manifest.json",
    ]
    write(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(whole)


def test_a_store_that_kept_nothing_binds_nobody(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, MANIFEST, ["x"], block=4) as writer:
        write_block(tmp_path, MANIFEST, 0, [Skip(0, "x", "no caption")])
        writer.look()
        writer.complete()
    with pytest.raises(UserError, match="empty"):
        LatentStore(tmp_path)
    with StoreWriter(tmp_path, replace(MANIFEST, encoder="other"), ["y"], block=4) as writer:
        assert (writer.missing, writer.skips) == ([0], [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": "def"}, "encoder abc123, this run has def"),
        ({"fps": 24.0}, "fps 16.0, this run has 24.0"),
        ({"size": (32, 64)}, r"size \[64, 64\], this run has \[32, 64\]"),
        ({"buckets": ()}, r"buckets \[\[64, 64\], \[32, 64\]\], this run has \[\[64, 64\]\]"),
        ({"frames": 9}, "frames 5, this run has 9"),
        ({"kind": "trajectories"}, "kind latents, this run has trajectories"),
        ({"extra": {"steps": [5]}}, r"extra.steps \[4\], this run has \[5\]"),
        ({"extra": {}}, r"extra.steps \[4\], this run has not set"),
    ],
)
def test_other_settings_are_refused(change: dict[str, object], named: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match=named):
        write(whole, manifest=replace(MANIFEST, **change))  # type: ignore[arg-type]
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (["s0", "s1", "s2", "s3", "t4"], "begun with s4 as clip 4, now it is t4"),
        (["s0", "s1"], "begun with s2 as clip 2, now it is nothing"),
        (["s0", "s1", "s2", "t3"], "begun with s3 as clip 3, now it is t3"),  # also where it was left out
    ],
)
def test_other_sources_are_refused(now: list[str], named: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match=named), StoreWriter(whole, MANIFEST, now, block=4):
        pass
    assert contents(whole) == before


def test_uneven_clips_and_wrong_manifests_are_programming_errors(tmp_path: Path) -> None:
    uneven = [Clip({"latents": torch.zeros(1, width)}, {}) for width in (2, 3)]
    with pytest.raises(RuntimeError):
        write_block(tmp_path, MANIFEST, 0, uneven)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="kind"):
        replace(MANIFEST, kind="videos")
    with pytest.raises(ValueError, match="among them"):
        replace(MANIFEST, buckets=((8, 8),))
    with StoreWriter(tmp_path, MANIFEST, ["x"], block=4) as writer, pytest.raises(ValueError, match="missing"):
        writer.complete()


def test_a_full_disk_leaves_the_store_usable(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "a", order=[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            write(tmp_path / "a", order=[1])
        with pytest.raises(UserError, match="disk is full"):
            write(tmp_path / "new")
    assert not list((tmp_path / "a").glob(".*.tmp"))
    assert missing(tmp_path / "a") == [1, 2]
    write(tmp_path / "a")
    write(tmp_path / "new")
    assert contents(tmp_path / "a") == contents(tmp_path / "new") == contents(whole)


def test_two_runs_do_not_work_on_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aad1.data.claim.PATIENCE", 0.1)
    with StoreWriter(tmp_path, MANIFEST, sources(4), block=4):
        with pytest.raises(UserError, match="another run is working"), StoreWriter(tmp_path, MANIFEST, ["x"], block=4):
            pass
        assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path, 4)


# --- opening ----------------------------------------------------------------------------------


def test_what_is_no_store_is_said_so(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LatentStore(tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UserError, match="no latent store"):
        LatentStore(tmp_path / "other")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write(tmp_path / "other")
    facts = json.loads((whole / "manifest.json").read_text())
    for version, remedy in ((99, "update"), (1, "delete it")):
        (whole / "manifest.json").write_text(json.dumps({"format": version, "shards": []}))
        for attempt in (lambda: LatentStore(whole), lambda: write(whole)):
            with pytest.raises(UserError, match=rf"format {version}.*{remedy}"):
                attempt()
    for damaged in ("{", "[]", json.dumps(facts | {"size": 3}), json.dumps({"format": 2})):
        (whole / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            LatentStore(whole)


def test_an_unfinished_store_opens_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path, order=[])
    with pytest.raises(UserError, match="empty"):
        LatentStore(tmp_path, unfinished=True)
    write(tmp_path, order=[0, 2])
    with pytest.raises(UserError, match=r"unfinished \(6 clips so far\)"):
        LatentStore(tmp_path)
    store = LatentStore(tmp_path, unfinished=True)
    assert [row["source"] for row in store.rows()] == ["s0", "s1", "s2", "s8", "s9", "s10"]
    assert store.read([5])[0]["latents"].mean() == 10


def test_a_large_store_opens_without_its_blocks_and_holds_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    read = store_module.read_record
    monkeypatch.setattr("aad1.data.latents.read_record", lambda f, n: (opened.append(n), read(f, n))[1])
    blocks = 3 * OPEN_BLOCKS
    manifest = replace(MANIFEST, extra={})
    write_block(tmp_path, manifest, 0, [item(0), item(2)])
    record, tensors = (path.read_bytes() for path in sorted(tmp_path.iterdir(), key=lambda p: p.suffix))
    for number in range(blocks):
        record_path(tmp_path, number).write_bytes(record)
        (tmp_path / f"block-{number:05d}-64x64.safetensors").write_bytes(tensors)
    sizes = [{f"block-{n:05d}.jsonl": len(record)} for n in range(blocks)]
    write_index(tmp_path, [BlockFacts(n, "00", size) for n, size in enumerate(sizes)])
    write_header(tmp_path, Header(manifest, 2, 2 * blocks, complete=True))
    store = LatentStore(tmp_path)
    assert (len(store), opened) == (2 * blocks, [])
    assert len(store.rows()) == 2 * blocks
    assert opened == list(range(blocks))  # each once
    assert len(store._records) == OPEN_BLOCKS
    assert store.fingerprint(3) == LatentStore(tmp_path).fingerprint(3) != store.fingerprint(4)


def test_require_says_what_differs(whole: Path) -> None:
    store = LatentStore(whole)
    require(store, encoder="abc123", size=(64, 64), kind="latents", steps=[4])
    with pytest.raises(UserError, match=r"another VAE \(hash abc123\), this model's is zzz.*aad1 prepare"):
        require(store, encoder="zzz")
    with pytest.raises(UserError, match=r"fps 16\.0, this run needs 24"):
        require(store, fps=24)
    with pytest.raises(UserError, match="solver not set, this run needs euler"):
        require(store, solver="euler")


def test_blocks_are_plain_safetensors(whole: Path) -> None:
    with safe_open(whole / "block-00000-64x64.safetensors", framework="pt") as tensors:
        assert tensors.get_tensor("latents").shape == (2, 4, 2, 8, 8)
    assert json_lines([{"a": "\u2028"}]).count(b"\n") == 1
