"""One stage's folder as the doctor reads it: the rows of its log, its recipe, and what became of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from aad1.errors import UserError
from aad1.evaluation.diagnosis import thresholds as at
from aad1.recipe import as_dict, load_recipe
from aad1.training.motion_guard import GuardConfig, MotionGuard
from aad1.workspace import STAGES

LOG, RECIPE, FINAL = "metrics.jsonl", "recipe.yaml", "final"
USUAL_RECIPE = "tiny"  # whose values count where a run's own are not known
NAMES = {"ode_init": "stage I", "dmd_warmup": "stage II", "adversarial": "stage III"}
HELD_OUT = "eval/"

Row = Mapping[str, float]
Point = tuple[int, float]


class Trend(NamedTuple):
    """A straight line through points: its ends, its slope a step, and how many standard errors that is from 0."""

    first: float
    last: float
    slope: float
    errors: float


@dataclass(frozen=True)
class StageLog:
    """What lies in one stage's folder.

    rows: by rising step, the last of those that share one; damaged: numbers of lines that cannot be read; torn:
    whether the last line is one of them; repeated: steps that stand there more than once; recipe: its values, as
    they were when the run began; strange: why that recipe is not one of this version; age: seconds since the last
    line, pace: between lines on average.
    """

    stage: str
    folder: Path
    rows: Sequence[Row]
    damaged: Sequence[int] = ()
    torn: bool = False
    repeated: Sequence[int] = ()
    unreadable: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    strange: str = ""
    exported: bool = False
    diverged: Sequence[int] = ()
    age: float = 0.0
    pace: float = 0.0

    @property
    def name(self) -> str:
        """The stage in words."""
        return f"{NAMES[self.stage]} ({self.stage})" if self.stage in NAMES else self.stage

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def planned(self) -> int | None:
        """How many steps the recipe has, where it lies beside the log."""
        steps = _at(self.recipe, f"{self.stage}.steps")
        return steps if isinstance(steps, int) else None

    @property
    def done(self) -> bool:
        """Whether it was exported, or has taken all its steps."""
        return self.exported or (self.planned is not None and self.step >= self.planned)

    @property
    def running(self) -> bool:
        """Whether it may still be running: its log is young."""
        return not self.done and self.age < max(at.PATIENCE, at.LATE * self.pace)

    def value(self, key: str) -> Any:
        """A value of the run's recipe, or of the usual one where the run's is none; None where neither has it."""
        own, usual = _at(self.recipe, key), _at(_usual(), key)
        return own if own is not None and (usual is None or _alike(own, usual)) else usual

    def number(self, key: str) -> float:
        """As ``value``, of a key that holds a number; 0 where none has it."""
        found = self.value(key)
        return float(found) if _is_number(found) else 0.0

    def points(self, key: str) -> list[Point]:
        """(step, value) of every row that has a finite one."""
        return [(int(row["step"]), row[key]) for row in self.rows if math.isfinite(row.get(key, math.nan))]

    def held_out(self, name: str) -> list[Point]:
        """As ``points``, of a measure of held-out clips."""
        return self.points(HELD_OUT + name)

    def recent(self, key: str) -> float:
        """Its mean over the last rows; nan without any."""
        return mean(self.points(key)[-at.RECENT_ROWS :])

    def first(self, key: str) -> float:
        """Its mean over as many rows at the beginning."""
        return mean(self.points(key)[: at.RECENT_ROWS])

    @cached_property
    def keys(self) -> list[str]:
        """Every name that was logged, in the order of appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key != "step"))

    @cached_property
    def players(self) -> list[str]:
        """The networks that learn in it."""
        return [key.removesuffix("/loss") for key in self.keys if key.endswith("/loss") and key != "eval/loss"]

    def optimizer(self, player: str) -> str:
        """The recipe section of a player's optimizer."""
        if self.stage == "adversarial" and player == "fake_score":
            return "dmd_warmup.fake_score_optimizer"
        own = f"{self.stage}.{player}_optimizer"
        return own if isinstance(self.value(own), Mapping) else f"{self.stage}.optimizer"

    @property
    def guard(self) -> GuardConfig:
        """The motion guard's limits; those that never stop where the recipe is not known."""
        found = {name: _at(self.recipe, f"guard.{name}") for name in ("min_rho", "min_kappa", "patience")}
        rho, kappa, patience = (value if _is_number(value) else 0 for value in found.values())
        return GuardConfig(min_rho=rho, min_kappa=kappa, patience=max(1, int(patience)))

    @cached_property
    def guard_reason(self) -> str | None:
        """Why the motion guard ended it, if it did."""
        if self.stage != "dmd_warmup":
            return None
        guard = MotionGuard(self.guard)
        for row in self.rows:
            if any(key.startswith(HELD_OUT) for key in row):
                guard.observe(int(row["step"]), {k.removeprefix(HELD_OUT): v for k, v in row.items()})
        return guard.stop_reason() if guard.history else None


def mean(points: Sequence[Point]) -> float:
    """Mean of the values; nan without any."""
    return float(np.mean([value for _, value in points])) if points else math.nan


def trend(points: Sequence[Point]) -> Trend | None:
    """The straight line of least squares, or None through too few points."""
    if len(points) < at.TREND_POINTS:
        return None
    steps, values = np.array(points, np.float64).T
    from_middle = steps - steps.mean()
    spread = float(from_middle @ from_middle)
    slope = float(from_middle @ values) / spread
    line = values.mean() + slope * from_middle
    error = float(np.sqrt(np.square(values - line).sum() / (len(values) - 2) / spread))
    return Trend(float(line[0]), float(line[-1]), slope, abs(slope) / error if error > 0 else math.inf)


# --- reading ----------------------------------------------------------------------------------


def is_stage(folder: Path) -> bool:
    """Whether a stage has begun in this folder."""
    return (folder / LOG).exists() or (folder / RECIPE).is_file()


def stage_folders(run: Path) -> list[Path]:
    """The stages' folders of a run, in the order of the method, or the folder itself if it is a stage's.

    Raises UserError when there is none.
    """
    run = run.parent if run.name == LOG and run.is_file() else run
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give that of `aad1 distill -o FOLDER`, or of one stage in it")
    if is_stage(run):
        return [run]
    found = [run / stage for stage in STAGES if is_stage(run / stage)]
    if not found:
        inside = sorted(path.parent for stage in STAGES for path in run.glob(f"*/{stage}") if is_stage(path))
        hint = f"; it holds {len(inside)} runs, such as {inside[0]}: give one of them" if inside else ""
        raise UserError(
            f"{run} holds no stage's {LOG}{hint or '; give the folder of `aad1 distill -o FOLDER`, or of one stage'}"
        )
    return found


def read_stage(folder: Path, now: float | None = None) -> StageLog:
    """Read what can be read of a stage's folder; what cannot is named in the result."""
    rows, damaged, torn, unreadable = _rows(folder / LOG)
    recipe, strange = _recipe(folder / RECIPE)
    by_step: dict[int, Row] = {}
    repeated = []
    for row in rows:
        step = int(row["step"])
        repeated += [step] if step in by_step else []
        by_step[step] = row
    kept = [by_step[step] for step in sorted(by_step)]
    age, pace = _times(folder, len(kept), time.time() if now is None else now)
    marks = [path.stem.removeprefix("diverged-step-") for path in sorted(folder.glob("diverged-step-*.pt"))]
    return StageLog(
        _stage_of(folder, kept, recipe),
        folder,
        kept,
        damaged,
        torn,
        repeated,
        unreadable,
        recipe,
        strange,
        (folder / FINAL).is_dir(),
        [int(mark) for mark in marks if mark.isdigit()],
        age,
        pace,
    )


def _rows(path: Path) -> tuple[list[Row], list[int], bool, str]:
    """Rows, numbers of damaged lines, whether the last line is one, and why the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], [], False, ""
    except OSError as error:
        return [], [], False, error.strerror or str(error)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    read = [(number, _row(line)) for number, line in lines]
    damaged = [number for number, row in read if row is None]
    return [row for _, row in read if row is not None], damaged, bool(read) and read[-1][1] is None, ""


def _row(line: str) -> Row | None:
    """The numbers of one line, or None where it is no row of a log."""
    try:
        values = json.loads(line)
        row = {key: float(value) for key, value in values.items() if _is_number(value)}
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return row if math.isfinite(row.get("step", math.nan)) else None


def _recipe(path: Path) -> tuple[Mapping[str, Any], str]:
    """The values of a run's recipe, and why they are not those of this version."""
    if not path.is_file():
        return {}, f"there is no {RECIPE}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError) as error:
        return {}, " ".join(str(error).split())
    if not isinstance(values, dict):
        return {}, f"{RECIPE} is no mapping of sections"
    try:
        load_recipe(str(path))
    except UserError as error:
        return values, str(error)
    return values, ""


def _times(folder: Path, lines: int, now: float) -> tuple[float, float]:
    """Seconds since the last line, and between lines on average since the run began."""
    written, begun = (_modified(folder / name) for name in (LOG, RECIPE))
    age = math.inf if written is None else max(0.0, now - written)
    took = 0.0 if written is None or begun is None else max(0.0, written - begun)
    return age, took / max(1, lines)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _stage_of(folder: Path, rows: Sequence[Row], recipe: Mapping[str, Any]) -> str:
    """The stage by its folder's name, else by what it logs."""
    name = folder.resolve().name
    if name in STAGES:
        return name
    keys = {key for row in rows for key in row}
    signs = {
        "adversarial": "critic/loss",
        "dmd_warmup": "fake_score/loss",
        "ode_init": "generator/loss",
        "teacher": "teacher/loss",
        "vae": "vae/loss",
        "text": "eval/all",
    }
    return next((stage for stage, sign in signs.items() if sign in keys), "training")


@cache
def _usual() -> dict[str, Any]:
    return as_dict(load_recipe(USUAL_RECIPE))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are of one kind."""
    return (_is_number(one) and _is_number(other)) or isinstance(one, type(other))


def _at(values: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted key; None where nothing does."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def evaluations(log: StageLog) -> Iterator[Row]:
    """The rows that hold measures of held-out clips."""
    yield from (row for row in log.rows if any(key.startswith(HELD_OUT) for key in row))
