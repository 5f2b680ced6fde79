from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from kernel_checks import DEVICE, poisoned_memory, same_as_reference
from torch import Tensor

from ddlib import data, kernels
from ddlib.kernels import trajectory
from ddlib.methods import Diverged, ddpp, mtt

RULES = ["signed", "absolute", "off"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")      # of the interpreter's numpy, about infinities


def vectors(P: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Student, target and start (P,) as in a run: small moves, some sign flips, some zeros."""
    rng = torch.Generator().manual_seed(P)
    start = 0.1 * torch.randn(P, generator=rng)
    target, student = (start + 0.05 * torch.randn(P, generator=rng) for _ in range(2))
    for place, each in enumerate((student, target, start)):
        each[: P // 50] = 0.0
        each[P // 50 * (1 + place): P // 50 * (2 + place)] = 0.0
    return student.to(dtype), target.to(dtype), start.to(dtype)


def everything(function, student: Tensor, target: Tensor, start: Tensor, *rule) -> list[Tensor]:
    """Loss, MTT's loss, kept share, whether finite, and the gradient."""
    student = student.to(DEVICE).detach().requires_grad_()
    found = function(student, target.to(DEVICE), start.to(DEVICE), *rule)
    assert found.loss.requires_grad and not any(each.requires_grad for each in found[1:])
    return [each.detach() for each in found] + list(torch.autograd.grad(found.loss, student))


def by_kernel(*arguments) -> list[Tensor]:
    with kernels.using("on"), poisoned_memory():
        return everything(trajectory.match, *arguments)


def same(three: Sequence[Tensor], rule: str) -> None:
    """Loss with its gradient, MTT's loss, kept share, as in float64."""
    for place in range(3):
        fast, slow = ((lambda *given, function=function, place=place: function(*given, 0.1, rule)[place])
                      for function in (trajectory.match, trajectory.reference))
        same_as_reference(fast, slow, three, (place == 0, False, False))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("P", [1, 3, 1000, 1024, 1025, 5000])
def test_the_kernel_is_the_equation(P, rule):
    same(vectors(P), rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_is_compared_and_summed_in_single(dtype, rule):
    same(vectors(3000, dtype), rule)


def test_half_precision_keeps_what_the_reference_keeps_away_from_the_threshold():
    student, target, start = (each.to(DEVICE) for each in vectors(3000, torch.bfloat16))
    clear = trajectory.keep_mask(student.float(), target.float(), 0.09) == trajectory.keep_mask(student.float(), target.float(), 0.11)
    student, target, start = student[clear], target[clear], start[clear]
    keep, gradient = trajectory.keep_mask(student, target, 0.1), by_kernel(student, target, start, 0.1, "signed")[-1]
    assert len(student) > 2000 and torch.equal(gradient != 0, keep & (student != target))


def test_many_programs_are_added_up(monkeypatch):
    monkeypatch.setattr(trajectory, "BLOCK", 16)                        # 38 programs, in three rounds
    for found, expected in zip(by_kernel(*vectors(601), 0.1, "signed"), everything(trajectory.reference, *vectors(601), 0.1, "signed"),
                               strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rule", ["signed", "absolute"])
def test_the_mask_is_that_of_the_reference_to_the_last_bit(rule, epsilon):
    """Ratios within a few units of rounding of the threshold, of all signs and sizes."""
    rng = torch.Generator().manual_seed(5)
    target = torch.exp2(40 * torch.rand(6000, generator=rng) - 20) * torch.randn(6000, generator=rng).sign()
    student = target * (epsilon or 1e-3) * (1 + 1.2e-7 * torch.randint(-3, 4, (6000,), generator=rng))
    student[::7] *= -1
    student[student == target] *= 2.0
    student[::2], target[::2] = target[::2].clone(), student[::2].clone()
    start = torch.zeros(6000)
    keep = trajectory.keep_mask(student.to(DEVICE), target.to(DEVICE), epsilon, rule)
    *_, share, _, gradient = by_kernel(student, target, start, epsilon, rule)
    assert 0 < keep.sum() < 6000 or epsilon in (0.0, 1.0)
    assert torch.equal(gradient != 0, keep) and share.item() == keep.double().mean().item()


def test_zeros_flips_infinities_and_nan_do_what_they_do_in_the_reference():
    pairs = list(itertools.product([0.0, -0.0, 1.0, -0.2, 0.05, 1e-45, -1e-30, 1e30, math.inf, -math.inf, math.nan], repeat=2))
    for (s, t), rule in [*((pair, "signed") for pair in pairs), *((pair, "absolute") for pair in pairs[::2]),
                         *((pair, "off") for pair in pairs[::5])]:
        three = torch.tensor([s, 0.3]), torch.tensor([t, 0.4]), torch.tensor([0.5, 0.5])
        for found, expected in zip(by_kernel(*three, 0.1, rule), everything(trajectory.reference, *three, 0.1, rule), strict=True):
            torch.testing.assert_close(found, expected, equal_nan=True, msg=lambda text, at=(s, t, rule): f"{at}: {text}")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("strange", [math.inf, -math.inf, math.nan, 3e38])
def test_a_strange_start_is_as_in_the_reference(strange, rule):
    for s in (0.01, 0.3):                                               # pruned and kept
        three = torch.tensor([s, 0.3]), torch.tensor([0.3, 0.4]), torch.tensor([strange, 0.5])
        for found, expected in zip(by_kernel(*three, 0.1, rule), everything(trajectory.reference, *three, 0.1, rule), strict=True):
            torch.testing.assert_close(found, expected, equal_nan=True)


def test_all_pruned_or_an_expert_that_stands_still_is_over_the_floor():
    student, target, start = vectors(2000)
    apart = (student + 1.0).abs(), -(target + 1.0).abs(), start
    loss, whole, kept, finite, gradient = by_kernel(*apart, 0.1, "signed")
    assert loss == 0 and kept == 0 and finite and whole > 0 and not gradient.any()
    near = student, student + 1e-7 * torch.randn(2000, generator=torch.Generator().manual_seed(0))
    for three in ((*near, near[1]), (student, student, student)):
        for found, expected in zip(by_kernel(*three, 0.1, "signed"), everything(trajectory.reference, *three, 0.1, "signed"), strict=True):
            torch.testing.assert_close(found, expected)


def test_one_number_that_is_not_finite_is_seen():
    student, target, start = vectors(3000)
    for strange, place in itertools.product((math.inf, -math.inf, math.nan), (0, 1023, 1024, 2999)):
        broken = student.clone()
        broken[place] = strange
        assert by_kernel(student, target, start, 0.1, "signed")[3] and not by_kernel(broken, target, start, 0.1, "signed")[3]


def test_vectors_that_are_not_contiguous():
    same([each[1::3] for each in vectors(4000)], "signed")


def test_the_gradient_agrees_with_central_differences_of_the_kernel():
    student, target, start = (each.to(DEVICE) for each in vectors(1500))
    gradient = by_kernel(student, target, start, 0.1, "signed")[-1]
    clear = trajectory.keep_mask(student, target, 0.3)                  # the step leaves the mask as it is: the loss is a parabola
    direction = clear * (student - target).abs() * torch.randn(1500, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ahead, behind = (by_kernel(student + side * 1e-2 * direction, target, start, 0.1, "signed") for side in (1, -1))
    assert ahead[2] == behind[2]
    assert ((ahead[0] - behind[0]) / 2e-2).item() == pytest.approx((gradient @ direction).item(), rel=1e-3)


def test_a_run_repeats():
    first, again = (by_kernel(*vectors(5000), 0.1, "signed") for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_off_means_off(monkeypatch):
    monkeypatch.setattr(trajectory, "_Match", None)
    three = [each.to(DEVICE) for each in vectors(10)]
    with kernels.using("off"):
        trajectory.match(*three)
    with kernels.using("on"), pytest.raises(AttributeError):
        trajectory.match(*three)


def test_what_the_kernel_is_not_for_is_left_to_torch_and_said_once():
    student, target, start = (each.to(DEVICE) for each in vectors(10))
    cases = [((student, target.clone().requires_grad_(), start), "not for gradients of target or start"),
             ((student, target, start.clone().requires_grad_()), "not for gradients of target or start"),
             ((student[:0], target[:0], start[:0]), r"not for \(0,\) of torch.float32"),
             ((student, target, start[:1]), r"not for \(10,\) of torch.float32, \(10,\) of torch.float32, \(1,\) of torch.float32"),
             ((student, target.bfloat16(), start), "of torch.bfloat16"),
             ((student.double(), target.double(), start.double()), "not for float64")]
    for three, complaint in cases:
        kernels.say_once.cache_clear()
        with kernels.using("on"), pytest.warns(UserWarning, match=f"kernel trajectory: .*{complaint}.*, plain torch runs instead"):
            found = trajectory.match(*three, 0.1, "signed")
        for ours, theirs in zip(found, trajectory.reference(*three, 0.1, "signed"), strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        assert found.loss.requires_grad == any(each.requires_grad for each in three)


@pytest.fixture
def this_kernel_alone(monkeypatch):
    """Within a run all other operations stay as they are."""
    calls: list[str] = []
    monkeypatch.setattr(trajectory, "run_fast", lambda name, *_, unless="": calls.append(unless) or not unless)
    return calls


def test_ddpp_stops_for_the_same_reasons_in_the_same_words(this_kernel_alone):
    student, target, start = (each.to(DEVICE) for each in vectors(1000))
    config = ddpp.PRESETS["tiny"]
    with pytest.raises(Diverged, match="parameters stopped being finite"):
        ddpp.loss_terms(student * math.nan, target, start, config)
    with pytest.raises(Diverged, match=r"epsilon 1 with the signed rule keeps \d+% of the parameters, fewer than min_kept = 50%"):
        ddpp.loss_terms(student, target, start, replace(config, epsilon=1))
    found = ddpp.loss_terms(student, target, start, config)
    expected = trajectory.reference(student, target, start, config.epsilon, config.sign_rule)
    for name, theirs in zip(("match", "mtt", "kept"), expected, strict=False):
        torch.testing.assert_close(found[name], theirs)
    assert this_kernel_alone == [""] * 3


@pytest.mark.parametrize("method, changes", [(ddpp, {}), (ddpp, {"sign_rule": "absolute"}), (mtt, {})])
def test_the_distilled_set_is_the_same_with_and_without_the_kernel(method, changes, this_kernel_alone, tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    real, config = data.load("toy").to(DEVICE), replace(method.PRESETS["tiny"], **changes)
    with kernels.using("off"):
        *_, fast = method.distill(real, config)
        assert this_kernel_alone == [""] * config.steps
        monkeypatch.setattr(trajectory, "run_fast", lambda *_, **__: False)
        *_, plain = method.distill(real, config)
    torch.testing.assert_close(fast.syn.images, plain.syn.images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.syn.alpha, plain.syn.alpha, rtol=1e-5, atol=1e-9)
    assert fast.losses == pytest.approx(plain.losses, rel=1e-4)
