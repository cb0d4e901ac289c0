"""What became of a run: finished, running, stopped; and whether its log can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from aad1.evaluation.diagnosis import thresholds as at
from aad1.evaluation.diagnosis.findings import Finding, Severity
from aad1.evaluation.diagnosis.held_out import number
from aad1.evaluation.diagnosis.log import FINAL, LOG, RECIPE, StageLog, evaluations
from aad1.workspace import DISTILLATION

RUN = "run"  # the stage of findings about the run as a whole
EXPECTED = {
    "ode_init": ("generator/loss",),
    "dmd_warmup": ("generator/loss", "fake_score/loss"),
    "adversarial": ("generator/loss", "critic/gap"),
    "teacher": ("teacher/loss",),
    "vae": ("vae/loss",),
    "text": ("encoder/loss",),
    "state_encoder": ("encoder/loss",),
}
NEWER = ("luma_slope", "saturation_slope", "grid")  # a log without them is older than they are


def state_findings(log: StageLog) -> Iterator[Finding]:
    """How far a stage came, and what its log lacks."""
    for check in (_readable, _version, _guarded, _end, _evaluated):
        yield from check(log)


def _readable(log: StageLog) -> Iterator[Finding]:
    where = log.folder / LOG
    if log.unreadable:
        advice = "make it readable, and ask again"
        yield Finding("unreadable", Severity.PROBLEM, log.stage, f"{where} cannot be read: {log.unreadable}", advice)
    elif not log.rows and not log.damaged:
        begins = log.running or math.isinf(log.age)  # the first step may take a critic's whole head start
        severity = Severity.NOTE if begins and not log.exported else Severity.WARNING
        saw = f"{where} holds no step yet: the stage has begun, and logged nothing"
        yield Finding("empty", severity, log.stage, saw, "wait for its first step, or begin it anew")
    inside = [line for line in log.damaged if not (log.torn and line == log.damaged[-1])]
    if log.torn:
        saw = f"the last line of {where} (line {log.damaged[-1]}) is torn: the run was killed while it wrote"
        yield Finding("torn-line", Severity.NOTE, log.stage, saw, "nothing: --resume writes that step anew")
    if inside:
        listed = ", ".join(str(line) for line in inside[:3]) + (", ..." if len(inside) > 3 else "")
        saw = f"{len(inside)} lines of {where} cannot be read ({listed}), and are left out here"
        advice = "look at them: this program leaves no such lines, except the last one of a run that was killed"
        yield Finding("damaged-lines", Severity.WARNING, log.stage, saw, advice)
    if log.repeated:
        first, last = min(log.repeated), max(log.repeated)
        saw = (
            f"steps {first} to {last} stand in the log more than once ({len(log.repeated)} lines); the last ones count"
        )
        advice = "let only one process at a time write to a folder, and go on with --resume"
        yield Finding("repeated-steps", Severity.WARNING, log.stage, saw, advice)


def _version(log: StageLog) -> Iterator[Finding]:
    """Names and recipes that this version does not write."""
    absent = [key for key in EXPECTED.get(log.stage, ()) if log.rows and key not in log.keys]
    if absent or (log.rows and log.stage not in EXPECTED):
        lacks = f"has no {', '.join(absent)}" if absent else "is of no stage that is known here"
        saw = f"the log of {len(log.rows)} steps {lacks}: another version or another program wrote it"
        advice = "read it with the version that wrote it; what needs those numbers is left out here"
        yield Finding("other-version", Severity.WARNING, log.stage, saw, advice)
    count = len(log.held_out("rho"))
    if count and not any(log.held_out(name) for name in NEWER):
        saw = f"the {count} evaluations have no {', '.join(NEWER)}: what these would tell is not judged"
        advice = "nothing for this run: a newer version logs them; `aad1 evaluate world` measures finished students"
        yield Finding("older-log", Severity.NOTE, log.stage, saw, advice)
    if log.strange and log.rows:
        saw = (
            f"{RECIPE} beside the log is not one of this version ({log.strange}); recipe tiny's values stand in for it"
        )
        yield Finding("other-recipe", Severity.NOTE, log.stage, saw, "nothing, if the run is an old one")


def _guarded(log: StageLog) -> Iterator[Finding]:
    """The motion guard's word, and a stage II that nobody watches."""
    if log.stage != "dmd_warmup" or not log.rows:
        return
    guard = log.guard
    if log.guard_reason is not None:
        held = [s for s, rho in log.held_out("rho") if rho >= guard.min_rho and _kappa(log, s) >= guard.min_kappa]
        kept = f"the student of step {held[-1]} is kept" if held else "it never held, so stage I's student is kept"
        end = f"the motion guard ended the stage at step {log.step}: {log.guard_reason}; {kept}"
        severity = Severity.WARNING if held else Severity.PROBLEM
        rate = log.number("dmd_warmup.generator_optimizer.lr") / 2
        options = [("dmd_warmup.generator_optimizer.lr", number(rate))]
        advice = "go on to stage III, which gives motion back; for a later end, halve the rate"
        yield Finding("guard-stopped", severity, log.stage, end, advice, options)
    elif log.recipe and not guard.min_rho and not guard.min_kappa:
        saw = f"no motion guard watches the {log.planned or log.step} steps: its limits are 0"
        options = [("guard.min_rho", number(at.LOW_RHO)), ("guard.min_kappa", number(at.LOW_KAPPA))]
        yield Finding("unguarded", Severity.NOTE, log.stage, saw, "give it limits", options)


def _kappa(log: StageLog, step: int) -> float:
    return dict(log.held_out("kappa")).get(step, 0.0)


def _end(log: StageLog) -> Iterator[Finding]:
    """Whether it is done, may still be running, or stopped before its end."""
    if not log.rows or log.guard_reason is not None:
        return
    of = f" of {log.planned}" if log.planned else ""
    if log.exported and log.planned and log.step < log.planned:
        saw = f"it was exported at step {log.step}{of}: the run was given fewer steps than its recipe had"
        yield Finding("shortened", Severity.NOTE, log.stage, saw, "nothing, if that was meant")
    elif log.running:
        saw = f"it may still be running: step {log.step}{of}, the last line is {_ago(log.age)} old"
        yield Finding("running", Severity.NOTE, log.stage, saw, "ask again later: what is said of it may change")
    elif not log.done:
        saw = f"it stopped at step {log.step}{of}, {_ago(log.age)} ago, and has no {FINAL}/"
        advice = "go on with `aad1 train` or `aad1 distill`, the same recipe and --resume"
        yield Finding("stopped-early", Severity.WARNING, log.stage, saw, advice)


def _evaluated(log: StageLog) -> Iterator[Finding]:
    if not log.rows or any(True for _ in evaluations(log)):
        return
    every = int(log.number(f"{log.stage}.evaluate_every"))
    watched = log.stage == "dmd_warmup" and bool(log.guard.min_rho or log.guard.min_kappa)
    due = log.done or (log.step >= every if every else watched)
    saw = f"nothing was measured on held-out clips in {log.step} steps (evaluate_every is {every})"
    saw += "; so the motion guard has seen nothing" if watched and due else ""
    severity = Severity.WARNING if due else Severity.NOTE
    often = max(1, (log.planned or log.step) // 6)
    options = [(f"{log.stage}.evaluate_every", str(often))] if log.stage in EXPECTED else []
    yield Finding("no-evaluation", severity, log.stage, saw, "evaluate more often", options)


def _ago(seconds: float) -> str:
    """A time in words."""
    if math.isinf(seconds):
        return "an unknown time"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def missing_stages(run: Path, logs: Sequence[StageLog]) -> Iterator[Finding]:
    """Stages of the distillation that are not there, where some of it is."""
    here = [log.stage for log in logs]
    present = [DISTILLATION.index(stage) for stage in here if stage in DISTILLATION]
    if not present:
        return
    skipped = any(log.value("adversarial.begins_with") == "ode_init" for log in logs if log.stage in DISTILLATION)
    way = [stage for stage in DISTILLATION if not (skipped and stage == "dmd_warmup")]
    for stage in way:
        place = DISTILLATION.index(stage)
        if stage in here:
            continue
        if place < max(present):
            saw = f"{stage} is not in {run}, though {DISTILLATION[max(present)]}, which begins with it, is"
            yield Finding("missing-stage", Severity.NOTE, RUN, saw, "nothing, if it lies elsewhere")
        else:
            saw = f"{stage} has not begun: {len(present)} of {len(way)} stages of the distillation are in {run}"
            yield Finding("missing-stage", Severity.NOTE, RUN, saw, "go on with `aad1 distill` and --resume")
