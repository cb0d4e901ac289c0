"""Roles over one frozen backbone: they begin as it, share its memory, and learn apart."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import clip_of, lively, text_of
from torch import Tensor, nn

from aad1.assembly import Assembly
from aad1.errors import UserError
from aad1.models.adapters import AdapterConfig, adapted
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.critic import Critic
from aad1.recipe import load_recipe
from aad1.workspace import Workspace

CONFIG = AdapterConfig(rank=4, alpha=8, dtype="float32")
T = torch.tensor([[0.0, 0.6, 0.6, 0.6, 0.6]])


def own(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def learnt(model: nn.Module, seed: int = 5) -> nn.Module:
    """With adapters as if they had learnt: B is no longer zero."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in own(model).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=stream))
    return model


def places(tensors: Mapping[str, Tensor] | nn.Module) -> set[int]:
    values = tensors.parameters() if isinstance(tensors, nn.Module) else tensors.values()
    return {value.data_ptr() for value in values}


def test_a_role_begins_as_the_backbone_and_holds_its_memory() -> None:
    backbone = lively()
    before = [p.data_ptr() for p in backbone.parameters()]
    role = adapted(backbone, CONFIG)
    assert torch.equal(role(clip_of(5), T, text_of()), backbone(clip_of(5), T, text_of()))
    assert [p.data_ptr() for p in backbone.parameters()] == before
    assert places(role) - places(own(role)) == set(before)
    assert not own(backbone)
    assert not any("lora" in name for name, _ in backbone.named_parameters())


def test_every_matrix_of_a_block_is_adapted_and_nothing_else() -> None:
    role = adapted(lively(), CONFIG)
    matrices = {
        name
        for name, p in lively().named_parameters()
        if name.startswith("blocks") and name.endswith("weight") and p.ndim == 2
    }
    assert {name.replace(".lora_A.default", "").replace(".lora_B.default", "") for name in own(role)} == matrices
    ranks = {min(p.shape) for p in own(role).values()}
    assert ranks == {CONFIG.rank}


def test_an_adapter_is_w_plus_alpha_over_rank_times_b_a() -> None:
    """Against a plain model whose weights are merged in float64."""
    role, plain = learnt(adapted(lively(), CONFIG)).double(), lively().double()
    adapters = {name: p.detach() for name, p in own(role).items()}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            layer = name.removesuffix(".weight")
            if (a := adapters.get(f"{layer}.lora_A.default.weight")) is not None:
                weight += CONFIG.alpha / CONFIG.rank * adapters[f"{layer}.lora_B.default.weight"] @ a
    given = clip_of(5).double(), T.double(), text_of().double()
    assert (role(*given) - plain(*given)).abs().max() < 1e-12
    assert (role(*given) - lively().double()(*given)).abs().max() > 1e-2


def test_roles_learn_apart() -> None:
    backbone = lively()
    one, other = adapted(backbone, CONFIG), adapted(backbone, CONFIG)
    given = clip_of(5), T, text_of()
    before = backbone(*given)
    learnt(one)
    assert torch.equal(other(*given), before)
    assert torch.equal(backbone(*given), before)
    one(*given).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in own(one).values())
    assert all(p.grad is None for p in (*own(other).values(), *backbone.parameters()))


def test_recomputed_blocks_give_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        role = learnt(adapted(lively(), CONFIG))
        if checkpointing:
            role.enable_gradient_checkpointing()
        role(clip_of(5), T, text_of()).square().mean().backward()
        gradients.append([p.grad for p in own(role).values()])
    assert all(map(torch.equal, *gradients))


def test_a_half_precision_backbone_carries_adapters_and_heads_of_full_precision(tmp_path: Path) -> None:
    lively().save_pretrained(tmp_path)
    backbone, precise_backbone = (
        CausalWanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    critic = Critic(learnt(adapted(backbone, CONFIG)), [0, 1])
    assert {p.dtype for p in own(critic).values()} == {torch.float32}
    clip = clip_of(5).requires_grad_()
    critic(clip, T, text_of()).sum().backward()
    assert clip.grad is not None
    assert clip.grad.dtype == torch.float32
    assert clip.grad[:, :, 1:].abs().max() > 0
    precise = Critic(learnt(adapted(precise_backbone, CONFIG)), [0, 1])
    precise.load_state_dict(critic.state_dict() | dict(precise.backbone.named_parameters(prefix="backbone")))
    logits = [float(model(clip, T, text_of()).detach()) for model in (critic, precise)]
    assert logits[0] == pytest.approx(logits[1], abs=0.05)


# --- in a recipe -----------------------------------------------------------------------------


def assembly(folder: Path, root: Path, *options: str) -> Any:
    common = ["--threads=1", "--device=cpu", "--adversarial.critic.layers=[0,1]", "--model", str(folder)]
    lora = "--lora={rank: 2, alpha: 2, dtype: float32}"
    made = Assembly(load_recipe("tiny", [*common, lora, *options]), Workspace(root))
    student = made.folder.transformer
    vars(made).update(clips=(), showing=None, student=lambda stage, role=None: student(type(made.teacher())))
    return made


def test_teacher_fake_score_and_critic_share_one_backbone(tiny_folder: Path, tmp_path: Path) -> None:
    made = assembly(tiny_folder, tmp_path)
    scores, game = made.stage("dmd_warmup").scores, made.stage("adversarial")
    frozen = places(scores.teacher)
    for role in (scores.fake_score, game.critic_model.backbone):
        assert places(role) - places(own(role)) == frozen
    heads = {name.split(".")[0] for name in game.players["critic"].parameters}
    assert heads == {"backbone", "heads", "norm", "logit"}
    assert all("lora" in name for name in game.players["critic"].parameters if name.startswith("backbone"))
    assert all("lora" in name for name in made.stage("dmd_warmup").players["fake_score"].parameters)
    generator = game.players["generator"].parameters
    assert not any("lora" in name for name in generator)
    assert not places(generator) & frozen


def test_joint_training_has_one_backbone_too(tiny_folder: Path, tmp_path: Path) -> None:
    stage = assembly(tiny_folder, tmp_path, "--adversarial.dmd_weight=1").stage("adversarial")
    fake, critic = stage.scores.fake_score, stage.game.critic_model.backbone
    assert places(fake) & places(critic) == places(stage.scores.teacher)


def test_a_causal_critic_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    made = assembly(tiny_folder, tmp_path, "--adversarial.critic.visibility=block_causal")
    with pytest.raises(UserError, match=r"adversarial\.critic\.visibility must be full, not block_causal"):
        made.preflight(resume=False)


def test_without_peft_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'needs peft: pip install "aad1\[train\]"'):
        adapted(lively(), CONFIG)
