"""The paper's experiments: what needs what, the grid that runs them, and the tables made of its pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from aad1.cli import main
from aad1.errors import UserError
from aad1.reproduction import writing
from aad1.reproduction.experiments import EXPERIMENTS, Condition, Experiment
from aad1.reproduction.pieces import FORMAT, PARTS, Piece, ProtocolResult
from aad1.reproduction.running import Grid
from aad1.reproduction.summary import Line, summarise
from aad1.reproduction.tasks import tasks_for

EVERY = [condition for experiment in EXPERIMENTS for condition in experiment.conditions]
OURS, OTHER = Condition("ours"), Condition("other", "consistency-0")
TWO = Experiment("two", "Two of them", "one is better", (OURS, OTHER), {"short": ("rho", "kappa", "drift")})


# --- what needs what --------------------------------------------------------------------------


def step(condition: Condition, seed: int, name: str) -> str:
    (found,) = [task.name for task in tasks_for(condition, seed).all_needs() if task.step == name]
    return found


def test_every_experiment_can_be_told_apart_and_loaded() -> None:
    assert len({experiment.name for experiment in EXPERIMENTS}) == len(EXPERIMENTS)
    for experiment in EXPERIMENTS:
        assert len({condition.label for condition in experiment.conditions}) == len(experiment.conditions)
        for condition in experiment.conditions:
            assert tasks_for(condition, 0).load().model == "tiny"
    different = {condition.piece(0): (c.recipe, c.stage, dict(c.student)) for condition in EVERY for c in (condition,)}
    assert len({str(value) for value in different.values()}) == len(different)


def test_a_stage_is_trained_once_for_the_recipes_that_agree() -> None:
    base, causal, free = Condition("a"), Condition("b", "critic-causal-frame"), Condition("c", "collapse-free")
    assert step(base, 0, "dmd_warmup") == step(causal, 0, "dmd_warmup")
    assert step(base, 0, "adversarial") != step(causal, 0, "adversarial")
    assert step(base, 0, "clips") == step(base, 1, "clips")
    assert step(base, 0, "ode_init") != step(base, 1, "ode_init")
    assert step(base, 0, "clips") != step(free, 0, "clips")


def test_a_window_changed_after_training_trains_nothing_anew() -> None:
    narrow = Condition("narrow", student={"local_attn_size": 5})
    assert step(narrow, 0, "adversarial") == step(Condition("a"), 0, "adversarial")
    assert tasks_for(narrow, 0).assembly(Path()).recipe.student.local_attn_size == 5
    grid = Grid(Path(), Path(), (0,), 1)
    assert grid.key(tasks_for(narrow, 0)) != grid.key(tasks_for(Condition("a"), 0))


def test_without_a_warmup_stage_two_is_not_needed() -> None:
    steps = [task.step for task in tasks_for(Condition("a", "no-warmup"), 0).all_needs()]
    assert steps == ["clips", "trajectories", "ode_init", "adversarial"]


# --- tables -----------------------------------------------------------------------------------


def piece(seed: int, sums: np.ndarray) -> Piece:
    curves = {name: [(1.0, 2.0), (0.0, 0.0)] for name in ("rho", "id_ok", "quality")}
    tracks = ["free"] * len(sums)
    held = ProtocolResult(81, tracks, sums.tolist(), curves)
    return Piece(FORMAT, "", "base", "adversarial", seed, PARTS, {"short": held}, [])


@pytest.fixture
def pieces() -> dict[str, list[Piece]]:
    rng = np.random.default_rng(0)
    made: dict[str, list[Piece]] = {"ours": [], "other": []}
    for seed, label in product((0, 1, 2), made):
        sums = rng.uniform(1, 2, (20, len(PARTS), 2))
        sums[:, PARTS.index("rho"), 0] *= 1.5 if label == "other" else 1.0
        sums[::2, PARTS.index("drift")] = 0  # half of the clips are static
        made[label].append(piece(seed, sums))
    return made


def lines(pieces: dict[str, list[Piece]]) -> list[Line]:
    return summarise(TWO, "short", pieces)


def test_seeds_and_clips_are_pooled_by_their_sums(pieces: dict[str, list[Piece]]) -> None:
    ours, other = lines(pieces)
    for line in (ours, other):
        arrays = [held.protocols["short"].array() for held in pieces[line.condition.label]]
        for name in ("rho", "drift"):
            index = PARTS.index(name)
            top, bottom = (sum(clip[index][i] for array in arrays for clip in array) for i in (0, 1))
            assert line.values[name].mean == pytest.approx(top / bottom)  # type: ignore[union-attr]
            each = [array[:, index, 0].sum() / array[:, index, 1].sum() for array in arrays]
            assert line.by_seed[name] == pytest.approx(each)
        first, last = (PARTS.index(name) for name in ("rho_first", "rho_last"))
        total = np.sum([array.sum(axis=0) for array in arrays], axis=0)
        kappa = (total[last, 0] / total[last, 1]) / (total[first, 0] / total[first, 1])
        assert line.values["kappa"].mean == pytest.approx(kappa)  # type: ignore[union-attr]
        assert line.curves["rho"] == [0.5, None]


def test_a_difference_is_taken_within_each_draw(pieces: dict[str, list[Piece]]) -> None:
    ours, other = lines(pieces)
    assert ours.changes == {}
    assert other.differs("rho")
    assert not other.differs("drift")
    same = lines({"ours": pieces["ours"], "other": pieces["ours"]})[1]
    assert all(change is not None and change.low == change.high == 0 for change in same.changes.values())


def test_a_seed_that_one_of_them_lacks_is_in_no_difference(pieces: dict[str, list[Piece]]) -> None:
    _, both = lines({"ours": pieces["ours"][:2], "other": pieces["other"][:2]})
    _, lacking = lines({"ours": pieces["ours"], "other": pieces["other"][:2]})
    assert lacking.changes == both.changes
    _, none = lines({"ours": pieces["ours"][:2], "other": pieces["other"][1:]})
    assert none.changes == {}


def test_intervals_hold_the_spread_of_seeds() -> None:
    """With no noise over clips it is Student's t of the seeds' values, 4.303 for three."""
    sums = np.ones((20, len(PARTS), 2))
    far = [piece(seed, sums * np.array([scale, 1.0])) for seed, scale in enumerate((0.5, 1.0, 1.5))]
    rho = lines({"ours": far, "other": []})[0].values["rho"]
    assert rho is not None
    assert (rho.mean, rho.high - rho.mean) == (1.0, pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3))


def test_bold_is_rare_where_there_is_no_difference() -> None:
    """Two conditions of one distribution, whose seeds differ: 5 % of them may look different."""
    rng, bold, times = np.random.default_rng(0), 0, 300
    for _ in range(times):
        made = {}
        for label in ("ours", "other"):
            levels = rng.normal(1, 0.1, 3)
            made[label] = [
                piece(s, np.stack([rng.normal(v, 0.1, (20, len(PARTS))), np.ones((20, len(PARTS)))], 2))
                for s, v in enumerate(levels)
            ]
        bold += lines(made)[1].differs("rho")
    assert 0.01 * times < bold < 0.09 * times


def test_a_document_keeps_what_is_outside_the_marks(tmp_path: Path, pieces: dict[str, list[Piece]]) -> None:
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- experiment two -->\nformer numbers\n<!-- end of two -->\nafter\n")
    found = {"two": {"short": lines(pieces)}}
    writing.write_results(document, [TWO], found, {"two": []}, "Made here.")
    text = document.read_text()
    assert text.startswith("before\n<!-- experiment two -->\nThe paper: one is better.\n")
    assert text.endswith("Made here.\n\n<!-- end of two -->\nafter\n")
    assert "former" not in text
    assert "| other | **" in text
    writing.write_results(document, [TWO], found, {"two": []}, "Made here.")
    assert document.read_text() == text
    document.write_text("nothing")
    with pytest.raises(UserError, match="no place for 'two': put <!-- experiment two -->"):
        writing.write_results(document, [TWO], found, {"two": []}, "")
    with pytest.raises(UserError, match="cannot read"):
        writing.write_results(tmp_path / "none.md", [TWO], found, {"two": []}, "")


def test_a_line_that_lacks_seeds_says_which_it_has(tmp_path: Path, pieces: dict[str, list[Piece]]) -> None:
    whole = writing.to_markdown(TWO, {"short": lines(pieces)}, [], "")
    lacking = writing.to_markdown(
        TWO, {"short": lines({"ours": pieces["ours"], "other": pieces["other"][:1]})}, ["a"], ""
    )
    assert "(seeds" not in whole
    assert "| other (seeds 0) |" in lacking
    assert "**Not measured yet: a.**" in lacking
    none = writing.to_markdown(TWO, {"short": []}, ["a", "b"], "")
    assert "Not measured yet: `aad1 reproduce --experiments two` does it." in none
    assert "|" not in none
    assert "| ours |" in lacking


def test_all_of_it_is_one_report(pieces: dict[str, list[Piece]]) -> None:
    report = writing.as_report([TWO], {"two": {"short": lines(pieces)}}, ["x is missing"], "aad1 reproduce")
    assert report.models == ["ours", "other"]
    assert [column.name for column in report.columns] == ["rho", "kappa", "drift"]
    assert len(report.curves) == 3
    assert report.missing == ["x is missing"]


# --- the grid ---------------------------------------------------------------------------------

SMALLEST = {
    "data.clips": 2,
    "data.validation": 1,
    "data.frames": 17,
    "showing.clips": 1,
    "trajectories.count": 2,
    "trajectories.batch": 2,
    "ode_init.steps": 1,
    "ode_init.batch": 1,
    "device": "cpu",
}
SMALL = Experiment(
    "small", "Small", "it runs", (Condition("VAE", stage="truth_vae"), Condition("I", stage="ode_init")), TWO.measures
)


def grid(folder: Path, model: Path, **changes: object) -> Grid:
    values = [word for key, value in SMALLEST.items() for word in (f"--{key}", str(value))]
    made = Grid(folder, folder / "results", (0,), 1, ["--model", str(model), *values], clips=1)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_grid_does_what_is_missing_and_no_more(tiny_folder: Path, tmp_path: Path) -> None:
    whole = grid(tmp_path, tiny_folder)
    assert len(whole.undone([SMALL])) == 2
    assert whole.run([SMALL]) == []
    assert whole.undone([SMALL]) == []
    found = whole.pieces(SMALL)
    assert [len(own) for own in found.values()] == [1, 1]
    assert {line.condition.label for line in summarise(SMALL, "short", found)} == {"VAE", "I"}
    assert [row["step"] for row in found["I"][0].training] == [1]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*.json")}
    (tmp_path / "results" / "base-truth_vae.json").write_text("{torn")
    assert whole.run([SMALL]) == []
    changed = {path.stem for path in times if path.stat().st_mtime_ns != times[path]}
    assert changed == {"base-truth_vae"}
    assert json.loads((tmp_path / "results" / "base-truth_vae.json").read_text())["format"] == FORMAT
    assert len(replace(whole, seeds=(1,)).undone([SMALL])) == 1  # the truth has no seed


@pytest.mark.slow
def test_a_step_that_fails_is_named_and_what_needs_it_is_not_tried(tiny_folder: Path, tmp_path: Path) -> None:
    broken = grid(tmp_path, tiny_folder)
    broken = replace(broken, values=[*broken.values, "--data.source", "world:nonsense"])
    failed = broken.run([SMALL])
    assert any("world:nonsense" in line for line in failed)
    assert sum("needs" in line for line in failed) >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experiments", "critics"], "did you mean 'critic'"),
        (["--workers", "0"], "0 workers"),
        (["--clips", "0"], "--clips 0: use 1 or more"),
        (["--seeds", "0", "0"], "names one twice"),
        (["--experiments", "critic", "--data.clip", "2"], "did you mean 'clips'"),
        (["--experiments", "critic", "--write", "nowhere.md"], "cannot read nowhere.md"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "-o", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
