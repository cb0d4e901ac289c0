"""Read a run, let every check speak, and put it in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aad1.evaluation.diagnosis.findings import Finding, Severity, worst
from aad1.evaluation.diagnosis.held_out import held_out_findings, number
from aad1.evaluation.diagnosis.learning import learning_findings
from aad1.evaluation.diagnosis.log import Point, StageLog, evaluations, read_stage, stage_folders
from aad1.evaluation.diagnosis.state import missing_stages, state_findings

FORMAT = 1
CURVES = (
    "eval/rho",
    "eval/kappa",
    "eval/freeze",
    "eval/static",
    "eval/presence",
    "eval/id_ok",
    "eval/quality",
    "eval/luma_slope",
    "eval/saturation_slope",
    "eval/grid",
    "eval/psnr",
    "eval/all",
    "critic/gap",
    "critic/accuracy",
    "fake_score/loss",
    "generator/loss",
    "teacher/loss",
    "vae/loss",
    "encoder/loss",
)


@dataclass(frozen=True)
class StageDiagnosis:
    """One stage: its log and what is to be said of it, the worst first; of a healthy one, that it is."""

    log: StageLog
    findings: Sequence[Finding]

    @property
    def curves(self) -> dict[str, list[Point]]:
        """What is worth drawing, by name."""
        found = {key: self.log.points(key) for key in CURVES}
        return {key: points for key, points in found.items() if points}


@dataclass(frozen=True)
class Diagnosis:
    """A run: its stages, and what concerns all of it."""

    run: Path
    stages: Sequence[StageDiagnosis]
    findings: Sequence[Finding]

    @property
    def worst(self) -> Severity:
        """The worst of all findings."""
        return worst([*self.findings, *(finding for stage in self.stages for finding in stage.findings)])

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "format": FORMAT,
            "run": str(self.run),
            "worst": self.worst.name.lower(),
            "findings": [finding.as_dict() for finding in self.findings],
            "stages": [_stage_dict(stage) for stage in self.stages],
        }


def _stage_dict(stage: StageDiagnosis) -> dict[str, Any]:
    log = stage.log
    state = "done" if log.done or log.guard_reason else "running" if log.running else "stopped"
    return {
        "stage": log.stage,
        "folder": str(log.folder),
        "state": state,
        "step": log.step,
        "planned": log.planned,
        "last": {name: points[-1][1] for name, points in stage.curves.items()},
        "findings": [finding.as_dict() for finding in stage.findings],
    }


def diagnose(run: Path, now: float | None = None) -> Diagnosis:
    """What is going wrong in a run's folder, or in one stage's, and what to try.

    now: the time in seconds since the epoch. Raises UserError when there is no stage's log in the folder; a log that
    is damaged, or one of another version, is a finding.
    """
    logs = [read_stage(folder, now) for folder in stage_folders(run)]
    alone = len(logs) == 1 and logs[0].folder.resolve() != (run / logs[0].stage).resolve()
    return Diagnosis(run, [_examined(log) for log in logs], [] if alone else list(missing_stages(run, logs)))


def _examined(log: StageLog) -> StageDiagnosis:
    found = sorted(_findings(log) if log.rows else state_findings(log), key=lambda finding: -finding.severity)
    if worst(found) <= Severity.NOTE and log.rows:
        found.insert(0, Finding("healthy", Severity.OK, log.stage, _healthy(log)))
    return StageDiagnosis(log, found)


def _findings(log: StageLog) -> Iterator[Finding]:
    yield from learning_findings(log)
    yield from held_out_findings(log)
    yield from state_findings(log)


def _healthy(log: StageLog) -> str:
    """Numbers behind the word."""
    shown = [f"{k.removeprefix('eval/')} {number(log.points(k)[-1][1])}" for k in CURVES if log.points(k)]
    count = sum(1 for _ in evaluations(log))
    return f"no sign of trouble in {len(log.rows)} logged steps and {count} evaluations; at the end {', '.join(shown)}"
