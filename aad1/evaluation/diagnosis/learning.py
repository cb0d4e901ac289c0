"""What losses and gradients say: who wins, who lags, what explodes, what does not learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from aad1.evaluation.diagnosis import thresholds as at
from aad1.evaluation.diagnosis.findings import Finding, Severity
from aad1.evaluation.diagnosis.held_out import Options, number
from aad1.evaluation.diagnosis.log import Point, StageLog, mean

FALLING = {
    "ode_init": "generator/loss",
    "teacher": "teacher/loss",
    "vae": "vae/loss",
    "text": "encoder/loss",
    "state_encoder": "encoder/loss",
}
CRITIC = "adversarial.critic_optimizer.lr"


def learning_findings(log: StageLog) -> Iterator[Finding]:
    """Everything that is wrong with how a stage learns."""
    for check in (_not_finite, _idle, _gradients, _flat, _critic, _consistency, _fake_score):
        yield from check(log)


def _not_finite(log: StageLog) -> Iterator[Finding]:
    """A loss that stopped the run, or numbers that are none."""
    for step in log.diverged:
        past = log.step > step
        end = f"; the run went on to step {log.step}" if past else ""
        saw = f"a loss or gradient was no finite number at step {step}, and its batch was saved{end}"
        severity = Severity.NOTE if past else Severity.PROBLEM
        yield Finding("diverged", severity, log.stage, saw, "halve the rates and go on with --resume", _slower(log))
    bad = {k: int(row["step"]) for row in reversed(log.rows) for k, v in row.items() if not math.isfinite(v)}
    if bad:
        first = min(bad.values())
        saw = f"{', '.join(sorted(bad))} was no finite number, first at step {first}"
        losses = any(key.endswith(("/loss", "/grad_norm")) for key in bad)
        severity = Severity.PROBLEM if losses else Severity.WARNING
        yield Finding("not-finite", severity, log.stage, saw, "halve the rates, from before that step", _slower(log))


def _idle(log: StageLog) -> Iterator[Finding]:
    """A player whose rate is 0 from the first step to the last."""
    for player in log.players:
        rates = [rate for _, rate in log.points(f"{player}/lr")]
        if rates and max(rates) == 0 and len(rates) > 1:
            saw = f"the {_words(player)}'s rate is 0 at all {len(rates)} logged steps: it does not learn"
            options = [(f"{log.optimizer(player)}.lr", "1e-4")]
            yield Finding("idle", Severity.PROBLEM, log.stage, saw, "give it one", options)


def _gradients(log: StageLog) -> Iterator[Finding]:
    for player in log.players:
        norms, section = log.points(f"{player}/grad_norm"), log.optimizer(player)
        if len(norms) < at.RECENT_ROWS:
            continue
        now, then = mean(norms[-at.RECENT_ROWS :]), mean(norms[: max(1, len(norms) // 10)])
        clip = log.number(f"{section}.clip")
        rate = _half(log, f"{section}.lr")
        if then > 0 and now > at.GROWN * then:
            saw = (
                f"the {_words(player)}'s gradient has grown from {number(then)} to {number(now)} "
                f"(mean of the last {at.RECENT_ROWS} logged steps, to step {norms[-1][0]})"
            )
            severity = Severity.PROBLEM if now > at.EXPLODED * then else Severity.WARNING
            yield Finding("exploding", severity, log.stage, saw, "halve its rate", rate, "likely")
        share = sum(norm > clip for _, norm in norms[-4 * at.RECENT_ROWS :]) / len(norms[-4 * at.RECENT_ROWS :])
        if clip and share > at.MOSTLY:
            saw = (
                f"{100 * share:.0f} % of the {_words(player)}'s last gradients were clipped: their norm is "
                f"{number(now)}, the clip {number(clip)}"
            )
            severity = Severity.WARNING if now > 10 * clip else Severity.NOTE
            options = [(f"{section}.clip", number(2 * now))]
            advice = "clipping decides the step then, not the rate: raise it, or lower the rate"
            yield Finding("clipped", severity, log.stage, saw, advice, options, "likely")


def _flat(log: StageLog) -> Iterator[Finding]:
    """A loss that should fall and does not; a teacher's changes with its lessons, and that of a trained one is low."""
    points = log.points(FALLING.get(log.stage, ""))
    if len(points) < at.FEW_ROWS:
        return
    tenth = max(1, len(points) // 10)
    first, last = mean(points[:tenth]), mean(points[-len(points) // 4 :])
    lowest = min(mean(points[i : i + tenth]) for i in range(0, len(points) - tenth + 1, tenth))
    remark = Severity.NOTE if log.stage == "teacher" else Severity.WARNING
    name, section = FALLING[log.stage], f"{log.stage}.optimizer.lr"
    if mean(points[-tenth:]) > at.RISING * lowest and lowest > 0:
        saw = f"{name} rose from {number(lowest)} to {number(mean(points[-tenth:]))} by step {points[-1][0]}"
        yield Finding("rising-loss", remark, log.stage, saw, "halve its rate", _half(log, section), "likely")
    elif last > at.FLAT * first:
        saw = f"{name} does not fall: {number(first)} at first, {number(last)} towards step {points[-1][0]}"
        options = [(section, number(2 * log.number(section)))]
        yield Finding("flat-loss", remark, log.stage, saw, "double its rate", options, "likely")


# --- the game ---------------------------------------------------------------------------------


def _critic(log: StageLog) -> Iterator[Finding]:
    gaps = log.points("critic/gap")
    if not gaps:
        return
    gap, accuracy, game = (log.recent(f"critic/{name}") for name in ("gap", "accuracy", "game"))
    numbers = f"gap {number(gap)}, accuracy {number(accuracy)}, game {number(game)} at step {log.step}"
    won = gap >= at.WON_GAP or (accuracy >= at.HIGH_ACCURACY and game <= at.WON_GAME)
    if won or gap >= at.WIDE_GAP or accuracy >= at.HIGH_ACCURACY:
        yield _winning(log, numbers, won)
    elif gap < at.AT_CHANCE_GAP and abs(accuracy - 0.5) < at.AT_CHANCE_ACCURACY:
        yield _at_chance(log, gaps, numbers)
    elif log.done and gap < at.WEAK_GAP:
        saw = f"the critic hardly tells real clips from generated ones at the end of the stage: {numbers}"
        yield Finding("weak-critic", Severity.NOTE, log.stage, saw, *_more_game(log), sure="likely")


def _winning(log: StageLog, numbers: str, won: bool) -> Finding:
    losses = f"; the generator's loss went from {number(log.first('generator/loss'))} to "
    saw = f"the critic is winning: {numbers}{losses}{number(log.recent('generator/loss'))}"
    if log.number("adversarial.consistency_weight") < at.USUAL_LAMBDA:
        weight = [("adversarial.consistency_weight", number(at.USUAL_LAMBDA))]
        advice, options = "flatten it with the consistency term", weight
    elif int(log.number("adversarial.critic_updates")) > 1:
        advice, options = "give it one update for each of the generator's", [("adversarial.critic_updates", "1")]
    else:
        advice, options = "halve its rate, or begin from a longer stage II", list(_half(log, CRITIC))
    severity = Severity.PROBLEM if won else Severity.WARNING
    return Finding("critic-winning", severity, log.stage, saw, advice, options, "sure" if won else "likely")


def _at_chance(log: StageLog, gaps: Sequence[Point], numbers: str) -> Finding:
    widest = max(mean(gaps[i : i + at.RECENT_ROWS]) for i in range(0, len(gaps), at.RECENT_ROWS))
    if widest >= at.HAD_GAP:
        saw = f"the critic's gap is gone, after {number(widest)} at its widest: {numbers} ({at.CHANCE} is chance)"
        return Finding("gap-gone", Severity.WARNING, log.stage, saw, *_stronger(log), sure="likely")
    early = not log.done and log.step < at.STILL_EARLY
    saw = f"the critic is at chance: {numbers} ({at.CHANCE} is 2 ln 2); the generator learns nothing from it"
    saw += f", which is usual before step {at.STILL_EARLY}" if early else ""
    severity = Severity.NOTE if early else Severity.WARNING
    return Finding("critic-at-chance", severity, log.stage, saw, *_stronger(log), sure="likely")


def _stronger(log: StageLog) -> tuple[str, Options]:
    """What lets a critic learn: unshifted noise levels, a faster rate than the generator's, a head start."""
    if log.number("adversarial.shift") > 1:
        return "judge at all noise levels alike", [("adversarial.shift", "1.0")]
    if log.number("adversarial.consistency_weight") > at.USUAL_LAMBDA:
        weight = [("adversarial.consistency_weight", number(at.USUAL_LAMBDA))]
        return "flatten it less", weight
    rate = [(CRITIC, number(2 * log.number(CRITIC)))]
    start = max(40, 2 * int(log.number("adversarial.head_start")))
    return "a higher rate for it, and a longer head start", [*rate, ("adversarial.head_start", str(start))]


def _more_game(log: StageLog) -> tuple[str, Options]:
    steps = int(log.number("adversarial.steps"))
    return "the game had hardly begun: more steps", [("adversarial.steps", str(2 * steps))]


def _consistency(log: StageLog) -> Iterator[Finding]:
    """Eq. 10's term beside Eq. 8's."""
    weight, game = log.number("adversarial.consistency_weight"), log.recent("critic/game")
    term = weight * (log.recent("critic/consistency_real") + log.recent("critic/consistency_fake"))
    if math.isnan(term) or not game > 0 or term < at.LARGE_CONSISTENCY * game:
        return
    saw = (
        f"the consistency term is {number(term)} (lambda {number(weight)}), {number(term / game)} of the critic's game "
        f"of {number(game)} at step {log.step}: it learns to be flat"
    )
    severity = Severity.PROBLEM if term >= at.HUGE_CONSISTENCY * game else Severity.WARNING
    options = [("adversarial.consistency_weight", number(weight * at.LARGE_CONSISTENCY * game / term / 2))]
    yield Finding("large-consistency", severity, log.stage, saw, "lower its weight", options, "likely")


def _fake_score(log: StageLog) -> Iterator[Finding]:
    """A score of the student's clips that has not kept up with the student."""
    for key, words in (("fake_score/loss", "fake score's loss"), ("generator/dmd_gradient", "DMD gradient")):
        first, now = log.first(key), log.recent(key)
        if len(log.points(key)) < 2 * at.RECENT_ROWS or not first > 0 or now < at.LAGGING * first:
            continue
        saw = f"the {words} grew from {number(first)} to {number(now)} by step {log.step}: the fake score lags behind"
        updates = int(log.number("dmd_warmup.fake_score_updates"))
        options = [("dmd_warmup.fake_score_updates", str(2 * updates))]
        sure = "likely" if now >= at.FAR_BEHIND * first else "perhaps"
        yield Finding("fake-score-lagging", Severity.WARNING, log.stage, saw, "give it more updates", options, sure)


def _half(log: StageLog, key: str) -> Options:
    rate = log.number(key)
    return [(key, number(rate / 2))] if rate else []


def _slower(log: StageLog) -> Options:
    return [option for player in log.players for option in _half(log, f"{log.optimizer(player)}.lr")]


def _words(player: str) -> str:
    return player.replace("_", " ")
