"""Every number that the doctor judges by, and where it comes from.

Sources: "pieces" are docs/evidence/*.json, whose `training` rows are 8 held-out clips of 49 frames at each evaluation
(three seeds or more of 17 conditions) and whose protocols are 100 test clips: `python benchmarks/held_out_readings.py
docs/evidence` prints their extremes and how far eight clips can be trusted; "logs" are metrics.jsonl of
stages behind them (four stages I, two stages II, three stages III); "log.md" and "results.md" are in docs/. None of
the measured conditions collapses or freezes: a limit for a failure that was never seen here lies beyond all that was.
"""

from __future__ import annotations

# --- how much is needed to say anything ---------------------------------------------------------

RECENT_ROWS = 10  # steps that "now" means: the critic's accuracy scatters by .05 from step to step (logs)
TREND_POINTS = 4  # evaluations, or there is no trend
TREND_ERRORS = 3.0  # standard errors that a slope must be away from 0
STEADY = 2  # evaluations in a row that make a finding likely instead of possible
SURE = 4  # and as many make it sure

# --- motion of held-out clips -------------------------------------------------------------------

STATIC_RHO = 0.1  # the measure's own mark of a clip that stands still (measures/world.py)
LOW_RHO = 0.75  # 8 clips of a hundred read rho .15 too high or too low (pieces): one set in six reads a student that
# is right (1) below .85, one in twenty below .75; the lowest reading was .84 (results.md, tiny's stage III), the lowest
# of the pieces .92
LOW_KAPPA = 0.6  # recipe tiny's guard; the teacher's own is .65 to .83 (results.md), 8 clips read kappa .34 too high or
# too low (pieces), and the lowest reading was .91 (results.md, tiny's stage I): below it no measured student has been
QUICK_RHO = 1.3  # the measure's mark of jitter; a third of the pieces' evaluations is over it, so alone it is a remark
JUMPY_RHO = 2.0  # the highest reading of the pieces is 1.86 (`joint`, step 20); the run that failed began at 2.3
TORN_RHO = 2.3  # where the run in which the critic won stood before it rose to 3.8 (log.md, 759b5b8)
JUMPY_LAW = 3.0  # px; the highest reading of the pieces is 2.79 (`joint`), on 100 clips 2.82
TORN_LAW = 3.9  # px; where that same run stood before it rose to 7.4
HIGH_KAPPA = 3.6  # the highest reading of the pieces is 3.48 (`clean-critic`, step 60)
SOME_FREEZE = 0.04  # a prototype's share when its motion had begun to die (.02 before); the pieces' highest is .034
MUCH_FREEZE = 0.07  # twice the pieces' highest
HALF_FROZEN = 0.25  # a clip whose last quarter stands still
SOME_STATIC = 0.25  # share of clips: two of eight

# --- what is in the picture ---------------------------------------------------------------------

PRESENCE = {"ode_init": 0.45, "dmd_warmup": 0.75, "adversarial": 0.8, "teacher": 0.8}  # below the lowest reading of
# that stage: I .50 (results.md), II .818, III .837 (pieces); the teacher's .85 from the caption alone (results.md)
LOST = 0.12  # of presence or id_ok, from its best: the largest fall in a run of the pieces is .106
MUCH_LOST = 0.3
WORSE_QUALITY = 6.0  # points of Q, from its best: the largest fall of the pieces is 5.1 (`clean-critic`, step 60)

# --- brightness, colour, grid -------------------------------------------------------------------

DRIFTING = 0.08  # per 100 frames, mean of two evaluations: over the samples of the logs the largest was .053 for
# brightness and .048 for saturation; without a sink, where drift doubles, .061 on 100 clips
RUNAWAY = 0.2  # an exposure that is ramped up on purpose reads .27
SOME_GRID = 1.5  # over the real clips': the samples of the logs read .95 to 1.13, lambda 0, 20 and 50 alike
SEEN_GRID = 2.0  # a grid of one grey level printed on purpose reads 2.4
STRONG_GRID = 5.0  # one of two grey levels reads 4.9 and more

# --- the critic ---------------------------------------------------------------------------------

CHANCE = 1.386  # 2 ln 2: the game's value when the critic cannot tell
AT_CHANCE_GAP = 0.05  # stage III of recipe base reads .01 to .04 in its first 40 steps and .11 at its end (logs)
AT_CHANCE_ACCURACY = 0.03  # from .5; .50 to .51 in those first steps, .55 at the end
STILL_EARLY = 100  # steps: tiny's critic finds a difference after 20 to 40, another training's after 85 (log.md)
WEAK_GAP = 0.3  # reached after 150 steps by the logs' longest stage III (240 steps, which ended at .63)
HAD_GAP = 0.5  # what a gap must once have been to be called gone
WIDE_GAP = 3.5  # stays at 1 to 2.4 in healthy runs; at 4 picture quality had fallen from 67 to 62 (log.md, 3290320)
WON_GAP = 6.0  # 7, with a game of .33, in the run that failed (log.md, 759b5b8)
HIGH_ACCURACY = 0.95  # .81 in a healthy run of tiny (results.md), .71 the most in the logs
WON_GAME = 0.4
LARGE_CONSISTENCY = 0.5  # lambda's term over the game: .02 over the last steps of the logs (.066 at one step); no run
# came near, but from here on the critic is paid half as much for being flat as for telling clips apart
HUGE_CONSISTENCY = 1.0
USUAL_LAMBDA = 20.0  # the paper's

# --- losses and gradients -----------------------------------------------------------------------

LAGGING = 1.75  # fake score's loss, or the DMD gradient, over its first rows': 1.23 and 1.06 (logs)
FAR_BEHIND = 2.5
FEW_ROWS = 20  # of a loss, before it is called flat
FLAT = 0.97  # last quarter over first tenth: stage I halves its loss (.52 to .58; logs)
RISING = 1.5  # last tenth over the lowest tenth: 1.2 at most (logs)
MOSTLY = 0.8  # share of recent steps whose gradients were clipped: 0 (logs)
GROWN = 30.0  # gradient norm over its first tenth's: 8.3 at most, the generator's over 240 steps of stage III (logs)
EXPLODED = 300.0

# --- the run ------------------------------------------------------------------------------------

LATE = 5.0  # times the usual time between two lines of the log, after which a run counts as stopped
PATIENCE = 300.0  # seconds, at least: an evaluation or a critic's head start takes as long as many steps
