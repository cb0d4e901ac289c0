"""What held-out clips say: is motion dying or jumping, are shapes lost, does the picture drift, is there a grid?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from aad1.evaluation.diagnosis import thresholds as at
from aad1.evaluation.diagnosis.findings import Finding, Severity
from aad1.evaluation.diagnosis.log import Point, StageLog, mean, trend

Options = Sequence[tuple[str, str]]


def held_out_findings(log: StageLog) -> Iterator[Finding]:
    """Everything that is wrong with a stage's held-out clips."""
    frozen = list(_frozen(log))
    yield from frozen
    fading = () if frozen or log.guard_reason else (_slow, _falling)  # all that there is to say is said
    for check in (*fading, *(() if frozen else (_freezing, _jumpy)), _lost, _blurred, _drifting, _gridded):
        yield from check(log)


def sureness(points: Sequence[Point], bad: Callable[[float], bool]) -> str:
    """How sure the last evaluations in a row make it that something is bad: these clips are few."""
    steady = 0
    for _, value in reversed(points):
        if not bad(value):
            break
        steady += 1
    return "sure" if steady >= at.SURE else "likely" if steady >= at.STEADY else "perhaps"


def number(value: float) -> str:
    """Three digits of it."""
    return f"{value:.3g}"


# --- motion -----------------------------------------------------------------------------------


def _frozen(log: StageLog) -> Iterator[Finding]:
    points = log.held_out("rho")
    if points and points[-1][1] < at.STATIC_RHO:
        step, rho = points[-1]
        saw = f"held-out clips stand still: rho is {number(rho)} at step {step} (the truth's is 1, still is below 0.1)"
        yield Finding("frozen", Severity.PROBLEM, log.stage, saw, *_livelier(log))


def _slow(log: StageLog) -> Iterator[Finding]:
    """rho or kappa under its limit; the guard's, in the stage that it watches, if it has one."""
    words = {"rho": "move at {} of the real clips' speed", "kappa": "have kept {} of their motion by their end"}
    for name, usual, own in (("rho", at.LOW_RHO, log.guard.min_rho), ("kappa", at.LOW_KAPPA, log.guard.min_kappa)):
        limit = own if log.stage == "dmd_warmup" and own else usual
        points = log.held_out(name)
        if not points or points[-1][1] >= limit:
            continue
        step, value = points[-1]
        sure = sureness(points, lambda v, limit=limit: v < limit)  # type: ignore[misc]
        severity = Severity.WARNING if sure == "perhaps" else Severity.PROBLEM
        saw = f"held-out clips {words[name].format(number(value))} ({name}) at step {step}, below {number(limit)}"
        yield Finding(f"low-{name}", severity, log.stage, saw, *_livelier(log), sure=sure)


def _falling(log: StageLog) -> Iterator[Finding]:
    """A slope that leads away from 1; one that comes down to it, and a little beyond, is an improvement."""
    for name, limit in (("rho", at.LOW_RHO), ("kappa", at.LOW_KAPPA)):
        points = log.held_out(name)
        line = trend(points)
        if line is None or line.slope >= 0 or line.errors < at.TREND_ERRORS or points[-1][1] < limit:
            continue
        if line.last >= (1 + limit) / 2:  # nearer to 1 than to the limit
            continue
        reached = points[-1][0] + max(0.0, line.last - limit) / -line.slope
        saw = (
            f"{name} of held-out clips falls from {number(line.first)} at step {points[0][0]} to {number(line.last)} "
            f"at step {points[-1][0]}; at this pace it is at {number(limit)} by step {reached:.0f}"
        )
        sure = "likely" if line.errors < 2 * at.TREND_ERRORS else "sure"
        yield Finding(f"falling-{name}", Severity.WARNING, log.stage, saw, *_livelier(log), sure=sure)


def _freezing(log: StageLog) -> Iterator[Finding]:
    points = log.held_out("freeze")
    line = trend(points)
    rising = line is not None and line.slope > 0 and line.errors >= at.TREND_ERRORS
    limit = at.SOME_FREEZE if rising else at.MUCH_FREEZE
    if points and points[-1][1] > limit:
        step, share = points[-1]
        since = f", from {number(points[0][1])} at step {points[0][0]}" if len(points) > 1 else ""
        saw = f"{100 * share:.1f} % of the steps of shapes stand still at step {step}{since}"
        severity = Severity.PROBLEM if share > at.HALF_FROZEN else Severity.WARNING
        sure = sureness(points, lambda v: v > limit)
        yield Finding("freezing", severity, log.stage, saw, *_livelier(log), sure=sure)
    still = log.held_out("static")
    if still and still[-1][1] >= at.SOME_STATIC:
        saw = f"{100 * still[-1][1]:.0f} % of the held-out clips stand still at step {still[-1][0]}"
        severity = Severity.PROBLEM if still[-1][1] > 0.5 else Severity.WARNING
        sure = sureness(still, lambda v: v >= at.SOME_STATIC)
        yield Finding("freezing", severity, log.stage, saw, *_livelier(log), sure=sure)


def _jumpy(log: StageLog) -> Iterator[Finding]:
    """Clips that are too fast, or whose shapes jump; a young student or teacher is expected to."""
    rho, law, kappa = (log.held_out(name) for name in ("rho", "law_residual", "kappa"))
    if not rho:
        return
    last, jumps, quickens = rho[-1][1], _last(law), _last(kappa)
    if last >= at.TORN_RHO or jumps >= at.TORN_LAW:
        severity = Severity.PROBLEM
    elif last > at.JUMPY_RHO or jumps > at.JUMPY_LAW or quickens > at.HIGH_KAPPA:
        severity = Severity.WARNING
    elif last > at.QUICK_RHO:
        severity = Severity.NOTE
    else:
        return
    young = not log.done and log.stage in ("teacher", "ode_init")
    parts = [f"rho {number(last)}", *([f"law residual {number(jumps)} px"] if law else [])]
    parts += [f"kappa {number(quickens)}"] if kappa else []
    saw = f"held-out clips are too fast and jump at step {rho[-1][0]}: {', '.join(parts)} (rho and kappa should be 1)"
    sure = sureness(rho, lambda v: v > at.QUICK_RHO)
    severity = min(severity, Severity.NOTE) if young else severity
    yield Finding("jumpy", severity, log.stage, saw, *_calmer(log, severity), sure=sure)


def _livelier(log: StageLog) -> tuple[str, Options]:
    """What brings motion back."""
    if log.stage == "dmd_warmup":
        best = _last_lively(log)
        less = f"stop at step {best}, where clips still moved" if best else "take fewer, smaller steps"
        rate = log.number("dmd_warmup.generator_optimizer.lr") / 2
        options = [("dmd_warmup.steps", str(best))] if best else [("dmd_warmup.generator_optimizer.lr", number(rate))]
        if not log.guard.min_rho:
            return f"{less}, and let the motion guard watch", [*options, ("guard.min_rho", number(at.LOW_RHO))]
        return less, options
    if log.stage == "adversarial":
        causal = log.value("adversarial.critic.visibility") != "full"
        frames = log.value("adversarial.critic.granularity") != "clip"
        if causal or frames:
            options = [("adversarial.critic.visibility", "full"), ("adversarial.critic.granularity", "clip")]
            return "let the critic see the whole clip, and give it one logit", options
        rate = 2 * log.number("adversarial.critic_optimizer.lr")
        return "stage III gives motion back when its critic learns: a higher rate for it", [
            ("adversarial.critic_optimizer.lr", number(rate))
        ]
    return _longer(log)


def _last_lively(log: StageLog) -> int:
    """The last evaluation before motion fell under the limit; 0 when there is none."""
    limit = log.guard.min_rho or at.LOW_RHO
    held = [step for step, rho in log.held_out("rho") if rho >= limit]
    return held[-1] if held else 0


def _calmer(log: StageLog, severity: Severity) -> tuple[str, Options]:
    """What steadies clips: for stages I and II it is stage III, there a second pass (docs/results.md)."""
    if log.stage in ("ode_init", "dmd_warmup"):
        return "later stages calm this; where they do not, train longer", _longer(log)[1]
    if log.stage != "adversarial":
        return _longer(log)
    if log.number("adversarial.consistency_weight") < at.USUAL_LAMBDA:
        weight = [("adversarial.consistency_weight", number(at.USUAL_LAMBDA))]
        return "bring the critic's consistency term back", weight
    if severity is Severity.NOTE and len(log.value("student.passes")) == 1:
        passes = ("student.passes", '"[1.0, 0.8333333333333334]"')
        levels = ("adversarial.t_range", '"[0.0, 0.8333333333333334]"')
        return "give the student a second pass", [passes, levels]
    return _earlier(log, min(log.held_out("rho"), key=lambda point: abs(point[1] - 1))[0])


def _longer(log: StageLog) -> tuple[str, Options]:
    steps = int(log.number(f"{log.stage}.steps"))
    return "train longer", [(f"{log.stage}.steps", str(2 * steps))] if steps else []


# --- shapes and picture -----------------------------------------------------------------------


def _lost(log: StageLog) -> Iterator[Finding]:
    """Presence or identity that falls, or a presence that is low."""
    for name, words in (("presence", "shapes that are found"), ("id_ok", "shapes that keep size and colour")):
        points = log.held_out(name)
        if len(points) < at.STEADY:
            continue
        best = max(points, key=lambda point: point[1])
        now = mean(points[-at.STEADY :])
        if best[1] - now > at.LOST:
            saw = (
                f"{words} fell from {number(best[1])} at step {best[0]} to {number(now)} at the last two evaluations, "
                f"by step {points[-1][0]} ({name})"
            )
            severity = Severity.PROBLEM if best[1] - now > at.MUCH_LOST else Severity.WARNING
            yield Finding(f"falling-{name}", severity, log.stage, saw, *_earlier(log, best[0]), sure="likely")
    floor, points = at.PRESENCE.get(log.stage), log.held_out("presence")
    if floor is not None and points and points[-1][1] < floor:
        saw = f"only {number(points[-1][1])} of the shapes are found at step {points[-1][0]}, below {number(floor)}"
        severity = Severity.WARNING if log.done else Severity.NOTE
        sure = sureness(points, lambda value: value < floor)
        yield Finding("low-presence", severity, log.stage, saw, *_longer(log), sure=sure)


def _blurred(log: StageLog) -> Iterator[Finding]:
    points = log.held_out("quality")
    best = max(points, key=lambda point: point[1], default=(0, 0.0))
    if points and best[1] - points[-1][1] > at.WORSE_QUALITY:
        saw = (
            f"picture quality fell from {best[1]:.1f} at step {best[0]} to {points[-1][1]:.1f} at step {points[-1][0]}"
        )
        sure = sureness(points, lambda value: best[1] - value > at.WORSE_QUALITY)
        yield Finding("falling-quality", Severity.WARNING, log.stage, saw, *_earlier(log, best[0]), sure=sure)


def _drifting(log: StageLog) -> Iterator[Finding]:
    """Brightness or colour that changes along clips."""
    for name, words in (("luma_slope", "brightness"), ("saturation_slope", "saturation")):
        points = log.held_out(name)
        if len(points) < at.STEADY:
            continue
        now = mean(points[-at.STEADY :])
        if abs(now) < at.DRIFTING:
            continue
        way = "rises" if now > 0 else "falls"
        saw = (
            f"{words} {way} by {number(abs(now))} of its range in 100 frames of held-out clips "
            f"({name}, steps {points[-at.STEADY][0]} to {points[-1][0]}; {number(points[0][1])} at step {points[0][0]})"
        )
        severity = Severity.PROBLEM if abs(now) >= at.RUNAWAY else Severity.WARNING
        calm = [step for step, value in points if abs(value) < at.DRIFTING]
        advice, options = _earlier(log, calm[-1] if calm else points[0][0])
        if log.value("student.sink_size") == 0:
            advice, options = "give the student a sink, which holds colours in place", [("student.sink_size", "1")]
        sure = sureness(points, lambda value: abs(value) >= at.DRIFTING)
        yield Finding(f"drifting-{words}", severity, log.stage, saw, advice, options, sure)


def _gridded(log: StageLog) -> Iterator[Finding]:
    points = log.held_out("grid")
    if not points or points[-1][1] < at.SOME_GRID:
        return
    step, peak = points[-1]
    saw = (
        f"edges repeat with the period of a token: {number(peak)} times the real clips' at step {step}"
        f" ({number(points[0][1])} at step {points[0][0]})"
    )
    severity = (
        Severity.PROBLEM if peak >= at.STRONG_GRID else Severity.WARNING if peak >= at.SEEN_GRID else Severity.NOTE
    )
    sure = sureness(points, lambda value: value >= at.SOME_GRID)
    advice, options = _earlier(log, min(points, key=lambda point: point[1])[0])
    if log.stage == "adversarial" and log.number("adversarial.consistency_weight") > at.USUAL_LAMBDA:
        weight = [("adversarial.consistency_weight", number(at.USUAL_LAMBDA))]
        advice, options = "a large consistency term prints grids (the paper's Fig. 9): lower it", weight
    yield Finding("grid", severity, log.stage, saw, advice, options, sure)


def _earlier(log: StageLog, step: int) -> tuple[str, Options]:
    """End where it was best, where that is earlier than the end."""
    if 0 < step < log.step and log.value(f"{log.stage}.steps"):
        return "end the stage where this was better", [(f"{log.stage}.steps", str(step))]
    player = next((name for name in ("generator", "teacher") if name in log.players), None)
    rate = log.number(f"{log.optimizer(player)}.lr") if player else 0.0
    return ("halve its rate", [(f"{log.optimizer(player)}.lr", number(rate / 2))]) if player and rate else ("", [])


def _last(points: Sequence[Point]) -> float:
    return points[-1][1] if points else 0.0
