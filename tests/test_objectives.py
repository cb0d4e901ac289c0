"""Every loss of the paper against a slow transcription of its equation, number by number in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from lively import normal
from torch import Tensor

from aad1.objectives.adversarial import consistency, critic_loss, generator_loss
from aad1.objectives.dmd import dmd_gradient, dmd_surrogate
from aad1.objectives.flow_matching import flow_matching
from aad1.objectives.ode import ode_regression

SHAPE = (2, 3, 4, 2, 2)  # batch, channels, frames, height, width


def clip(seed: int) -> Tensor:
    return normal(*SHAPE, seed=seed).double()


def places(*sizes: int) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in sizes))


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_equation_3_counts_the_error_of_the_frames_that_carry_loss_over_all_frames() -> None:
    predicted, target = clip(0), clip(1)
    weight = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.float64)
    squares = [
        float(predicted[b, c, f, h, w] - target[b, c, f, h, w]) ** 2
        for b, c, f, h, w in places(*SHAPE)
        if weight[b, f] == 1
    ]
    assert float(ode_regression(predicted, target, weight)) == pytest.approx(sum(squares) / predicted.numel())


def test_equation_3_ignores_frames_without_weight() -> None:
    predicted, target = clip(0).requires_grad_(), clip(1)
    weight = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1]], dtype=torch.float64)
    ode_regression(predicted, target, weight).backward()
    assert predicted.grad is not None
    carried = predicted.grad.abs().amax(dim=(1, 3, 4)) > 0
    assert torch.equal(carried, weight > 0)


def test_equation_3_of_a_batch_given_wholly_clean_is_zero() -> None:
    predicted = clip(0).requires_grad_()
    loss = ode_regression(predicted, clip(1), torch.zeros(2, 4, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad is not None
    assert not predicted.grad.any()


def test_equation_5_is_the_mean_squared_error_of_the_velocity() -> None:
    predicted, x0, eps = clip(0), clip(1), clip(2)
    t = torch.full((SHAPE[0], SHAPE[2]), 0.5, dtype=torch.float64)
    t[0, 0] = 0  # a clean frame: it shows nothing of its noise
    errors = [
        0.0 if (i[0], i[2]) == (0, 0) else float(predicted[i]) - (float(eps[i]) - float(x0[i])) for i in places(*SHAPE)
    ]
    expected = sum(e**2 for e in errors) / len(errors)
    assert float(flow_matching(predicted, x0, eps, t)) == pytest.approx(expected)


def test_equation_6_normalises_each_sample_by_itself() -> None:
    x, real, fake = clip(0), clip(1), clip(2)
    gradient = dmd_gradient(x, real, fake)
    for sample in range(SHAPE[0]):
        inner = list(places(*SHAPE[1:]))
        norm = sum(abs(float(x[sample][i] - real[sample][i])) for i in inner) / len(inner)
        for i in inner:
            expected = (float(fake[sample][i]) - float(real[sample][i])) / norm
            assert float(gradient[sample][i]) == pytest.approx(expected)


def test_equation_6_does_not_couple_samples() -> None:
    x, real, fake = clip(0), clip(1), clip(2)
    alone = dmd_gradient(x[:1], real[:1], fake[:1])
    x[1], real[1] = 100 * x[1], -50 * real[1]
    assert torch.equal(dmd_gradient(x, real, fake)[:1], alone)


def test_equation_6_survives_a_perfect_sample() -> None:
    x = clip(0)
    assert torch.isfinite(dmd_gradient(x, x, clip(1))).all()
    assert not dmd_gradient(x, x, x).any()


def test_the_surrogate_of_equation_6_has_its_gradient() -> None:
    x, gradient = clip(0).requires_grad_(), clip(1)
    loss = dmd_surrogate(x, gradient)
    loss.backward()
    torch.testing.assert_close(x.grad, gradient / x.numel())
    expected = 0.5 * sum(float(gradient[i]) ** 2 for i in places(*SHAPE)) / x.numel()
    assert loss.item() == pytest.approx(expected)


def test_descending_the_surrogate_moves_from_the_fake_score_to_the_real_one() -> None:
    real, fake = clip(1), clip(2)
    x = clip(0).requires_grad_()
    dmd_surrogate(x, dmd_gradient(x.detach(), real, fake)).backward()
    assert x.grad is not None
    assert float((-x.grad * (real - fake)).sum()) > 0


@pytest.mark.parametrize("shape", [(5,), (2, 4)], ids=["one logit a clip", "one a frame"])
def test_equations_8_and_9_are_logistic_losses(shape: tuple[int, ...]) -> None:
    real, fake = 2 * normal(*shape, seed=0).double(), 2 * normal(*shape, seed=1).double()
    reals, fakes = real.flatten().tolist(), fake.flatten().tolist()
    eq8 = -sum(map(log_sigmoid, reals)) / len(reals) - sum(log_sigmoid(-x) for x in fakes) / len(fakes)
    assert float(critic_loss(real, fake)) == pytest.approx(eq8)
    assert float(generator_loss(fake)) == pytest.approx(-sum(map(log_sigmoid, fakes)) / len(fakes))


def test_equation_9_does_not_saturate() -> None:
    logit = torch.tensor([-40.0], requires_grad=True)  # the critic is certain: log(1 - D) would have no slope here
    generator_loss(logit).backward()
    assert logit.grad is not None
    assert float(logit.grad) == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(5,), (2, 4)], ids=["one logit a clip", "one a frame"])
def test_equation_10_is_the_mean_squared_change_of_the_logit(shape: tuple[int, ...]) -> None:
    logit, perturbed = normal(*shape, seed=0).double(), normal(*shape, seed=1).double()
    pairs = list(zip(logit.flatten().tolist(), perturbed.flatten().tolist(), strict=True))
    assert float(consistency(logit, perturbed)) == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs))


def test_equation_10_regularises_both_logits() -> None:
    logit, perturbed = normal(3, seed=0).requires_grad_(), normal(3, seed=1).requires_grad_()
    consistency(logit, perturbed).backward()
    assert logit.grad is not None
    torch.testing.assert_close(perturbed.grad, -logit.grad)
    assert logit.grad.all()
