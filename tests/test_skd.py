"""SKD: the equations against loops over Python floats, and what standardization does to them (T-SKD-1..9)."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch.testing import assert_close

from ddlib import papers
from ddlib.methods import cgan, dim, skd

TAU = 2.0


def logits(rows: int = 6, num_classes: int = 10, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, num_classes, generator=rng, dtype=torch.float64)


def seen(of: torch.Tensor) -> dim.Seen:
    return dim.Seen(of, of[:, :, None, None])


def standardized_by_hand(row: list[float], tau: float) -> list[float]:
    mean = sum(row) / len(row)
    std = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
    return [(value - mean) / (tau * std) for value in row]


def divergence_by_hand(real: list[float], syn: list[float]) -> float:
    exps = [[math.exp(value) for value in row] for row in (real, syn)]
    p, q = ([value / sum(row) for value in row] for row in exps)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# ------------------------------------------------------------------------------------------------------- the equations

def test_standardized_logits_equal_a_loop_over_floats():
    found = skd.standardize_logits(logits(), TAU)
    assert_close(found.tolist(), [standardized_by_hand(row, TAU) for row in logits().tolist()])


def test_standardized_logits_ignore_shift_and_scale():                                  # T-SKD-1
    for scale, shift in ((5.0, 0.0), (1.0, -30.0), (0.01, 7.0)):
        assert_close(skd.standardize_logits(scale * logits() + shift, TAU), skd.standardize_logits(logits(), TAU), rtol=0, atol=1e-6)


def test_standardized_logits_have_mean_0_and_deviation_1_over_tau():                    # T-SKD-2
    for tau in (0.5, 1.0, 2.0, 8.0):
        found = skd.standardize_logits(logits(), tau)
        assert_close(found.mean(dim=1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
        assert_close(found.std(dim=1), torch.full((6,), 1 / tau, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_loss_is_not_negative_and_zero_only_where_standardized_logits_agree():      # T-SKD-3
    real, syn = logits(seed=0), logits(seed=1)
    assert skd.skd_loss(real, syn, TAU) > 0.01
    assert_close(skd.skd_loss(real, 3 * real - 7, TAU).item(), 0.0, rtol=0, atol=1e-12)
    assert skd.skd_loss(real, 3 * real - 7, TAU, standardize=False) > 0.01             # here the scale counts
    assert_close(skd.skd_loss(real, real - 7, TAU, standardize=False).item(), 0.0, rtol=0, atol=1e-12)
    nudged = 3 * real - 7
    nudged[0, 0] += 1
    assert skd.skd_loss(real, nudged, TAU) > 1e-7


def test_the_gradient_neither_shifts_nor_scales_the_generated_logits():                 # T-SKD-4
    syn = logits(seed=1).requires_grad_()
    skd.skd_loss(logits(seed=0), syn, TAU).backward()
    gradient = syn.grad
    assert gradient.norm() > 1e-3
    assert_close(gradient.sum(dim=1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close((gradient * syn.detach()).sum(dim=1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num_classes", "tau", "largest"), [(10, 2.0, 0.3507), (10, 1.0, 0.724), (100, 2.0, 0.600)])
def test_no_class_gets_more_than_the_bound(num_classes, tau, largest):                  # T-SKD-5
    """With C - 1 in the deviation, |Z| is at most (C - 1) / (tau sqrt(C)), which one peak among equals reaches."""
    peak = torch.zeros(1, num_classes, dtype=torch.float64)
    peak[0, 3] = 1000
    assert_close(skd.standardize_logits(peak, tau).softmax(dim=1).max().item(), largest, rtol=0, atol=6e-4)
    at_random = skd.standardize_logits(logits(500, num_classes, scale=50), tau).softmax(dim=1)
    assert at_random.max() <= skd.standardize_logits(peak, tau).softmax(dim=1).max()


def test_two_different_peaks_cost_what_the_cap_allows():
    peaks = 1000 * torch.eye(10, dtype=torch.float64)
    assert_close(skd.skd_loss(peaks[:1], peaks[1:2], TAU).item(), 0.44, rtol=0, atol=5e-3)
    assert skd.skd_loss(peaks[:1], peaks[1:2], TAU, standardize=False) > 100            # without a cap


def test_constant_logits_are_uniform_and_have_a_finite_gradient():                      # T-SKD-6
    constant = torch.full((3, 10), 4.0, dtype=torch.float64, requires_grad=True)
    found = skd.standardize_logits(constant, TAU).softmax(dim=1)
    assert_close(found, torch.full((3, 10), 0.1, dtype=torch.float64))
    skd.skd_loss(logits(3), constant, TAU).backward()
    assert constant.grad.isfinite().all() and constant.grad.norm() > 0


@pytest.mark.parametrize("standardize", [True, False])
def test_the_loss_is_the_divergence_from_real_to_generated(standardize):                # T-SKD-7
    real, syn = [2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 0.0, -3.0]
    soften = standardized_by_hand if standardize else lambda row, tau: [value / tau for value in row]
    by_hand = divergence_by_hand(soften(real, TAU), soften(syn, TAU))
    tensors = [torch.tensor([row], dtype=torch.float64) for row in (real, syn)]
    assert_close(skd.skd_loss(*tensors, TAU, standardize).item(), by_hand)
    assert abs(skd.skd_loss(*reversed(tensors), TAU, standardize).item() - by_hand) > 1e-3
    both = skd.skd_loss(*(torch.cat([tensor, logits(1, 4, seed)]) for seed, tensor in enumerate(tensors)), TAU, standardize)
    other = skd.skd_loss(logits(1, 4, 0), logits(1, 4, 1), TAU, standardize)
    assert_close(both.item(), (by_hand + other.item()) / 2)                             # a mean over the batch


def test_the_weight_is_lambda_tau_squared():
    real, syn = seen(logits(seed=0)), seen(logits(seed=1))
    for tau in (1.0, 4.0):
        terms = skd.loss_terms(real, syn, replace(skd.PRESETS["tiny"], weight=0.3, tau=tau))
        assert next(iter(terms)) == "match" and not terms["flat"]
        assert_close(terms["match"], 0.3 * tau**2 * terms["skd"])
        assert_close(terms["skd"], skd.skd_loss(real.logits, syn.logits, tau))


@pytest.mark.parametrize("side", [0, 1])
def test_a_step_with_logits_that_hardly_differ_is_counted_and_left_out(side):
    pair = [logits(seed=0).requires_grad_(), logits(seed=1).requires_grad_()]
    with torch.no_grad():
        pair[side][2] = 1 + 1e-6 * pair[side][2]
    terms = skd.loss_terms(*map(seen, pair), skd.PRESETS["tiny"])
    assert terms["flat"] and terms["match"] == 0 and terms["skd"] > 0
    terms["match"].backward()
    assert pair[1].grad.count_nonzero() == 0
    raw = skd.loss_terms(*map(seen, pair), replace(skd.PRESETS["tiny"], standardize=False))
    assert not raw["flat"] and raw["match"] > 0                                         # nothing is divided by a deviation there


# ---------------------------------------------------------------------------------------------------------- the presets

def test_every_published_cell_has_a_preset_with_the_papers_settings():
    cells = papers.published(method="SKD", eval_arch=None, variant=None)
    assert len(cells) > 20
    for cell in cells:
        config = skd.PRESETS[f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc}" + ("-no-standardization" if cell.variant else "")]
        assert (config.dataset, config.ipc, config.tau) == (cell.dataset, cell.ipc, 2.0)
        assert config.weight == (0.001 if cell.dataset == "mnist" else 0.01)
        assert config.standardize == (cell.variant != "no standardization")
        assert (config.gan_width, config.lr, config.batch_size, config.net_steps) == (196, 5e-6, 64, 16)
        assert "+".join(name.removesuffix("_dim") for name, _ in config.networks()) == cell.train_arch


def test_with_and_without_standardization_start_from_one_gan_as_dim_does():
    for name, config in dim.PRESETS.items():
        with_it, without = skd.PRESETS[name], skd.PRESETS[f"{name}-no-standardization"]
        assert with_it.gan() == without.gan() == config.gan() and isinstance(with_it.gan(), cgan.CGANConfig)
        assert {key for key, value in asdict(with_it).items() if asdict(without)[key] != value} == {"standardize"}
        ours = asdict(config) | {"weight": with_it.weight}
        assert {key: asdict(with_it)[key] for key in ours} == ours


def test_a_temperature_that_cannot_be_is_refused():
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tau must be above 0"):
            replace(skd.PRESETS["tiny"], tau=tau)
