"""Muon: its updates are orthogonal, convolutions count as matrices, and its state survives a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aad1.training.muon import Muon, is_matrix, orthogonal
from aad1.training.player import OptimizerConfig, Player


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4)])
def test_orthogonal_gives_singular_values_of_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_an_update_keeps_the_singular_vectors_of_the_gradient() -> None:
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    aligned = u.T @ orthogonal(gradient) @ v.T
    assert (aligned - torch.diag(aligned.diag())).abs().max() < 1e-4


def test_a_convolution_is_updated_as_the_matrix_it_is() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    gradient = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    flat, whole = nn.Parameter(weight.flatten(1).clone()), nn.Parameter(weight.clone())
    flat.grad, whole.grad = gradient.flatten(1).clone(), gradient.clone()
    for parameter in (flat, whole):
        Muon([parameter], lr=0.1, weight_decay=0.01).step()
    torch.testing.assert_close(whole.flatten(1), flat)
    assert not torch.equal(whole, weight)


def test_a_player_gives_matrices_to_muon_and_the_rest_to_adamw() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 9))
    player = Player("p", module, OptimizerConfig(lr=1e-3, muon_lr=1e-2))
    adamw, muon = player.optimizers
    assert {id(p) for g in muon.param_groups for p in g["params"]} == {id(module[0].weight), id(module[2].weight)}
    assert not any(is_matrix(p) for g in adamw.param_groups for p in g["params"])


def test_a_rate_of_its_own_takes_a_matrix_from_muon() -> None:
    module = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
    player = Player("p", module, OptimizerConfig(lr=1e-3, muon_lr=1e-2, lr_overrides={"2": 1e-5}))
    adamw, muon = player.optimizers
    assert [id(p) for g in muon.param_groups for p in g["params"]] == [id(module[0].weight)]
    assert {g["base_lr"]: len(g["params"]) for g in adamw.param_groups} == {1e-3: 1, 1e-5: 2}


def test_a_restored_player_goes_on_bit_for_bit() -> None:
    def step(player: Player, seed: int) -> None:
        x = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
        player.module(x).square().mean().backward()
        player.step(0.5)

    torch.manual_seed(0)
    config = OptimizerConfig(lr=1e-3, muon_lr=1e-2, ema=0.9)
    first = Player("p", nn.Linear(12, 12), config)
    step(first, 1)
    second = Player("p", nn.Linear(12, 12), config)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for player in (first, second):
        step(player, 2)
    assert torch.equal(first.module.weight, second.module.weight)
    assert torch.equal(first.average["weight"], second.average["weight"])
