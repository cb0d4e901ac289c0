"""Every kind of source gives the same list, and what is wrong with one costs one line or one entry."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Video
from numpy.typing import NDArray

from aad1.data.clips import read_clip, write_world_folder
from aad1.data.entries import ClipError, ClipFile
from aad1.data.sources import find_clips, find_files
from aad1.data.world import SIZE, make_clip
from aad1.errors import UserError

FRAMES, CLIPS = 5, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world_folder(folder, "train", CLIPS, FRAMES)
    return folder


def read(clip: ClipFile) -> NDArray[np.uint8]:
    return read_clip(clip, sizes=[(SIZE, SIZE)], fps=16, frames=FRAMES).frames


def rows(world: Path) -> list[dict[str, Any]]:
    """The world's clips with their bytes, as a table has them."""
    clips = find_clips(world)
    return [{"video": clip.path.read_bytes(), "caption": clip.caption} for clip in clips]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def members(world: Path, suffix: str = ".txt") -> dict[str, bytes]:
    found = {}
    for number, row in enumerate(rows(world)):
        text = row["caption"] if suffix == ".txt" else json.dumps({"text": row["caption"], "start": "0:01"})
        found |= {f"a/{number:03d}.mp4": row["video"], f"a/{number:03d}{suffix}": text.encode()}
    return found


# --- every kind gives the same ----------------------------------------------------------------


def csv_list(world: Path, folder: Path) -> Path:
    lines = [f'{os.path.relpath(c.path, folder)},"{c.caption}"' for c in find_clips(world)]
    (folder / "list.csv").write_text("\n".join(["video,caption", *lines]))
    return folder / "list.csv"


def utf16_jsonl(world: Path, folder: Path) -> Path:
    lines = [json.dumps({"path": str(c.path), "text": c.caption}, ensure_ascii=False) for c in find_clips(world)]
    (folder / "list.jsonl").write_text("\n".join(lines), encoding="utf-16")
    return folder / "list.jsonl"


def parquet_paths(world: Path, folder: Path) -> Path:
    listed = [{"path": os.path.relpath(c.path, folder), "text": c.caption} for c in find_clips(world)]
    pq.write_table(pa.Table.from_pylist(listed), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_bytes(world: Path, folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows(world)), folder / "a.parquet", row_group_size=2)
    return folder


def parquet_structs(world: Path, folder: Path) -> Path:
    nested = [{"mp4": {"bytes": r["video"], "path": None}, "caption": r["caption"]} for r in rows(world)]
    (folder / "data").mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(nested[2 * number :][:2]), folder / "data" / f"{number}.parquet")
    return folder


def one_tar(world: Path, folder: Path) -> Path:
    return shard(folder / "a.tar", members(world, ".json"))


def tars(world: Path, folder: Path) -> Path:
    held = list(members(world).items())
    shard(folder / "part-008.tar", dict(held[:2]))
    shard(folder / "part-009.tar", dict(held[2:4]))
    shard(folder / "part-010.tar", dict(held[4:]))
    return folder


def tar_pattern(world: Path, folder: Path) -> Path:
    return tars(world, folder) / "part-{008..010}.tar"


def saved_dataset(world: Path, folder: Path) -> Path:
    dataset = Dataset.from_list(rows(world))
    dataset.save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(world: Path, folder: Path) -> Path:
    nested = [{"video": {"bytes": r["video"], "path": None}, "caption": r["caption"]} for r in rows(world)]
    train = Dataset.from_list(nested).cast_column("video", Video(decode=True))
    DatasetDict({"val": train.select([0]), "train": train}).save_to_disk(folder / "saved")
    return folder / "saved"


def sidecars(world: Path, folder: Path) -> Path:
    for number, (name, data) in enumerate(members(world, ".json").items()):
        (folder / f"{number % 2}" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 2}" / name).write_bytes(data)
    for path in (folder / "1" / "a").iterdir():  # beside their videos
        path.rename(folder / "0" / "a" / path.name)
    return folder


KINDS = [
    csv_list, utf16_jsonl, parquet_paths, parquet_bytes, parquet_structs, one_tar, tars, tar_pattern, saved_dataset,
    saved_splits, sidecars,
]  # fmt: skip


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_source_gives_the_same_clips(
    make: Callable[[Path, Path], Path], world: Path, tmp_path: Path
) -> None:
    source = make(world, tmp_path)
    clips, wanted = find_clips(source), find_clips(world)
    assert [c.problem for c in clips] == [""] * CLIPS
    assert [c.caption for c in clips] == [c.caption for c in wanted]
    assert all(np.array_equal(read(a), read(b)) for a, b in zip(clips, wanted, strict=True))
    assert find_clips(source) == clips or make in (saved_dataset, saved_splits)  # datasets are objects of their own
    assert [c.name for c in find_clips(source)] == [c.name for c in clips]
    assert len({c.name for c in clips}) == CLIPS
    assert not any(str(tmp_path) in c.name or str(world) in c.name for c in clips)


def test_names_say_where_a_clip_lies(world: Path, tmp_path: Path) -> None:
    for make, last in ((parquet_structs, "data/1.parquet row 0"), (tars, "part-010.tar/a/002.mp4")):
        (tmp_path / make.__name__).mkdir()
        assert find_clips(make(world, tmp_path / make.__name__))[-1].name == last


def test_start_and_end_choose_a_part(world: Path, tmp_path: Path) -> None:
    video = find_clips(world)[0].path
    lines = ["video,caption,start,end", "a.mp4,x,0.125,", "a.mp4,x,,0.25", "a.mp4,x,2,1", "a.mp4,x,soon,"]
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / "list.csv").write_text("\n".join(lines))
    clips = find_clips(tmp_path / "list.csv")
    assert [c.name for c in clips[:2]] == ["a.mp4#t=0.125", "a.mp4#t=0,0.25"]
    whole = read_clip(clips[1], sizes=[(SIZE, SIZE)], fps=16, frames=4)
    later = read_clip(clips[0], sizes=[(SIZE, SIZE)], fps=16, frames=2)
    assert np.array_equal(later.frames, whole.frames[2:])
    assert later.facts["start"] == 0.125
    with pytest.raises(ClipError, match="too short: 4 of the 5"):
        read_clip(clips[1], sizes=[(SIZE, SIZE)], fps=16, frames=5)
    assert [c.problem for c in clips[2:]] == [
        "end 1 in line 4 of list.csv is not after start 2",
        "start 'soon' in line 5 of list.csv is no number of seconds",
    ]


def test_a_long_list_is_quick(tmp_path: Path) -> None:
    count = 100_000
    (tmp_path / "list.csv").write_text("video,caption\n" + "".join(f"v/{k}.mp4,a disc {k}\n" for k in range(count)))
    start = time.process_time()
    clips = find_clips(tmp_path / "list.csv")
    assert time.process_time() - start < 8
    assert clips[-1] == ClipFile(tmp_path / "v/99999.mp4", "a disc 99999", "v/99999.mp4")


def test_files_of_their_own_are_told_from_others(world: Path, tmp_path: Path) -> None:
    assert find_files(world) == find_clips(world)
    assert find_files(csv_list(world, tmp_path)) == find_clips(tmp_path / "list.csv")
    with pytest.raises(UserError, match="no folder of videos"):
        find_files(one_tar(world, tmp_path))


# --- captions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("ein Ball fällt\n".encode("utf-16"), "ein Ball fällt"),
        (b"\xfe\xff" + "ein Ball".encode("utf-16-be"), "ein Ball"),
        ("ein Ball fällt".encode("utf-32"), "ein Ball fällt"),
        ("\ufeffein  Ball\r\n fällt".encode(), "ein Ball fällt"),
        ("ein Ball fällt".encode("latin-1"), "is not readable UTF-8 text (byte 10 does not fit)"),
        ("“ball”".encode("cp1252"), "is not readable UTF-8 text (byte 0 does not fit)"),
        ("a ball".encode("utf-16-le"), "zero bytes"),
        (b"", "empty"),
        (b" \n\t", "empty"),
        ("a b\ufffdll".encode(), "decoded wrongly before"),
        (b"a" * 2_000_000, "longer than 1024 KiB"),
    ],
)
def test_captions_are_decoded_or_refused_but_never_mangled(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(data)
    (clip,) = find_clips(tmp_path)
    assert clip.caption == found if not clip.problem else found in clip.problem


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ('{"caption": "a ball"}', "a ball"),
        ('{"caption": null, "text": "a ball"}', "a ball"),
        ('{"caption": ["a", "b"]}', "no caption in a.json"),
        ('{"caption": "\\ud83d"}', "decoded wrongly before"),
        ('["a ball"]', "not a JSON object"),
        ('{"caption": "a b', "not JSON"),
        ("[" * 100_000, "no caption"),
    ],
)
def test_captions_in_json(tmp_path: Path, data: str, found: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.json").write_text(data)
    (clip,) = find_clips(tmp_path)
    assert clip.caption == found if not clip.problem else found in clip.problem


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"b\xe4ll.mp4")).touch()
    (clip,) = find_clips(tmp_path)
    assert clip.name == "b\\xe4ll.mp4"
    assert clip.path.is_file()
    assert "missing" in clip.problem


# --- bad entries ------------------------------------------------------------------------------


def test_what_is_listed_twice_is_used_once(tmp_path: Path) -> None:
    lines = ["a.mp4,a ball", "b.mp4,a ball", "./a.mp4,a ball", "a.mp4,a red ball", "a.mp4,a  ball"]
    (tmp_path / "list.csv").write_text("\n".join(["video,caption", *lines]))
    clips = find_clips(tmp_path / "list.csv")
    assert [c.name for c in clips] == ["a.mp4", "b.mp4", "./a.mp4", "a.mp4 (2)", "a.mp4 (3)"]
    assert [c.kind for c in clips if c.problem] == ["filtered", "filtered"]
    again = "listed before: the same clip and caption as a.mp4"
    assert [c.problem for c in clips] == ["", "", again, "", again]


def test_a_comma_in_a_caption_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("video,caption\na.mp4,a ball, which falls\nb.mp4,a ball\nc.mp4\n")
    found = [c.problem for c in find_clips(tmp_path / "list.csv")]
    assert found == [
        "line 2 has more columns than the header; put a caption in quotes",
        "",
        "no caption in line 4 of list.csv",
    ]


def test_a_torn_jsonl_loses_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "text": "x"}\n{"video": "b.mp4", "te')
    assert [c.problem for c in find_clips(tmp_path / "list.jsonl")] == ["", "line 2 is not a JSON object"]


def test_empty_cells_cost_only_themselves(world: Path, tmp_path: Path) -> None:
    held = [*rows(world)[:1], {"video": None, "caption": "x"}, {"video": b"", "caption": "x"}, *rows(world)[1:2]]
    held[3]["caption"] = None
    pq.write_table(pa.Table.from_pylist(held), tmp_path / "a.parquet")
    clips = find_clips(tmp_path / "a.parquet")
    read(clips[0])
    for clip, said in zip(clips[1:], ("its cell is empty", "its cell is empty", "no caption in row 3"), strict=True):
        with pytest.raises(ClipError, match=said):
            read(clip)


def test_a_torn_shard_keeps_what_stands_before(world: Path, tmp_path: Path) -> None:
    data = shard(tmp_path / "a.tar", members(world)).read_bytes()
    third = data.index(b"a/002.mp4")
    flipped = bytearray(data)
    flipped[third + 20] ^= 1  # its header's checksum fails, which tarfile takes for the end
    for torn, said in ((data[: third + 700], "cut off within a/002.mp4"), (bytes(flipped), "damaged at byte")):
        (tmp_path / "a.tar").write_bytes(torn)
        clips = find_clips(tmp_path / "a.tar")
        assert [c.name for c in clips] == ["a.tar/a/000.mp4", "a.tar/a/001.mp4", "a.tar"]
        assert said in clips[-1].problem
        assert read(clips[1]).shape[0] == FRAMES


def test_members_without_captions_and_others(world: Path, tmp_path: Path) -> None:
    video = rows(world)[0]["video"]
    held = {"a.mp4": video, "b.mp4": video, "b.txt": b"\xff", "c.jpg": b"", "._a.mp4": b"", "d.MP4": b"", "d.TXT": b"x"}
    found = {c.name: c.problem for c in find_clips(shard(tmp_path / "s.tar", held))}
    assert found.keys() == {"s.tar/a.mp4", "s.tar/b.mp4", "s.tar/d.MP4"}
    assert "no .txt or .json of its stem" in found["s.tar/a.mp4"]
    assert "not readable UTF-8" in found["s.tar/b.mp4"]
    assert found["s.tar/d.MP4"] == ""


# --- bad sources ------------------------------------------------------------------------------


def written(name: str, data: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return folder / name

    return write


def table(**columns: list[Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "a.parquet")
        return folder / "a.parquet"

    return write


def torn_table(folder: Path) -> Path:
    path = table(video=["a.mp4"], text=["x"])(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def mixture(folder: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "c.tar"):
        (folder / name).touch()
    return folder


def torn_dataset(folder: Path) -> Path:
    Dataset.from_list([{"video": b"x", "text": "x"}]).save_to_disk(folder)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"torn")
    return folder


BAD = [
    (written("a.csv", "video;caption\na.mp4;x\n"), "separates its columns by semicolons"),
    (written("a.csv", "video\tcaption\na.mp4\tx\n"), "separates its columns by tabs"),
    (written("a.csv", "file,caption\na.mp4,x\n"), "one must be named 'video' or 'path'"),
    (written("a.csv", 'video,caption\na.mp4,"a ball\nb.mp4,x\n'), "unexpected end of data"),
    (written("a.csv", "video,caption\na.mp4,b\xe4ll\n".encode("latin-1")), "not readable UTF-8 text"),
    (written("a.csv", ""), "the columns none"),
    (written("a.csv", "video,caption\n"), "holds no videos"),
    (written("a.parquet", b"PAR1 and nothing"), "cannot be read as Parquet"),
    (torn_table, "cannot be read as Parquet"),
    (table(file=["a.mp4"], text=["x"]), "one must be 'video' or 'path'"),
    (table(video=["a.mp4"], words=["x"]), "one must be named 'caption' or 'text'"),
    (table(video=[3], text=["x"]), "column 'video' holds int64"),
    (table(a=[b"x"], b=[b"x"], text=["x"]), "one must be 'video' or 'path'"),
    (mixture, "holds 2 videos and 1 shards"),
    (lambda folder: folder / "a-{000..002}.tar", "a-000.tar does not exist, one of 3 missing"),
    (lambda folder: folder / "a-{000..999999999}.tar", "stands for 1000000000 shards"),
    (torn_dataset, "cannot be loaded"),
    (lambda folder: "hf:nobody/nothing", r"hf:nobody/nothing cannot be loaded .*; check its name and split"),
    (lambda folder: "hf:", "cannot be loaded"),
    (written("a.zip", b""), "is no list of clips"),
]


@pytest.mark.parametrize(("make", "said"), BAD)
def test_a_bad_source_is_one_clear_line(make: Callable[[Path], str | Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find_clips(make(tmp_path))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08\0"], ids=["empty", "text", "gzip"])
def test_what_is_no_tar_is_one_entry(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    (clip,) = find_clips(tmp_path / "a.tar")
    assert clip.problem.startswith("it is no .tar that can be read by offset")


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None; sys.modules['datasets'] = None\n"
        "from aad1.data.sources import find_clips\n"
        "from aad1.errors import UserError\n"
        "for source in sys.argv[1:]:\n"
        "    try: find_clips(source)\n"
        "    except UserError as error: print(error)\n"
    )
    (tmp_path / "a.parquet").touch()
    run = [sys.executable, "-c", code, str(tmp_path / "a.parquet"), "hf:a/b"]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition(" needs ")[2] for line in said] == [
        'pyarrow; install it with: pip install "aad1[data]"',
        'datasets; install it with: pip install "aad1[data]"',
    ]


def test_a_dataset_of_the_hub_is_loaded_undecoded(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = [{"video": {"bytes": r["video"], "path": None}, "caption": r["caption"]} for r in rows(world)]
    dataset = Dataset.from_list(nested).cast_column("video", Video())
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: asked.append((name, split)) or dataset)
    for source, wanted in (("hf:a/b", ("a/b", "train")), ("hf:a/b:val", ("a/b", "val"))):
        clips = find_clips(source)
        assert asked[-1] == wanted
        assert np.array_equal(read(clips[1]), read(find_clips(world)[1]))
        assert replace(clips[0], inside=None) == ClipFile(Path("a/b"), make_clip("train", 0, 5).caption, "row 0")
