"""The doctor: made-up logs that each show one trouble, real ones that show none, and damaged ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from aad1.cli import main
from aad1.cli.doctor import BLOCKS, TROUBLE, sparkline
from aad1.errors import UserError
from aad1.evaluation.diagnosis.examine import Diagnosis, diagnose
from aad1.evaluation.diagnosis.findings import Finding, Severity
from aad1.evaluation.diagnosis.log import LOG, RECIPE, trend
from aad1.recipe import as_dict, load_recipe

Row = dict[str, float]
Change = Callable[[int, Row], object]
REAL = Path(__file__).parent / "logs"  # of an experiment's stages: ablations/base, ablations/collapse-long, seed 1
EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
LOOKS = {"eval/luma_slope": 0.01, "eval/saturation_slope": -0.01, "eval/grid": 1.03}
STEPS = {"ode_init": 800, "dmd_warmup": 60, "adversarial": 120, "teacher": 11500}


# --- made-up logs -----------------------------------------------------------------------------


def wobble(step: int, size: float) -> float:
    """Scatter that is the same in every run."""
    return size * math.sin(12.9 * step)


def held_out(step: int) -> Row:
    return {
        "eval/rho": 1.15 + wobble(step, 0.08),
        "eval/kappa": 1.6 + wobble(step + 1, 0.3),
        "eval/freeze": 0.018 + wobble(step, 0.005),
        "eval/presence": 0.9 + wobble(step, 0.02),
        "eval/id_ok": 0.72 + wobble(step, 0.02),
        "eval/law_residual": 1.5 + wobble(step, 0.2),
        "eval/quality": 67 + wobble(step, 1),
        **LOOKS,
    }


def ode_init(step: int) -> Row:
    return {"generator/loss": 0.04 + 0.04 * math.exp(-step / 100), "generator/grad_norm": 0.15 + wobble(step, 0.03)}


def dmd_warmup(step: int) -> Row:
    fake = {"fake_score/loss": 0.2 + 0.0005 * step + wobble(step, 0.01), "fake_score/grad_norm": 0.16}
    return fake | {
        "generator/loss": 0.3,
        "generator/dmd_gradient": 0.42 + wobble(step, 0.03),
        "generator/grad_norm": 0.3,
    }


def adversarial(step: int) -> Row:
    found = min(1.0, step / 80)  # the difference that the critic finds
    critic = {
        "critic/gap": 1.5 * found + wobble(step, 0.02),
        "critic/accuracy": 0.5 + 0.25 * found + wobble(step, 0.05),
        "critic/game": 1.386 - 0.2 * found,
        "critic/loss": 1.4 - 0.2 * found,
        "critic/consistency_real": 2e-4,
        "critic/consistency_fake": 2e-4,
        "critic/grad_norm": 2 + wobble(step, 1.5),
    }
    return critic | {"generator/loss": 0.8, "generator/grad_norm": 0.3 + found}


def teacher(step: int) -> Row:
    return {"teacher/loss": 0.3 + math.exp(-step / 500), "teacher/grad_norm": 0.5}


ROWS: Mapping[str, Callable[[int], Row]] = {
    "ode_init": ode_init,
    "dmd_warmup": dmd_warmup,
    "adversarial": adversarial,
    "teacher": teacher,
}


def made_up(stage: str, change: Change = lambda step, row: None, until: int | None = None) -> list[Row]:
    """A healthy log of twelve evaluations at most, changed row by row."""
    steps, rows = STEPS[stage], []
    every = max(1, steps // 100)
    for step in range(every, (until or steps) + 1, every):
        row = {"step": float(step), **ROWS[stage](step)}
        row |= held_out(step) if step % (steps // 12) < every or step == steps else {}
        change(step, row)
        rows.append(row)
    return rows


@cache
def recipe_text(name: str, *options: str) -> str:
    return yaml.safe_dump(as_dict(load_recipe(name, options)))


def write(
    root: Path, stage: str, rows: Sequence[Mapping[str, float]], options: Sequence[str] = (), done: bool = True
) -> Path:
    """A stage's folder with this log, and the recipe tiny with ``options`` beside it."""
    folder = root / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(recipe_text("tiny", *options))
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "final").mkdir(exist_ok=True)
    return folder


def findings(found: Diagnosis) -> list[Finding]:
    return [*found.findings, *(finding for stage in found.stages for finding in stage.findings)]


def named(found: Diagnosis) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings(found)}


def serious(found: Diagnosis) -> list[str]:
    return [finding.name for finding in findings(found) if finding.severity >= Severity.WARNING]


@pytest.mark.parametrize("stage", ROWS)
def test_a_healthy_log_is_healthy(stage: str, tmp_path: Path) -> None:
    found = diagnose(write(tmp_path, stage, made_up(stage)))
    assert [finding.name for finding in findings(found)] == ["healthy"]
    assert found.worst is Severity.OK


def put(**values: float) -> Change:
    """These values in every row that has the key; ``eval_`` and ``critic_`` stand for the parts before a slash."""
    names = {re.sub("^(eval|critic|generator|fake_score)_", r"\1/", name): value for name, value in values.items()}
    return lambda step, row: row.update({name: value for name, value in names.items() if name in row})


def slide(name: str, first: float, last: float, steps: int) -> Change:
    """A straight line from ``first`` to ``last``, where the row has such a value."""
    return lambda step, row: row.update({name: first + (last - first) * step / steps} if name in row else {})


def both(*changes: Change) -> Change:
    return lambda step, row: [change(step, row) for change in changes]


def critic(gap: float, accuracy: float, game: float) -> Change:
    return put(critic_gap=gap, critic_accuracy=accuracy, critic_game=game, critic_loss=game)


def lagging(step: int, row: Row) -> None:
    row["fake_score/loss"] *= 1 + step / 20


def from_step(start: int, change: Change) -> Change:
    return lambda step, row: change(step, row) if step >= start else None


NO_GUARD = ("--guard.min_rho=0", "--guard.min_kappa=0")
CASES: list[tuple[str, str, Severity, Change, tuple[str, ...]]] = [
    ("frozen", "adversarial", Severity.PROBLEM, put(eval_rho=0.04, eval_kappa=0.3, eval_freeze=0.95), ()),
    ("low-rho", "adversarial", Severity.PROBLEM, put(eval_rho=0.5), ()),
    ("low-rho", "adversarial", Severity.WARNING, from_step(120, put(eval_rho=0.5)), ()),
    ("low-kappa", "adversarial", Severity.PROBLEM, put(eval_kappa=0.3), ()),
    ("falling-rho", "dmd_warmup", Severity.WARNING, slide("eval/rho", 1.2, 0.87, 60), ()),
    ("falling-kappa", "dmd_warmup", Severity.WARNING, slide("eval/kappa", 1.5, 0.7, 60), ()),
    ("freezing", "adversarial", Severity.WARNING, slide("eval/freeze", 0.01, 0.06, 120), ()),
    ("freezing", "adversarial", Severity.PROBLEM, put(eval_freeze=0.4), ()),
    ("jumpy", "adversarial", Severity.NOTE, put(eval_rho=1.4), ()),
    ("jumpy", "adversarial", Severity.WARNING, put(eval_rho=2.1), ()),
    ("jumpy", "adversarial", Severity.PROBLEM, slide("eval/law_residual", 3.9, 7.4, 120), ()),
    ("falling-presence", "adversarial", Severity.WARNING, slide("eval/presence", 0.99, 0.81, 120), ()),
    ("falling-id_ok", "adversarial", Severity.PROBLEM, slide("eval/id_ok", 0.9, 0.4, 120), ()),
    ("low-presence", "dmd_warmup", Severity.WARNING, put(eval_presence=0.6), ()),
    ("falling-quality", "adversarial", Severity.WARNING, slide("eval/quality", 69, 60, 120), ()),
    ("drifting-brightness", "adversarial", Severity.WARNING, slide("eval/luma_slope", 0, 0.15, 120), ()),
    ("drifting-saturation", "adversarial", Severity.PROBLEM, put(eval_saturation_slope=-0.3), ()),
    (
        "grid",
        "adversarial",
        Severity.WARNING,
        slide("eval/grid", 1, 2.5, 120),
        ("--adversarial.consistency_weight=50",),
    ),
    ("grid", "adversarial", Severity.PROBLEM, slide("eval/grid", 1, 9, 120), ()),
    ("critic-winning", "adversarial", Severity.WARNING, critic(4, 0.9, 0.7), ()),
    ("critic-winning", "adversarial", Severity.PROBLEM, critic(7, 0.99, 0.33), ("--adversarial.consistency_weight=0",)),
    ("critic-at-chance", "adversarial", Severity.WARNING, critic(0.01, 0.5, 1.386), ("--adversarial.shift=5",)),
    ("gap-gone", "adversarial", Severity.WARNING, from_step(100, critic(0.01, 0.5, 1.386)), ()),
    ("weak-critic", "adversarial", Severity.NOTE, critic(0.1, 0.55, 1.38), ()),
    (
        "large-consistency",
        "adversarial",
        Severity.PROBLEM,
        put(critic_consistency_real=0.05, critic_consistency_fake=0.05),
        (),
    ),
    ("exploding", "adversarial", Severity.WARNING, from_step(90, put(generator_grad_norm=60)), ()),
    ("clipped", "adversarial", Severity.NOTE, put(critic_grad_norm=30), ()),
    ("clipped", "adversarial", Severity.WARNING, put(critic_grad_norm=300), ()),
    ("flat-loss", "ode_init", Severity.WARNING, put(generator_loss=0.08), ()),
    ("rising-loss", "ode_init", Severity.WARNING, slide("generator/loss", 0.05, 0.2, 800), ()),
    ("not-finite", "ode_init", Severity.PROBLEM, from_step(600, put(generator_loss=math.nan)), ()),
    ("not-finite", "adversarial", Severity.WARNING, put(eval_kappa=math.inf), ()),
    ("idle", "ode_init", Severity.PROBLEM, lambda step, row: row.update({"generator/lr": 0.0}), ()),
    ("fake-score-lagging", "dmd_warmup", Severity.WARNING, lagging, ()),
    ("unguarded", "dmd_warmup", Severity.NOTE, put(), NO_GUARD),
    ("no-evaluation", "adversarial", Severity.WARNING, lambda step, row: drop(row, "eval/"), ()),
    ("older-log", "adversarial", Severity.NOTE, lambda step, row: drop(row, *LOOKS), ()),
    ("other-version", "adversarial", Severity.WARNING, lambda step, row: drop(row, "critic/gap"), ()),
]


def drop(row: Row, *starts: str) -> None:
    for key in [key for key in row if key.startswith(starts)]:
        del row[key]


@pytest.mark.parametrize(
    ("name", "stage", "severity", "change", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None
)
def test_each_trouble_is_named_with_numbers_and_a_way_out(
    name: str, stage: str, severity: Severity, change: Change, options: tuple[str, ...], tmp_path: Path
) -> None:
    diagnosis = diagnose(write(tmp_path, stage, made_up(stage, change), options))
    found = named(diagnosis)
    assert serious(diagnosis) == ([name] if severity >= Severity.WARNING else [])  # and it calls no other
    finding = found[name]
    assert finding.severity is severity
    assert finding.stage == stage
    assert re.search(r"\d", finding.saw), finding.saw
    assert finding.advice
    assert finding.sure in ("sure", "likely", "perhaps")
    assert "\n" not in finding.saw + finding.words
    assert ("healthy" in found) == (severity <= Severity.NOTE)
    for key, value in finding.options:  # a recipe takes them
        load_recipe("tiny", [f"--{key}", value.strip('"')])


def test_what_is_said_of_the_critic_has_its_numbers_and_a_smaller_rate(tmp_path: Path) -> None:
    finding = named(diagnose(write(tmp_path, "adversarial", made_up("adversarial", critic(7, 0.99, 0.33)))))[
        "critic-winning"
    ]
    assert "gap 7" in finding.saw
    assert "step 120" in finding.saw
    assert finding.words.endswith("--adversarial.critic_optimizer.lr 0.00045")


def test_a_causal_frame_wise_critic_is_what_to_change_when_motion_dies(tmp_path: Path) -> None:
    options = ["--adversarial.critic.visibility=block_causal", "--adversarial.critic.granularity=frame"]
    folder = write(tmp_path, "adversarial", made_up("adversarial", put(eval_rho=0.5)), options)
    assert dict(named(diagnose(folder))["low-rho"].options) == {
        "adversarial.critic.visibility": "full",
        "adversarial.critic.granularity": "clip",
    }


def test_motion_that_comes_down_to_the_truths_is_no_trouble(tmp_path: Path) -> None:
    change = both(slide("eval/rho", 1.6, 1.05, 60), slide("eval/kappa", 2.7, 1.1, 60))
    assert not serious(diagnose(write(tmp_path, "dmd_warmup", made_up("dmd_warmup", change))))


def test_clips_without_a_truth_are_judged_by_the_real_ones(tmp_path: Path) -> None:
    def users(share: float) -> Change:
        def change(step: int, row: Row) -> None:
            row.update({"eval/static": share} if "eval/rho" in row else {})
            drop(row, "eval/freeze", "eval/presence", "eval/id_ok", "eval/law", "eval/quality")

        return change

    assert not serious(diagnose(write(tmp_path / "a", "adversarial", made_up("adversarial", users(0.0)))))
    assert serious(diagnose(write(tmp_path / "b", "adversarial", made_up("adversarial", users(0.375))))) == ["freezing"]


# --- real logs --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["ode_init", "dmd_warmup", "adversarial"])
def test_a_real_log_gives_no_warning(stage: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (REAL / f"{stage}.jsonl").read_text().splitlines()]
    name = "ablations/collapse-long" if stage == "adversarial" else "ablations/base"
    folder = write(tmp_path, stage, rows)
    (folder / RECIPE).write_text(recipe_text(name))
    found = diagnose(folder)
    assert serious(found) == []
    assert {"healthy", "older-log"} <= named(found).keys()


def test_no_measured_condition_is_called_sick(tmp_path: Path) -> None:
    """Held-out measures of every experiment, around which the thresholds were laid: no student of them collapses."""
    pieces = [json.loads(path.read_text()) for path in sorted(EVIDENCE.glob("*-seed?.json"))]
    held = [(p["recipe"], p["stage"], p["training"]) for p in pieces if p["training"]]
    assert len(held) > 30
    for number, (recipe, stage, training) in enumerate(held):
        rows = [{**ROWS[stage](int(row["step"])), **row} for row in training]
        folder = write(tmp_path / str(number), stage, rows)
        (folder / RECIPE).write_text(recipe_text(f"ablations/{recipe}"))
        wrong = [f.saw for f in findings(diagnose(folder)) if f.severity >= Severity.WARNING and "held-out" in f.saw]
        assert not wrong, (recipe, stage, wrong)


# --- the run and its log ----------------------------------------------------------------------


def test_the_guards_end_says_why_and_what_is_kept(tmp_path: Path) -> None:
    rows = made_up("dmd_warmup", slide("eval/rho", 1.2, 0.55, 60), until=50)
    found = diagnose(write(tmp_path, "dmd_warmup", rows))
    (name,) = serious(found)
    finding = named(found)[name]
    assert name == "guard-stopped"
    assert "step 50" in finding.saw
    assert "below 0.75" in finding.saw
    assert "the student of step 40 is kept" in finding.saw
    assert finding.severity is Severity.WARNING
    never = diagnose(write(tmp_path / "never", "dmd_warmup", made_up("dmd_warmup", put(eval_rho=0.5), until=10)))
    assert named(never)["guard-stopped"].severity is Severity.PROBLEM


def test_a_run_that_stopped_is_told_from_one_that_runs(tmp_path: Path) -> None:
    folder = write(tmp_path, "adversarial", made_up("adversarial", until=110), done=False)
    written = (folder / LOG).stat().st_mtime
    young, old = diagnose(folder, written + 20), diagnose(folder, written + 7200)
    assert "step 110 of 120" in named(young)["running"].saw
    assert not serious(young)
    assert serious(old) == ["stopped-early"]
    assert "2 hours" in named(old)["stopped-early"].saw


@pytest.mark.parametrize("stage", ROWS)
@pytest.mark.parametrize("rows", [1, 2, 3, 11])
def test_a_few_steps_are_enough_to_look_at(stage: str, rows: int, tmp_path: Path) -> None:
    log = [row | held_out(int(row["step"])) for row in made_up(stage)[:rows]]
    assert not serious(diagnose(write(tmp_path, stage, log, done=False)))


def test_a_shorter_run_that_was_exported_is_a_remark(tmp_path: Path) -> None:
    found = diagnose(write(tmp_path, "ode_init", made_up("ode_init", until=600)))
    assert not serious(found)
    assert "step 600 of 800" in named(found)["shortened"].saw


def test_a_critic_may_be_at_chance_for_a_while(tmp_path: Path) -> None:
    rows = made_up("adversarial", critic(0.01, 0.5, 1.386), until=60)
    folder = write(tmp_path, "adversarial", rows, done=False)
    assert named(diagnose(folder))["critic-at-chance"].severity is Severity.NOTE


def test_a_diverged_run_is_a_problem_until_it_is_past(tmp_path: Path) -> None:
    folder = write(tmp_path, "ode_init", made_up("ode_init", until=300), done=False)
    (folder / "diverged-step-00000304.pt").touch()
    assert named(diagnose(folder))["diverged"].severity is Severity.PROBLEM
    write(tmp_path, "ode_init", made_up("ode_init"))
    assert named(diagnose(folder))["diverged"].severity is Severity.NOTE


def test_torn_and_damaged_lines_are_named_and_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, "ode_init", made_up("ode_init"))
    whole = (folder / LOG).read_text()
    (folder / LOG).write_text(whole + '{"step": 810, "gener')
    torn = named(diagnose(folder))
    assert "line" in torn["torn-line"].saw
    assert torn["torn-line"].severity is Severity.NOTE
    lines = whole.splitlines()
    bad = ["not json", "[1, 2]", '{"generator/loss": 1}', '{"step": "x"}', "\x00\xff", '{"step": NaN}', "[" * 5000]
    (folder / LOG).write_text("\n".join([*lines[:5], *bad, *lines[5:]]) + "\n")
    found = diagnose(folder)
    assert serious(found) == ["damaged-lines"]
    assert "7 lines" in named(found)["damaged-lines"].saw
    (folder / LOG).write_bytes(b"\x80\x81\n\xff\n")
    assert named(diagnose(folder))["damaged-lines"].severity is Severity.WARNING


def test_of_steps_that_stand_there_twice_the_last_count(tmp_path: Path) -> None:
    rows = made_up("ode_init")
    wrong = [{**row, "generator/loss": 9.0} for row in rows[50:60]]
    found = diagnose(write(tmp_path, "ode_init", [*rows[:60], *rows[50:]]))
    assert serious(found) == ["repeated-steps"]
    assert serious(diagnose(write(tmp_path, "ode_init", [*rows[:50], *wrong, *rows[50:]]))) == ["repeated-steps"]


def test_an_empty_log_and_a_missing_recipe_are_no_fault(tmp_path: Path) -> None:
    folder = write(tmp_path, "ode_init", [], done=False)
    written = (folder / LOG).stat().st_mtime
    assert named(diagnose(folder, written + 10))["empty"].severity is Severity.NOTE
    assert named(diagnose(folder, written + 7200))["empty"].severity is Severity.WARNING
    folder = write(tmp_path / "other", "adversarial", made_up("adversarial"))
    (folder / RECIPE).unlink()
    assert named(diagnose(folder))["other-recipe"].severity is Severity.NOTE
    (folder / RECIPE).write_text("adversarial: {steps: many, consistency_weight: [1], critic: 3}\nguard: 7\n")
    found = diagnose(folder)
    assert not serious(found)
    assert "other-recipe" in named(found)


def test_the_stage_is_known_by_what_it_logs(tmp_path: Path) -> None:
    for stage in ROWS:
        moved = write(tmp_path, stage, made_up(stage)).rename(tmp_path / f"copy of {stage}")
        assert [found.log.stage for found in diagnose(moved).stages] == [stage]
        assert [found.log.stage for found in diagnose(moved / LOG).stages] == [stage]


def test_missing_stages_are_named(tmp_path: Path) -> None:
    for stage in ("ode_init", "adversarial"):
        write(tmp_path, stage, made_up(stage))
    found = diagnose(tmp_path)
    assert [f"{f.name} {f.saw.split()[0]}" for f in found.findings] == ["missing-stage dmd_warmup"]
    write(tmp_path / "skips", "ode_init", made_up("ode_init"), ["--adversarial.begins_with=ode_init"])
    skips = diagnose(tmp_path / "skips")
    assert [f.saw.split()[0] for f in skips.findings] == ["adversarial"]


@pytest.mark.parametrize("name", ["nothing", "empty", "file"])
def test_a_folder_without_a_log_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"give (that|the folder) of `aad1 distill -o FOLDER`") as error:
        diagnose(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_of_runs_names_one_of_them(tmp_path: Path) -> None:
    write(tmp_path / "first", "ode_init", made_up("ode_init"))
    with pytest.raises(UserError, match=r"it holds 1 runs, such as .*first"):
        diagnose(tmp_path)


def test_a_trend_is_a_line_and_how_sure_it_is() -> None:
    line = trend([(step, 2 - step / 100 + wobble(step, 0.01)) for step in range(0, 100, 10)])
    assert line is not None
    assert line.slope == pytest.approx(-0.01, rel=0.05)
    assert line.errors > 20
    assert trend([(1, 1.0), (2, 1.0), (3, 1.0)]) is None


# --- the command ------------------------------------------------------------------------------


def test_the_command_groups_by_stage_and_draws_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("ode_init", "dmd_warmup", "adversarial"):
        write(tmp_path, stage, made_up(stage))
    assert main(["doctor", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("stage ")] == [
        "stage I (ode_init)",
        "stage II (dmd_warmup)",
        "stage III (adversarial)",
    ]
    assert text.count("ok healthy") == 3
    assert set(BLOCKS) & set(text)


def test_a_problem_has_its_own_exit_code_and_json_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, "adversarial", made_up("adversarial", put(eval_rho=0.02, eval_kappa=math.nan)))
    assert main(["doctor", str(folder), "--json"]) == TROUBLE
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["worst"] == "problem"
    (stage,) = found["stages"]
    assert (stage["stage"], stage["state"], stage["step"], stage["planned"]) == ("adversarial", "done", 120, 120)
    assert stage["findings"][0]["name"] == "frozen"
    assert stage["findings"][0]["options"]
    assert stage["last"]["eval/rho"] == 0.02


def test_a_curve_is_as_long_as_its_points_up_to_a_width() -> None:
    assert sparkline([(i, float(i)) for i in range(8)]) == BLOCKS
    assert sparkline([(0, 5.0)]) == BLOCKS[0]
    assert len(sparkline([(i, 0.0) for i in range(1000)], 32)) == 32
