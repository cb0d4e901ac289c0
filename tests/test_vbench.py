"""VBench-I2V from outside: names, export, the user's environment, its processes, and the arithmetic on its results.

The official code is not needed: a stand-in of a few lines writes files of its shape, crashes, or writes NaN.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import with_student
from PIL import Image

from aad1.cli import vbench as commands
from aad1.data.media import VideoWriter, read_frames
from aad1.errors import UserError
from aad1.evaluation.report import read_report, to_markdown
from aad1.evaluation.vbench import doctor, export, names, score
from aad1.evaluation.vbench.dimensions import DIMENSIONS, OFFICIAL_IMAGES, REPORTED, SAMPLES, chosen
from aad1.evaluation.vbench.environment import CROPS, INFO, Environment, check_clone, probe, version_trouble
from aad1.evaluation.vbench.records import read_record
from aad1.evaluation.vbench.results import Results, check, check_sets, read_results
from aad1.evaluation.vbench.run import Outcome, Request, run
from aad1.streaming import load_student
from aad1.streaming.batch import Batch, Item

PROMPTS = ("a cat runs", "a tree in the wind")
ORDER = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "i2v_subject",
    "i2v_background",
)
PUBLISHED = {  # AAD-1's table of VBench-I2V, and Total on it
    "Wan 2.1": ((93.88, 94.86, 98.14, 51.09, 64.97, 70.12, 96.80, 98.59), 88.7),
    "AAD-1": ((94.34, 95.08, 98.22, 41.46, 60.07, 71.49, 98.65, 97.83), 88.3),
    "a frozen copy": ((100, 100, 100, 0, 60.07, 71.49, 100, 100), 89.3),
}


def write_video(path: Path, frames: int = 8, size: int = 32, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, size, size, 3), np.uint8)
    with VideoWriter(path, fps=16) as video:
        video.write(pixels)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of two prompts' five samples; read it, do not write into it."""
    folder = tmp_path_factory.mktemp("flat") / "videos"
    for i, prompt in enumerate(PROMPTS):
        for k in range(5):
            write_video(folder / names.video_name(prompt, k), seed=5 * i + k)
    return folder


@pytest.fixture
def videos(made: Path, tmp_path: Path) -> Path:
    """A copy of ``made`` to write into."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in made.iterdir():
        (folder / video.name).hardlink_to(video)
    return folder


# --- names ------------------------------------------------------------------------------------


def test_a_name_is_the_prompt_and_the_sample() -> None:
    assert names.video_name("  a cat\n runs ", 3) == "a cat runs-3.mp4"
    assert names.parse("a cat - runs-3") == ("a cat - runs", 3, None)
    assert names.parse(Path(names.segment_name("a cat runs-3", 4)).stem) == ("a cat runs", 3, 4)
    assert names.parse("a cat runs") == ("a cat runs", None, None)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("a/b", "has a '/'"), (" ", "empty"), (".a", "begins with a dot"), ("ä" * 130, "266 bytes; at most 255")],
)
def test_a_prompt_that_no_name_can_hold_is_refused(prompt: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        names.video_name(prompt, 0)


def test_a_good_folder_has_no_problems(made: Path) -> None:
    folder = names.look(made)
    assert len(folder.videos) == 10
    assert not folder.broken
    assert not folder.problems
    assert not folder.segments


def test_what_breaks_the_rules_is_named(videos: Path) -> None:
    (videos / "notes.txt").write_text("x")
    (videos / "a cat runs-1.mp4").rename(videos / "a cat runs-7.mp4")
    (videos / "a cat runs-2.mp4").rename(videos / "no number.mp4")
    write_video(videos / "a cat runs-3.mp4", frames=9)
    (videos / "a cat runs-4.mp4").unlink()
    (videos / "a cat runs-4.mp4").write_bytes(b"no video")
    folder = names.look(videos)
    told = "\n".join(folder.problems)
    for said in ("'notes.txt'", "end in -0 to -4: 'no number'", "a cat runs: [1, 2]", "a cat runs: [7]", "9 frames at"):
        assert said in told
    assert len(folder.broken) == 1
    assert "a cat runs-4.mp4 cannot be read" in folder.broken[0]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.mp4 files"):
        names.look(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        names.look(tmp_path / "nowhere")
    write_video(tmp_path / "a-0.mp4", frames=1)
    assert "1 frame; VBench compares" in names.look(tmp_path).broken[0]


# --- export -----------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, prompt in enumerate(("a red disc moves up", "a blue square moves left")):
        Image.fromarray(np.full((40, 60, 3), 60 * (i + 1), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(prompt)
    return folder


USUAL = Item("", Path(), "", 0, 0.5)


def test_a_student_makes_five_samples_and_goes_on(tiny_folder: Path, tmp_path: Path, pictures: Path) -> None:
    student = load_student(with_student(tiny_folder, tmp_path / "wan", (32, 32)))
    batch = Batch(student, tmp_path / "out" / "made", ".mp4", 16.0, 1)
    wanted = export.samples(export.folder_items(pictures, USUAL), export.SEEDS)
    first = export.generate(batch, wanted, tmp_path / "out")
    folder = names.look(tmp_path / "out" / "videos")
    assert (first.count, first.there, first.failed) == (10, 0, ())
    assert not folder.problems
    assert not folder.broken
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == [
        "a blue square moves left.jpg",
        "a red disc moves up.jpg",
    ]
    folder.videos[0].unlink()
    before = {video: video.stat().st_mtime_ns for video in folder.videos[1:]}
    again = export.generate(batch, wanted, tmp_path / "out")
    assert (again.count, again.there) == (10, 9)
    assert {video: video.stat().st_mtime_ns for video in folder.videos[1:]} == before
    other = export.samples(export.folder_items(pictures, USUAL), (0, 1, 2, 3, 9))
    assert export.generate(batch, other, tmp_path / "out").there == 8
    (tmp_path / "out" / "videos" / "stray.mp4").touch()
    with pytest.raises(UserError, match=r"also holds 1 other files \('stray.mp4'\)"):
        export.generate(batch, wanted, tmp_path / "out")


def test_samples_are_five_and_names_differ(pictures: Path) -> None:
    items = export.folder_items(pictures, USUAL)
    with pytest.raises(UserError, match="takes 5 samples"):
        export.samples(items, (0, 1, 2))
    assert len(export.samples(items, (0, 1, 2), any_number=True)) == 6
    with pytest.raises(UserError, match="would be the same file"):
        export.samples([items[0], replace(items[1], prompt="A red  disc moves up")], export.SEEDS)
    with pytest.raises(UserError, match=r"(?s)2 mistakes.*has a '/'.*empty prompt"):
        export.samples([replace(items[0], prompt="a/b"), replace(items[1], prompt="")], export.SEEDS)


def test_pictures_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        export.folder_items(tmp_path, USUAL)
    clone = fake_clone(tmp_path / "clone", {})
    with pytest.raises(UserError, match="lacks 2 of 2 pictures"):
        export.official_items(clone, "7-4", USUAL)
    with pytest.raises(UserError, match="ratio 4-3; VBench-I2V has 1-1"):
        export.official_items(clone, "4-3", USUAL)


def test_the_official_suite_is_read_from_the_clone(tmp_path: Path) -> None:
    clone = fake_clone(tmp_path / "clone", {})
    for prompt in PROMPTS:
        (clone / CROPS / "7-4").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (14, 8)).save(clone / CROPS / "7-4" / f"{prompt}.jpg")
    items = export.official_items(clone, "7-4", USUAL)
    assert [item.prompt for item in items] == list(PROMPTS)
    assert items[0].image.is_file()


def test_videos_that_are_there_are_renamed(tmp_path: Path, made: Path) -> None:
    rows = [{"video": str(v), "prompt": names.parse(v.stem).prompt} for v in sorted(made.iterdir())]
    source = tmp_path / "list.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    found = export.adopt(export.given_videos(source), tmp_path / "out")
    assert (found.count, found.there) == (10, 0)
    assert {p.name for p in found.videos.iterdir()} == {p.name for p in made.iterdir()}
    assert export.adopt(export.given_videos(made), tmp_path / "out").there == 10
    source.write_text("\n".join(json.dumps(row) for row in [*rows[:9], {"video": "gone.mp4", "prompt": "b"}]))
    with pytest.raises(UserError, match=r"(?s)2 mistakes.*gone.mp4 does not exist.*has 4 samples"):
        export.given_videos(source)


def test_long_videos_are_cut_into_segments(tmp_path: Path) -> None:
    source = tmp_path / "long"
    pixels = read_frames(write_video(source / "a-0.mp4", frames=21), 21)
    write_video(source / "a-1.mp4", frames=9)
    (source / "a-2.mp4").write_bytes(b"no video")
    given = export.given_videos(source, any_number=True)
    made = export.cut(given, tmp_path / "out", seconds=0.5)
    folder = names.look(made.videos)
    assert folder.segments
    assert not folder.problems
    assert folder.stems == ["a-0.seg00", "a-0.seg01"]
    assert (made.count, made.there) == (2, 0)
    assert "0.6 s long; drift needs two segments" in made.failed[0]
    assert "a-2.mp4 cannot be read" in made.failed[1]
    second = read_frames(folder.videos[1], 8).astype(float)
    assert np.abs(second - pixels[8:16]).mean() < 8 < 60 < np.abs(second - pixels[7:15]).mean()  # of noise
    assert export.cut(given, tmp_path / "out", seconds=0.5).there == 2


# --- a stand-in for VBench --------------------------------------------------------------------

STAND_IN = """
import json, os, pathlib
HERE = pathlib.Path(__file__).parent.parent

class VBench:
    def __init__(self, device, info, out):
        self.info, self.out = info, out

    def evaluate(self, videos_path, name, dimension_list=None, local=False, mode="vbench_standard", **kwargs):
        self.measure(videos_path, name, dimension_list[0], mode)

    def measure(self, videos_path, name, dimension, mode):
        (HERE / "calls.txt").open("a").write(dimension + "\\n")
        behaviour = json.loads((HERE / "behaviour.json").read_text()).get(dimension, "good")
        found = sorted(os.listdir(videos_path))
        if mode == "vbench_standard":
            asked = [row["prompt_en"] for row in json.load(open(self.info)) if dimension in row["dimension"]]
            found = [name for name in found if name.rsplit("-", 1)[0] in asked]
        if behaviour == "crash":
            print("loading\\n")
            raise RuntimeError("out of memory")
        if behaviour == "nothing":
            return
        top = 100 if dimension == "imaging_quality" else 0 if behaviour == "zero" else 1
        rows = [{"video_path": os.path.join(videos_path, n), "video_results": top * (0.5 + 0.01 * i)}
                for i, n in enumerate(found[1:] if behaviour == "few" else found)]
        mean = sum(row["video_results"] for row in rows) / len(rows) / (top or 1)
        mean = float("nan") if behaviour == "nan" else mean
        json.dump({dimension: [mean, rows]}, open(os.path.join(self.out, name + "_eval_results.json"), "w"))
"""
STAND_IN_I2V = """
from vbench import VBench

class VBenchI2V(VBench):
    def evaluate(self, videos_path, name, dimension_list=None, custom_image_folder=None, mode="vbench_standard",
                 local=False, resolution="1-1"):
        self.measure(videos_path, name, dimension_list[0], mode)
"""
TORCH = """
class cuda:
    is_available = staticmethod(lambda: False)
class hub:
    get_dir = staticmethod(lambda: "nowhere")
device = str
"""
LIST = [
    {"prompt_en": PROMPTS[0], "image_name": f"{PROMPTS[0]}.jpg"},
    {"prompt_en": PROMPTS[1], "image_name": f"{PROMPTS[1]}.jpg"},
    {"prompt_en": f"{PROMPTS[1]}, camera pans left"},
]
SUBJECT = [n for n in REPORTED if DIMENSIONS[n].images in ("subject", "both")]
BACKGROUND = [n for n in REPORTED if DIMENSIONS[n].images in ("background", "both")]


def fake_clone(folder: Path, behaviour: Mapping[str, str]) -> Path:
    """A folder that looks like a clone of VBench; the packages beside it are empty, so that it starts at once."""
    for package, source in (("vbench", STAND_IN), ("vbench2_beta_i2v", STAND_IN_I2V), ("torch", TORCH)):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(source)
    for package in ("numpy", "torchvision", "cv2", "PIL", "decord", "tqdm", "clip", "omegaconf", "easydict", "pyiqa"):
        (folder / f"{package}.py").touch()
    for package in ("timm", "transformers", "setuptools"):
        (folder / f"{package}.py").touch()
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    rows = [{**row, "dimension": d} for row, d in zip(LIST, (SUBJECT, BACKGROUND, ["camera_motion"]), strict=True)]
    (folder / INFO).write_text(json.dumps(rows))
    return folder


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    clone = check_clone(fake_clone(tmp_path / "clone", {}))
    return probe(sys.executable, clone, clone)


def behave(environment: Environment, **behaviour: str) -> None:
    assert environment.clone is not None
    (environment.clone / "behaviour.json").write_text(json.dumps(behaviour))


def calls(environment: Environment) -> list[str]:
    assert environment.clone is not None
    return (environment.clone / "calls.txt").read_text().split()


def request(environment: Environment, videos: Path, out: Path, **changes: Any) -> Request:
    return replace(Request(names.look(videos), out, environment), **changes)


# --- the user's environment -------------------------------------------------------------------


def test_the_probe_says_what_is_there(environment: Environment) -> None:
    assert "clone" in environment.source
    assert environment.own_images
    assert environment.device == "cpu"
    assert environment.packages["dreamsim"].problem.startswith("ModuleNotFoundError")
    assert environment.versions()["vbench python"].startswith("3.")


@pytest.mark.parametrize(
    ("python", "said"), [("no/such/python", "there is no Python at"), ("/bin/false", "cannot be asked what it has")]
)
def test_a_python_that_does_not_run_is_named(python: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        probe(python, None, tmp_path)


def test_a_folder_that_is_no_clone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        check_clone(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no clone of VBench"):
        check_clone(tmp_path)


def test_versions_outside_what_vbench_knows_are_named() -> None:
    assert version_trouble("numpy", "2.1.0") == "numpy 2.1.0, VBench wants numpy<2"
    assert not version_trouble("numpy", "1.26.4")
    assert not version_trouble("torch", "9")
    assert version_trouble("timm", "unknown")


def test_the_doctor_names_what_each_dimension_lacks(environment: Environment, made: Path, tmp_path: Path) -> None:
    asked = request(environment, made, tmp_path)
    found = {f.dimension: f for f in doctor.examine(asked, list(DIMENSIONS.values()))}
    assert [name for name, f in found.items() if f.ready] == ["temporal_flickering"]
    told = "\n".join(doctor.table(list(found.values())))
    for said in ("weights MUSIQ-SPAQ  ->  put it at", "-m pip install 'dreamsim==0.2.1'", "(--images)"):
        assert said in told
    for file in ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", "amt_model/amt-s.pth"):
        path = tmp_path / "cache" / file
        path.parent.mkdir(parents=True)
        path.touch()
    ready = [f.dimension for f in doctor.examine(asked, list(DIMENSIONS.values())) if f.ready]
    assert ready == ["motion_smoothness", "imaging_quality", "temporal_flickering"]
    assert not doctor.examine(asked, chosen(["i2v_subject"]), online=True)[0].ready
    assert "setuptools<81" in doctor.remedy("py", "clip", "ModuleNotFoundError: No module named 'pkg_resources'")
    assert any("10 in" in line for line in doctor.describe(environment, names.look(made)))


def test_the_doctors_exit_code(environment: Environment, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = commands.VBenchDoctor(environment.clone, sys.executable, made, dimensions=("temporal_flickering",))
    command.run([])
    assert "temporal_flickering  ready" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 2 dimensions cannot run: imaging_quality"):
        replace(command, dimensions=("temporal_flickering", "imaging_quality")).run([])


# --- running ----------------------------------------------------------------------------------


def by_name(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {outcome.dimension: outcome for outcome in outcomes}


def test_a_failure_costs_its_dimension_alone(environment: Environment, made: Path, tmp_path: Path) -> None:
    behave(environment, dynamic_degree="crash", aesthetic_quality="nan", motion_smoothness="few", i2v_subject="nothing")
    asked = request(environment, made, tmp_path / "out", images=tmp_path)
    for prompt in PROMPTS:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{prompt}.jpg")
    found = by_name(run(asked, chosen(REPORTED)))
    reasons = {name: outcome.reason for name, outcome in found.items() if outcome.state == "failed"}
    assert "RuntimeError: out of memory" in reasons["dynamic_degree"]
    assert "dynamic_degree.log" in reasons["dynamic_degree"]
    assert "aesthetic_quality's mean is nan" in reasons["aesthetic_quality"]
    assert "9 of 10 videos and left out 'a cat runs-0'" in reasons["motion_smoothness"]
    assert "VBench wrote no result" in reasons["i2v_subject"]
    assert len(reasons) == 4
    assert found["imaging_quality"].mean == pytest.approx(0.545)
    assert set(read_record(tmp_path / "out").failed) == set(reasons)
    assert not (tmp_path / "out" / "aesthetic_quality.json").exists()


def test_what_is_finished_is_kept_over_the_same_videos(environment: Environment, videos: Path, tmp_path: Path) -> None:
    wanted = chosen(["temporal_flickering", "imaging_quality"])
    behave(environment, imaging_quality="crash")
    run(request(environment, videos, tmp_path / "out"), wanted)
    behave(environment)
    again = by_name(run(request(environment, videos, tmp_path / "out"), wanted))
    assert (again["temporal_flickering"].state, again["imaging_quality"].state) == ("kept", "measured")
    assert calls(environment) == ["temporal_flickering", "imaging_quality", "imaging_quality"]
    assert not read_record(tmp_path / "out").failed
    newer = {**environment.packages, "torch": replace(environment.packages["torch"], version="99")}
    [other] = run(request(replace(environment, packages=newer), videos, tmp_path / "out"), wanted[:1])
    assert other.state == "measured"  # its numbers may differ
    (tmp_path / "out" / "imaging_quality.json").write_text("{")
    write_video(videos / "a cat runs-0.mp4", seed=77)
    assert {o.state for o in run(request(environment, videos, tmp_path / "out"), wanted)} == {"measured"}
    behave(environment, temporal_flickering="crash")
    write_video(videos / "a cat runs-0.mp4", seed=78)
    run(request(environment, videos, tmp_path / "out"), wanted[:1])
    assert not (tmp_path / "out" / "temporal_flickering.json").exists()  # it was of other videos


def test_zero_is_a_result(environment: Environment, videos: Path, tmp_path: Path) -> None:
    """Dynamic degree of a frozen model is 0, and it is not measured again for that."""
    behave(environment, dynamic_degree="zero")
    for state in ("measured", "kept"):
        [found] = run(request(environment, videos, tmp_path / "out"), chosen(["dynamic_degree"]))
        assert (found.state, found.mean) == (state, 0)
    assert calls(environment) == ["dynamic_degree"]


def test_videos_that_cannot_be_read_are_refused(environment: Environment, videos: Path, tmp_path: Path) -> None:
    (videos / "a cat runs-0.mp4").unlink()
    (videos / "a cat runs-0.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"a cat runs-0\.mp4 cannot be read"):
        run(request(environment, videos, tmp_path / "out"), chosen(["temporal_flickering"]))


def test_the_official_suite_goes_over_its_own_parts(environment: Environment, videos: Path, tmp_path: Path) -> None:
    assert environment.clone is not None
    (environment.clone / CROPS / "7-4").mkdir(parents=True)
    asked = request(environment, videos, tmp_path / "out", mode="standard")
    found = by_name(run(asked, chosen([*REPORTED, "temporal_flickering"])))
    assert "asks for no temporal_flickering" in found["temporal_flickering"].reason
    results = read_results(tmp_path / "out")
    assert {name: len(r.videos or ()) for name, r in results.dimensions.items()} == {
        name: 10 if DIMENSIONS[name].images == "both" else 5 for name in REPORTED
    }
    assert "pictures with a subject" in check_sets(results.dimensions)
    scored = score.score(results)
    assert (scored.videos, scored.images) == (10, 2)
    (videos / "a cat runs-4.mp4").unlink()
    with pytest.raises(UserError, match=r"lacking: 'a cat runs: \[4\]'"):
        run(request(environment, videos, tmp_path / "out", mode="standard"), chosen(REPORTED))


def test_an_old_vbench_takes_no_own_images(environment: Environment, made: Path, tmp_path: Path) -> None:
    old = replace(environment, vbench_i2v=replace(environment.vbench_i2v, arguments=("videos_path", "name")))
    [found] = run(request(old, made, tmp_path / "out", images=tmp_path), chosen(["i2v_subject"]))
    assert "takes no pictures of one's own" in found.reason
    [found] = run(request(environment, made, tmp_path / "out", images=tmp_path), chosen(["i2v_subject"]))
    assert "lacks the pictures of 2 prompts ('a cat runs'" in found.reason


def test_the_run_command(
    environment: Environment, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(environment, imaging_quality="crash")
    command = commands.VBenchRun(
        made, environment.clone, sys.executable, dimensions=("temporal_flickering",), out=tmp_path / "out"
    )
    command.run([])
    assert "temporal_flickering        54.50  measured" in capsys.readouterr().out
    with pytest.raises(UserError, match="imaging_quality failed: VBench ended with code 1"):
        replace(command, dimensions=("imaging_quality",)).run([])
    with pytest.raises(UserError, match="did you mean 'imaging_quality'"):
        replace(command, dimensions=("image_quality",)).run([])


# --- the arithmetic ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", PUBLISHED)
def test_total_of_the_published_rows(model: str) -> None:
    values, total = PUBLISHED[model]
    made = score.combine({name: value / 100 for name, value in zip(ORDER, values, strict=True)})
    assert made["total"] is not None
    assert 100 * made["total"] == pytest.approx(total, abs=0.05)


def test_a_frozen_copy_scores_above_what_moves() -> None:
    assert PUBLISHED["a frozen copy"][1] > PUBLISHED["Wan 2.1"][1] > PUBLISHED["AAD-1"][1]
    assert "frozen copy" in score.WHY


def entry(name: str, prompts: Sequence[str] = PROMPTS, level: float = 0.9, spread: float = 0.01) -> list[Any]:
    """[mean, [videos]] of five samples a prompt, as VBench writes it."""
    top = DIMENSIONS[name].per_video
    rows = [
        {"video_path": f"/videos/{prompt}-{k}.mp4", "video_results": top * (level + spread * (i - k / 5))}
        for i, prompt in enumerate(prompts)
        for k in range(5)
    ]
    return [float(np.mean([row["video_results"] for row in rows])) / top, rows]


def write_results(folder: Path, **entries: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in entries.items():
        (folder / f"{name}.json").write_text(json.dumps({name: value}))
    return folder


def test_a_report_of_whole_results(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "m", **{name: entry(name) for name in REPORTED})
    report = score.report([score.Model("m", folder)], tmp_path)
    row = report.tables[0].rows["m"]
    total, dynamic = row["total"], row["dynamic_degree"]
    assert total is not None
    assert dynamic is not None
    assert total.low < total.mean < total.high
    means = {name: r.mean for name, r in read_results(folder).dimensions.items()}
    assert total.mean == pytest.approx(100 * (score.combine(means)["total"] or 0))
    assert len(report.clips) == 10
    assert report.clips[0].caption in PROMPTS
    lines = to_markdown(report).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| Total"))
    assert lines[at + 1].startswith("| dynamic degree")
    assert score.WHY in lines
    assert report.missing == ["m: drift: no results of segments were given (--segments)"]
    assert any(
        "10 videos of 2 images; the official suite has 1775 of 355, subject dimensions over" in note
        for note in report.notes
    )


def test_the_official_numbers_over_one_set_are_not_the_official_suite(tmp_path: Path) -> None:
    """Custom mode runs every dimension over all videos: as many as the official suite has, but not its split."""
    stems = [f"image {i:03d}-{k}" for i in range(OFFICIAL_IMAGES) for k in range(SAMPLES)]
    rows = [{"video_path": f"{stem}.mp4", "video_results": 0.5} for stem in stems]
    folder = write_results(tmp_path / "m", i2v_subject=[0.5, rows], i2v_background=[0.5, rows])
    assert any("cannot stand beside published ones" in note for note in score.score(read_results(folder)).notes)


def test_camera_motion_has_prompts_of_its_own(tmp_path: Path) -> None:
    camera = [{"video_path": f"camera {i}-0.mp4", "video_results": True} for i in range(3)]
    folder = write_results(tmp_path, **{name: entry(name) for name in REPORTED}, camera_motion=[1.0, camera])
    scored = score.score(read_results(folder))
    assert scored.measures["i2v"] is not None
    assert (scored.videos, scored.images) == (10, 2)
    assert any("I2V includes camera motion" in note for note in scored.notes)


def test_total_and_dynamic_degree_have_lines_even_where_they_are_not_known(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "m", **{n: entry(n) for n in REPORTED if n != "dynamic_degree"})
    lines = to_markdown(score.report([score.Model("m", folder)], tmp_path)).splitlines()
    assert any(line.startswith("| Total") and line.endswith("| N/A |") for line in lines)
    assert any(line.startswith("| dynamic degree") and line.endswith("| N/A |") for line in lines)


def test_a_missing_dimension_makes_its_scores_na(tmp_path: Path) -> None:
    kept = {name: entry(name) for name in REPORTED if name != "dynamic_degree"}
    bad = {"motion_smoothness": [math.nan, []]}
    scored = score.score(read_results(write_results(tmp_path, **{**kept, **bad})))
    assert scored.measures["total"] is None
    assert scored.measures["quality"] is None
    assert scored.measures["i2v"] is not None
    told = "\n".join(scored.missing)
    assert "motion_smoothness's mean is nan" in told
    assert "Total is N/A without motion_smoothness, dynamic_degree" in told


def broken(name: str, **change: Any) -> list[Any]:
    mean, rows = entry(name)
    return [change.get("mean", mean), [{**rows[0], **change.get("row", {})}, *rows[1:]]]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("imaging_quality", [0.7, []], "over no videos"),
        ("imaging_quality", [None, []], "mean is None"),
        ("imaging_quality", [70.0, [{"video_path": "a", "video_results": 70.0}]], "mean is 70, outside 0 to 1"),
        ("imaging_quality", broken("imaging_quality", mean=0.3), "is not that of its 10 videos.*divides its mean by"),
        ("aesthetic_quality", broken("aesthetic_quality", row={"video_results": 5.0}), "is 5, outside 0 to 1"),
        ("aesthetic_quality", broken("aesthetic_quality", row={"video_results": math.nan}), "is nan"),
        ("aesthetic_quality", broken("aesthetic_quality", row={"video_path": "a cat runs-1.mp4"}), "twice"),
        ("aesthetic_quality", broken("aesthetic_quality", row={"video_path": None}), "without a video_path"),
        ("subject_consistency", broken("subject_consistency", mean=0.5), "videos of one length are needed"),
        ("aesthetic_quality", 0.6, r"is not \[mean, \[videos\]\]"),
        ("color", [0.6, []], "no dimension of VBench-I2V"),
    ],
)
def test_a_result_that_cannot_be_right_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(name, value)


def test_a_mean_over_frames_is_checked_by_its_counts() -> None:
    rows = [
        {"video_path": "a-0.mp4", "video_results": 0.9, "video_sim": 9.0, "cnt_per_video": 10},
        {"video_path": "a-1.mp4", "video_results": 0.6, "video_sim": 18.0, "cnt_per_video": 30},
    ]
    assert check("background_consistency", [0.675, rows]).mean == 0.675


def test_booleans_of_dynamic_degree_are_numbers() -> None:
    rows = [{"video_path": f"a-{k}.mp4", "video_results": k < 2} for k in range(5)]
    assert check("dynamic_degree", [0.4, rows]).videos == {f"a-{k}": float(k < 2) for k in range(5)}


def test_results_over_different_videos_are_refused(tmp_path: Path) -> None:
    other = {**{n: entry(n) for n in REPORTED}, "dynamic_degree": entry("dynamic_degree", ("a dog",))}
    with pytest.raises(UserError, match="are over different videos: 15 are in one alone"):
        score.score(read_results(write_results(tmp_path, **other)))


def test_a_dimension_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write_results(tmp_path, imaging_quality=entry("imaging_quality"))
    (folder / "x_eval_results.json").write_text(json.dumps({"imaging_quality": entry("imaging_quality")}))
    with pytest.raises(UserError, match="both hold imaging_quality"):
        read_results(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no VBench results"):
        read_results(tmp_path / "empty")


def test_means_alone_have_no_interval(tmp_path: Path) -> None:
    scored = score.score(read_results(write_results(tmp_path, **{n: [0.9] for n in REPORTED})))
    total = scored.measures["total"]
    assert total is not None
    assert total.low == pytest.approx(total.mean)
    assert any(note.startswith("No interval") for note in scored.notes)


# --- drift ------------------------------------------------------------------------------------


def segments(levels: Mapping[str, Sequence[float]]) -> list[Any]:
    rows = [
        {"video_path": f"/s/{video}.seg{i:02d}.mp4", "video_results": level}
        for video, parts in levels.items()
        for i, level in enumerate(parts)
    ]
    return [float(np.mean([row["video_results"] for row in rows])) / 100, rows]


def test_drift_is_the_spread_over_segments(tmp_path: Path) -> None:
    value = segments({"a-0": [70, 70, 70], "a-1": [70, 60, 50], "b-0": [50, 60, 70]})
    found = score.drift(check("imaging_quality", value))
    assert found.videos["a-0"] == pytest.approx(0)
    assert found.videos["a-1"] == pytest.approx(float(np.std([70, 60, 50])))
    assert found.mean.mean == pytest.approx(2 / 3 * float(np.std([70, 60, 50])))
    assert [x for x, _ in found.curve] == [1, 3, 5]
    assert [y for _, y in found.curve] == pytest.approx([190 / 3] * 3)
    whole = write_results(tmp_path / "whole", **{n: entry(n) for n in REPORTED})
    parts = write_results(tmp_path / "parts", imaging_quality=value)
    report = score.report([score.Model("m", whole, parts)], tmp_path)
    assert report.tables[0].rows["m"]["drift"] == found.mean
    assert not report.missing
    assert report.curves[0].lines["m"] == list(found.curve)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"a-0": [70], "b-0": [70]}, "one segment a video"),
        ({"a-0": [70, 60], "b-0": [70, 60, 50]}, "videos of 2 to 3 segments"),
    ],
)
def test_segments_that_have_no_drift_are_refused(levels: Mapping[str, Sequence[float]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        score.drift(check("imaging_quality", segments(levels)))
    with pytest.raises(UserError, match="is no segment"):
        score.drift(check("imaging_quality", entry("imaging_quality")))
    held = segments({"a-0": [70, 60, 50]})
    del held[1][1]
    with pytest.raises(UserError, match=r"lacks segments \[1\]"):
        score.drift(check("imaging_quality", [0.6, held[1]]))


# --- the whole way ----------------------------------------------------------------------------


def test_from_run_to_report(
    environment: Environment, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dimensions = [name for name in REPORTED if DIMENSIONS[name].score == "quality"]
    behave(environment, dynamic_degree="crash")
    run(request(environment, made, tmp_path / "m" / "results"), chosen(dimensions))
    command = commands.VBenchScore((tmp_path / "m" / "results",), out=tmp_path / "report")
    with pytest.raises(UserError, match="no Total for m: a dimension is missing"):
        command.run([])
    report = read_report(tmp_path / "report")
    assert report.made["vbench python"].startswith("3.")
    assert "clone" in report.made["vbench"]
    assert any("dynamic_degree failed: VBench ended with code 1" in line for line in report.missing)
    assert (tmp_path / "report" / report.clips[0].video).is_file()
    assert "Missing: " in (tmp_path / "report" / "report.md").read_text()
    assert score.WHY in capsys.readouterr().out


def test_the_score_command_wants_a_name_each(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="score needs folders"):
        commands.VBenchScore(()).run([])
    with pytest.raises(UserError, match="give each its own"):
        commands.VBenchScore((tmp_path / "a", tmp_path / "b"), names=("x", "x")).run([])
    with pytest.raises(UserError, match="give one each"):
        commands.VBenchScore((tmp_path / "a",), segments=(tmp_path, tmp_path)).run([])


def test_the_export_command_takes_one_source(tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="takes one of --images"):
        commands.VBenchExport().run([])
    with pytest.raises(UserError, match="give --existing"):
        commands.VBenchExport(images=tmp_path, segments=2.0).run([])
    commands.VBenchExport(existing=made, out=tmp_path / "out").run([])
    assert "10 videos, 0 of them were there" in capsys.readouterr().out


def test_no_usable_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable result: broken"):
        score.score(Results(tmp_path, {}, ("broken",)))
