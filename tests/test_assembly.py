"""The assembly: which weights each network of a stage begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively, text_of
from torch import nn

from aad1.assembly import Assembly
from aad1.recipe import load_recipe
from aad1.workspace import Workspace

SEEDS = {"teacher": 0, "ode_init": 1, "dmd_warmup": 2}


def assembly(folder: Path, root: Path, *options: str) -> Assembly:
    """Without data; its teacher and its students are told apart by their seeds."""
    common = ["--threads=1", "--device=cpu", "--adversarial.critic.layers=[0,1]", "--model", str(folder)]
    made = Assembly(load_recipe("tiny", [*common, *options]), Workspace(root))
    vars(made).update(clips=(), text=None, showing=None, prompt=lambda prompt: text_of())
    vars(made).update(
        teacher=lambda role=None: lively(seed=SEEDS["teacher"]),
        student=lambda stage, role=None: lively(seed=SEEDS[stage]),
    )
    return made


def origin(model: nn.Module) -> str:
    """Whose weights these are."""
    return next(
        name
        for name, seed in SEEDS.items()
        if all(map(torch.equal, model.parameters(), lively(seed=seed).parameters()))
    )


def test_stage_ii_begins_with_the_student_of_stage_i_and_two_teachers(tiny_folder: Path, tmp_path: Path) -> None:
    stage: Any = assembly(tiny_folder, tmp_path).stage("dmd_warmup")
    assert origin(stage.generator_model) == "ode_init"
    assert origin(stage.scores.teacher) == origin(stage.scores.fake_score) == "teacher"
    assert stage.scores.teacher is not stage.scores.fake_score


@pytest.mark.parametrize(("visibility", "backbone"), [("full", "teacher"), ("block_causal", "dmd_warmup")])
def test_a_bidirectional_critic_begins_as_the_teacher_and_a_causal_one_as_the_student(
    tiny_folder: Path, tmp_path: Path, visibility: str, backbone: str
) -> None:
    stage: Any = assembly(tiny_folder, tmp_path, f"--adversarial.critic.visibility={visibility}").stage("adversarial")
    assert origin(stage.generator_model) == "dmd_warmup"
    assert origin(stage.critic_model.backbone) == backbone
    assert stage.critic_model.backbone is not stage.generator_model
