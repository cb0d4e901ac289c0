"""The paper's experiments: each one a few recipes, the stage that is looked at, and what the paper says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from aad1.data.world import SHORT_FRAMES
from aad1.evaluation.protocols import LONG_FRAMES

FOLDER = "ablations"  # of the recipes
PROTOCOLS = {"short": (SHORT_FRAMES, 100), "long": (LONG_FRAMES, 32)}  # frames, test clips


@dataclass(frozen=True)
class Condition:
    """One line of an experiment's table: a recipe's student after ``stage``, animated on test clips.

    stage ``teacher`` is the many-step teacher, on short clips alone, and ``truth_vae`` the truth through the VAE;
    neither depends on a seed. student: values of the recipe's section of that name that are changed after training.
    """

    label: str
    recipe: str = "base"
    stage: str = "adversarial"
    student: Mapping[str, int] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether it differs from seed to seed."""
        return self.stage not in ("teacher", "truth_vae")

    def piece(self, seed: int) -> str:
        """The name of its result for one training seed."""
        changed = [f"{name}{value}" for name, value in self.student.items()]
        return "-".join([self.recipe, self.stage, *changed, *([f"seed{seed}"] if self.trained else [])])


@dataclass(frozen=True)
class Experiment:
    """conditions: the first is what the others are compared with; claim: the paper's, with its numbers; measures: the
    columns of its tables, by protocol; named_only: it has other seeds or takes as long as all others, and runs only
    when it is named.
    """

    name: str
    title: str
    claim: str
    conditions: Sequence[Condition]
    measures: Mapping[str, Sequence[str]]
    named_only: bool = False


OURS = Condition("bidirectional, one logit")
MOTION = ("rho", "kappa", "freeze", "static", "dynamic")
LOOKS = ("presence", "id_ok", "law_residual", "quality")
SHORT = {"short": (*MOTION, *LOOKS)}
BOTH = {"short": (*MOTION, *LOOKS), "long": ("rho", "kappa", "static", "presence", "id_ok", "quality", "drift")}
LONG = {"long": ("rho", "kappa", "freeze", "presence", "id_ok", "law_residual", "quality", "drift", "seam_kinematic")}

CAUSAL_FRAME = Condition("causal, a logit a frame", "critic-causal-frame")
CRITICS = (
    OURS,
    Condition("bidirectional, a logit a frame", "critic-full-frame"),
    Condition("causal, one logit", "critic-causal-clip"),
    CAUSAL_FRAME,
)
TABLE_3 = (
    "a causal, frame-wise critic gives a static video (dynamic degree 1.08), a causal one with one logit drifts "
    "most (7.10 at 42.07), a bidirectional one with a logit a frame less (4.38 at 39.04), with one logit least "
    "(4.02 at 39.29)"
)

EXPERIMENTS = (
    Experiment(
        "critic",
        "Critic: what it sees, and how many logits it gives (Table 3)",
        TABLE_3,
        CRITICS,
        BOTH,
    ),
    Experiment(
        "critic-narrow",
        "The critics, with the window narrowed to five frames after training",
        TABLE_3,
        tuple(replace(condition, student={"local_attn_size": 5}) for condition in CRITICS),
        BOTH,
        named_only=True,
    ),
    Experiment(
        "critic-tiny",
        "The critics at recipe tiny's length",
        TABLE_3,
        (
            Condition("bidirectional, one logit", "tiny-critic-full-clip"),
            Condition("bidirectional, a logit a frame", "tiny-critic-full-frame"),
            Condition("causal, one logit", "tiny-critic-causal-clip"),
            Condition("causal, a logit a frame", "tiny-critic-causal-frame"),
        ),
        BOTH,
        named_only=True,
    ),
    Experiment(
        "warmup",
        "Distribution-matching warm-up (Table 2)",
        "without it quality is lower: aesthetic 53.63 against 58.64, imaging 62.81 against 69.37",
        (Condition("with warm-up"), Condition("without", "no-warmup")),
        BOTH,
    ),
    Experiment(
        "consistency",
        "Weight of the consistency term (Fig. 9)",
        "lambda 0 collapses, 20 is fine, 50 prints grid artefacts",
        (Condition("lambda 20"), Condition("lambda 0", "consistency-0"), Condition("lambda 50", "consistency-50")),
        BOTH,
    ),
    Experiment(
        "stages",
        "Stages and passes (results tables)",
        "stage II moves (dynamic degree 50.30), stage III costs some motion (41.46) and gains identity and quality; "
        "a second pass gives motion back (50.04)",
        (
            Condition("III, one pass"),
            Condition("I, one pass", stage="ode_init"),
            Condition("II, one pass", stage="dmd_warmup"),
            Condition("III, two passes", "two-passes"),
            Condition("III, four passes", "four-passes"),
            Condition("teacher, 48 steps", stage="teacher"),
            Condition("truth through the VAE", stage="truth_vae"),
        ),
        BOTH,
    ),
    Experiment(
        "noised",
        "Noised against clean critic input",
        "the critic must never see clean clips",
        (Condition("noised"), Condition("clean", "clean-critic")),
        BOTH,
    ),
    Experiment(
        "long-warmup",
        "A long stage II against one that is stopped early",
        "prolonged distribution matching leads to motion collapse",
        (
            Condition("40 steps, guarded", stage="dmd_warmup"),
            Condition("160 steps, unguarded", "long-warmup", "dmd_warmup"),
        ),
        BOTH,
    ),
    Experiment(
        "joint",
        "Distribution matching and critic at once",
        "the two pull to different targets and oscillate; hence phases",
        (Condition("one after the other"), Condition("at once", "joint")),
        BOTH,
    ),
    Experiment(
        "context",
        "Sink and window, changed after training",
        "a sink of 1 and a window of 9 latent frames; it varies neither",
        (
            Condition("sink 1, window 9"),
            Condition("sink 0, window 9", student={"sink_size": 0}),
            Condition("sink 1, window 5", student={"local_attn_size": 5}),
            Condition("sink 1, window 13", student={"local_attn_size": 13}),
            Condition("sink 1, window 21", student={"local_attn_size": 21}),
        ),
        LONG,
    ),
    Experiment(
        "collapse",
        "What makes a causal, frame-wise critic collapse",
        "its video stands still (dynamic degree 1.08); ours does not, so this asks what would make it",
        (
            CAUSAL_FRAME,
            Condition("no motion in captions", "collapse-free"),
            Condition("three times as long", "collapse-long"),
            Condition("a stronger critic", "collapse-strong"),
        ),
        BOTH,
    ),
)
