"""Properties of trajectory matching, and of DDPP's mask and loss."""

from __future__ import annotations

import copy
import itertools
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from ddlib import data, distilled, experts, methods, models, papers, runs, unroll
from ddlib.methods import Diverged, cgan, ddpp, dim, dm, esp, gld, mtt, skd

REAL = data.load("toy")


@pytest.fixture(autouse=True)
def own_runs(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path_factory.getbasetemp() / "experts-of-tests"))


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor, Tensor]:
    """Student, target and start (P,) as in a real run: many small moves, some sign flips, some exact zeros."""
    rng = torch.Generator().manual_seed(3)
    start = 0.1 * torch.randn(4000, generator=rng, dtype=torch.float64)
    target = start + 0.05 * torch.randn(4000, generator=rng, dtype=torch.float64)
    student = start + 0.05 * torch.randn(4000, generator=rng, dtype=torch.float64)
    for vector in (start, target, student):
        vector[:50] = 0.0
    student[50:60], target[60:70] = 0.0, 0.0
    return student, target, start


# ------------------------------------------------------------------------------------------------------------------- MTT

def test_a_student_that_does_not_move_has_a_loss_of_exactly_one():
    """T-MTT-1."""
    net = models.build("convnet3", shape=REAL.shape, num_classes=4, width=4, seed=0)
    rng = runs.stream(0, "test")
    start, target = models.flatten(net), torch.randn(models.num_params(net), generator=rng)
    images, labels = torch.randn(4, *REAL.shape, generator=rng), torch.arange(4)
    for steps, rate in ((0, 0.1), (3, 0.0)):
        student = unroll.unroll(net, start, (images,), lambda j, x: (x, labels), steps=steps, rate=rate)
        assert mtt.matching_loss(student, target, start).item() == 1.0


def test_a_student_that_arrives_has_no_loss(vectors):
    """T-MTT-2."""
    student, _, start = vectors
    assert mtt.matching_loss(student, student.clone(), start).item() == 0.0


def test_the_loss_does_not_depend_on_the_origin_or_the_unit_of_parameter_space(vectors):
    """T-MTT-3."""
    loss = mtt.matching_loss(*vectors).item()
    shift = torch.randn(4000, dtype=torch.float64, generator=runs.stream(0, "test"))
    assert mtt.matching_loss(*(vector + shift for vector in vectors)).item() == pytest.approx(loss, rel=1e-12)
    assert mtt.matching_loss(*(7 * vector for vector in vectors)).item() == pytest.approx(loss, rel=1e-12)


def test_the_gradient_of_the_step_size_is_the_formula_for_one_step():
    """T-MTT-4."""
    net = models.build("convnet3", shape=REAL.shape, num_classes=4, width=4, seed=0).double()
    start, rng = models.flatten(net), runs.stream(0, "test")
    target = start + 0.1 * torch.randn(start.shape, dtype=torch.float64, generator=rng)
    images, labels = torch.randn(4, *REAL.shape, dtype=torch.float64, generator=rng), torch.arange(4)
    alpha = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    student = unroll.unroll(net, start, (images,), lambda j, x: (x, labels), steps=1, rate=alpha)
    (found,) = torch.autograd.grad(mtt.matching_loss(student, target, start), alpha)
    gradient = unroll.loss_gradient(net, start.clone().requires_grad_(), images, labels)
    expected = -2 * (student - target) @ gradient / (start - target).square().sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_pass_over_the_set_visits_every_image_once_before_any_comes_again():
    rng = torch.Generator().manual_seed(0)
    batches = list(mtt.chunks(10, 4, 6, rng))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    for part in (batches[:3], batches[3:]):
        assert sorted(torch.cat(part).tolist()) == list(range(10))
    assert [len(batch) for batch in mtt.chunks(10, 0, 2, rng)] == [10, 10]


def test_the_batches_of_a_student_are_the_same_when_asked_for_again():
    syn = distilled.PixelSet.from_real(REAL, 2, torch.Generator().manual_seed(0))
    config = replace(mtt.TINY, syn_batch=3)
    batch = mtt.draw_batches(syn, config, config.augment, torch.Generator().manual_seed(1))
    assert torch.equal(batch(2, syn.images)[0], batch(2, syn.images)[0])
    assert not torch.equal(batch(2, syn.images)[0], batch(1, syn.images)[0])


@pytest.mark.parametrize("method", [mtt, ddpp])
def test_the_same_seed_gives_the_same_set_and_another_seed_another(method):
    def run(seed: int) -> distilled.PixelSet:
        *_, last = method.distill(REAL, replace(method.PRESETS["tiny"], seed=seed))
        return last.syn

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.images, again.images) and torch.equal(first.alpha, again.alpha)
    assert not torch.equal(first.images, other.images)


def test_distilling_moves_pixels_and_step_size_and_lowers_the_loss_of_a_fixed_segment():
    config = replace(mtt.TINY, max_start=1, num_experts=1, steps=40, pixel_lr=30.0, alpha_lr=1e-4, augment="none")
    steps = list(mtt.distill(REAL, config))
    assert steps[0].losses["match"] != 1.0
    assert steps[-1].losses["match"] < 0.9 * steps[0].losses["match"]
    assert steps[-1].losses["alpha"] != pytest.approx(config.alpha, rel=1e-3)


def test_the_step_size_stays_positive():
    steps = list(mtt.distill(REAL, replace(mtt.TINY, alpha_lr=0.03, momentum=0.0)))
    assert min(step.losses["alpha"] for step in steps) == pytest.approx(mtt.SMALLEST_ALPHA)


def test_both_exact_forms_distil_the_same_set_and_the_detached_one_another():
    last = {}
    for form in ("remat", "plain", "detached"):
        *_, last[form] = mtt.distill(REAL, replace(mtt.TINY, unroll=form, pixel_lr=1000.0))
    assert (last["plain"].syn.images - last["remat"].syn.images).abs().max() < 1e-3
    assert (last["detached"].syn.images - last["remat"].syn.images).abs().max() > 1e-2


@pytest.mark.parametrize("method, config", [(mtt, replace(mtt.TINY, ipc=2, syn_batch=3)), (ddpp, ddpp.from_mtt(mtt.TINY))])
def test_a_run_that_goes_on_ends_with_the_same_bits(method, config):
    steps = method.distill(REAL, config)
    next(steps)
    second = next(steps)
    resume = copy.deepcopy({"index": second.index, **second.state()})
    *_, undisturbed = steps
    *_, resumed = method.distill(REAL, config, resume)
    assert torch.equal(resumed.syn.images, undisturbed.syn.images)
    assert torch.equal(resumed.syn.alpha, undisturbed.syn.alpha)


def test_the_learned_step_size_is_saved_and_read_again(tmp_path):
    result = runs.run(mtt, mtt.TINY, tmp_path, real=REAL)
    assert result.syn.alpha.item() == pytest.approx(result.metrics()["alpha"][-1])
    assert result.syn.alpha.item() != mtt.TINY.alpha
    assert result.syn.budget == result.syn.images.numel()


def test_a_run_whose_time_is_up_among_its_experts_stops_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path / "runs"))
    config = replace(mtt.TINY, num_experts=3, buffer_seed=5)
    first = runs.run(mtt, config, tmp_path / "out", real=REAL, minutes=1e-6)
    assert not first.finished and first.steps == 0
    assert runs.run(mtt, config, tmp_path / "out", real=REAL).finished


def test_mtt_and_ddpp_with_the_same_settings_share_their_experts():
    assert mtt.PRESETS["cpu"].experts() == ddpp.PRESETS["cpu"].experts()
    assert mtt.PRESETS["cifar100-ipc10"].experts() != ddpp.PRESETS["cifar100-ipc10"].experts()          # DDPP whitens


@pytest.mark.parametrize("change, complaint", [
    ({"syn_steps": 0}, "must be at least 1"),
    ({"syn_batch": -1}, "syn_batch at least 0"),
    ({"max_start": 4}, "lower max_start or raise buffer_epochs"),
    ({"alpha": 0.0}, "alpha must be at least"),
    ({"alpha": math.nan}, "alpha must be at least"),
    ({"alpha": math.inf}, "all finite"), ({"pixel_lr": -5.0}, "pixel_lr and alpha_lr at least 0"), ({"momentum": 2.0}, "below 1"),
    ({"network": "resnet10_dim"}, "cannot be unrolled"),
    ({"unroll": "fast"}, "unknown unroll 'fast'"),
    ({"augment": "spin"}, "unknown operation 'spin'"),
])
def test_a_setting_that_cannot_be_is_refused_in_one_sentence(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(mtt.TINY, **change)


# ------------------------------------------------------------------------------------------------------------------ DDPP

def two_ratios(student: Tensor, target: Tensor, epsilon: float) -> list[bool]:
    """Section II.B in Python floats, with division: kept where both ratios reach epsilon, or both values are zero."""
    kept = []
    for s, t in zip(student.tolist(), target.tolist(), strict=True):
        if s == 0 or t == 0:
            kept.append(s == t or epsilon <= 0)          # one ratio is 0, the other infinite
        else:
            kept.append(not (s / t < epsilon or t / s < epsilon))
    return kept


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_the_test_without_division_is_the_test_with_two_ratios(vectors, epsilon):
    """T-DDPP-9."""
    student, target, _ = vectors
    assert ddpp.keep_mask(student, target, epsilon).tolist() == two_ratios(student, target, epsilon)
    assert ddpp.keep_mask(student, target, epsilon, "absolute").tolist() == two_ratios(student.abs(), target.abs(), epsilon)


def test_pairs_too_small_for_their_product_are_judged_as_large_ones():
    student, target = torch.tensor([1e-30, 1e-30, 1e-45]), torch.tensor([-1e-30, 2e-30, 1e-45])
    assert (student * target == 0).all()
    assert ddpp.keep_mask(student, target, 0.1).tolist() == [False, True, True]


@pytest.mark.parametrize("student, target, signed, absolute", [
    (0.0, 0.0, True, True), (0.0, 1.0, False, False), (1.0, 0.0, False, False), (1.0, -1.0, False, True), (1.0, 1.0, True, True),
    (1e-6, -1e-6, False, True), (1.0, 0.2, True, True), (1.0, 0.05, False, False),
])
def test_single_coordinates_are_kept_or_pruned_as_the_rule_says(student, target, signed, absolute):
    """T-DDPP-6."""
    pair = torch.tensor([student]), torch.tensor([target])
    assert ddpp.keep_mask(*pair, 0.1).item() == signed
    assert ddpp.keep_mask(*pair, 0.1, "absolute").item() == absolute
    assert ddpp.keep_mask(*pair, 0.1, "off").item()


def test_without_pruning_the_loss_and_the_run_are_those_of_mtt(vectors):
    """T-DDPP-1."""
    student, target, start = vectors
    for keep in (ddpp.keep_mask(student, target, 0.5, "off"), ddpp.keep_mask(student, target, -math.inf)):
        assert ddpp.pruned_loss(student, target, start, keep).item() == mtt.matching_loss(student, target, start).item()
    *_, expected = mtt.distill(REAL, mtt.TINY)
    *_, found = ddpp.distill(REAL, ddpp.from_mtt(mtt.TINY, sign_rule="off"))
    assert torch.equal(found.syn.images, expected.syn.images) and torch.equal(found.syn.alpha, expected.syn.alpha)


def test_epsilon_zero_is_mtt_only_without_signs(vectors):
    """T-DDPP-2."""
    student, target, _ = vectors
    assert ddpp.keep_mask(student, target, 0.0, "absolute").all()
    keep = ddpp.keep_mask(student, target, 0.0)
    assert torch.equal(~keep, student * target < 0) and not keep.all()


@pytest.mark.parametrize("rule", ["signed", "absolute"])
def test_the_mask_is_symmetric_nested_and_blind_to_scale_and_order(vectors, rule):
    """T-DDPP-3, 4 and 5."""
    student, target, start = vectors
    keep = ddpp.keep_mask(student, target, 0.1, rule)
    assert torch.equal(keep, ddpp.keep_mask(target, student, 0.1, rule))
    masks = [ddpp.keep_mask(student, target, epsilon, rule) for epsilon in (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)]
    for larger, smaller in itertools.pairwise(masks):
        assert (smaller <= larger).all() and smaller.sum() < larger.sum()
    assert torch.equal(keep, ddpp.keep_mask(4 * student, 4 * target, 0.1, rule))
    order = torch.randperm(len(student))
    assert torch.equal(keep[order], ddpp.keep_mask(student[order], target[order], 0.1, rule))
    loss = ddpp.pruned_loss(student, target, start, keep).item()
    assert ddpp.pruned_loss(-3 * student, -3 * target, -3 * start, keep).item() == pytest.approx(loss, rel=1e-12)
    assert ddpp.pruned_loss(student[order], target[order], start[order], keep[order]).item() == pytest.approx(loss, rel=1e-12)


def test_pruned_coordinates_get_no_gradient(vectors):
    """T-DDPP-7."""
    student, target, start = vectors
    student.requires_grad_()
    keep = ddpp.keep_mask(student.detach(), target, 0.1)
    (gradient,) = torch.autograd.grad(ddpp.pruned_loss(student, target, start, keep), student)
    assert (gradient[~keep] == 0).all()
    moved = keep & (student.detach() != target)
    assert (gradient[moved] != 0).all() and moved.sum() > 1000


def test_multiplying_by_the_mask_is_leaving_coordinates_out(vectors):
    """T-DDPP-8; the mask acts on the expert's start as well."""
    student, target, start = vectors
    keep = ddpp.keep_mask(student, target, 0.1)
    expected = mtt.matching_loss(student[keep], target[keep], start[keep]).item()
    assert ddpp.pruned_loss(student, target, start, keep).item() == pytest.approx(expected, rel=1e-12)
    wrong = (student[keep] - target[keep]).square().sum() / (start - target).square().sum()
    assert expected != pytest.approx(wrong.item(), rel=1e-3)


def test_epsilon_one_keeps_only_equal_coordinates():
    """T-DDPP-10."""
    student, target = torch.tensor([1.0, 2.0, -1.0, 0.3, 0.0]), torch.tensor([1.0, 2.1, 1.0, 0.3, 0.0])
    assert ddpp.keep_mask(student, target, 1.0).tolist() == [True, False, False, True, True]
    assert ddpp.keep_mask(student, target, 1.0, "absolute").tolist() == [True, False, True, True, True]
    assert ddpp.keep_mask(student, target, 1.01, "absolute").tolist() == [False, False, False, False, True]


def test_pruning_too_much_stops_the_run_with_the_last_good_set(tmp_path):
    config = ddpp.from_mtt(mtt.TINY, epsilon=1.0)
    with pytest.raises(Diverged, match=r"keeps \d+% of the parameters.*lower epsilon"):
        runs.run(ddpp, config, tmp_path, real=REAL)
    student, target = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    everything = ddpp.from_mtt(mtt.TINY, epsilon=1.0, min_kept=0.0)
    found = ddpp.loss_terms(student, target, torch.zeros(2), everything)
    assert math.isfinite(found["match"].item())                        # all pruned: the floor, not 0 / 0


def test_the_full_loss_is_logged_beside_the_pruned_one():
    step = next(ddpp.distill(REAL, ddpp.from_mtt(mtt.TINY)))
    expected = next(mtt.distill(REAL, mtt.TINY))
    assert step.losses["mtt"] == pytest.approx(expected.losses["match"], rel=1e-6)
    assert step.losses["match"] != step.losses["mtt"] and 0.5 < step.losses["kept"] < 1


@pytest.mark.parametrize("change, complaint", [
    ({"epsilon": 1.5}, "between 0 and 1"), ({"epsilon": math.nan}, "between 0 and 1"),
    ({"epsilon": -0.1}, "sign_rule='off' prunes nothing"),
    ({"sign_rule": "both"}, "unknown sign_rule 'both'"), ({"min_kept": 2.0}, "share between 0 and 1"),
])
def test_a_threshold_that_cannot_be_is_refused_in_one_sentence(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        ddpp.from_mtt(mtt.TINY, **change)


# --------------------------------------------------------------------------------------------------------------- presets

def test_every_published_cell_of_ddpp_has_a_preset():
    cells = {(cell.dataset, cell.ipc) for cell in papers.published(paper="DDPP", method="DDPP", eval_arch=None)}
    presets = {(config.dataset, config.ipc) for name, config in ddpp.PRESETS.items() if not name.startswith(("tiny", "cpu", "gpu"))}
    assert cells == presets
    for dataset, ipc in cells:
        config = ddpp.PRESETS[mtt.preset_name(dataset, ipc)]
        assert (config.epsilon, config.steps, config.buffer_epochs, config.width) == (0.1, 5000, 50, 128)
        assert config.num_experts == (100 if dataset == "covid_cxr" else 200)
        assert config.preprocess == ("standardize" if dataset == "covid_cxr" else "zca_a")
        assert config.network == ("convnet5" if dataset == "covid_cxr" else "convnet3")


def test_the_baseline_of_every_published_cell_of_ddpp_differs_from_it_in_the_mask_only():
    for dataset, ipc in {(cell.dataset, cell.ipc) for cell in papers.published(paper="DDPP", method="DDPP", eval_arch=None)}:
        name = mtt.preset_name(dataset, ipc)
        baseline = asdict(mtt.PRESETS.get(f"{name}-as-ddpp", mtt.PRESETS[name]))
        pruned = asdict(ddpp.PRESETS[name])
        assert {key: value for key, value in pruned.items() if key not in ("epsilon", "sign_rule", "min_kept")} == baseline


def test_the_command_line_evaluates_with_several_protocols_and_networks_and_writes_each_row_once(tmp_path):
    command = [sys.executable, "-m", "ddlib.methods.ddpp", "--preset", "tiny", "--out", str(tmp_path / "out"), "--epsilon", "0.2",
               "--evaluate", "strict-cpu", "strict-cpu-alpha", "--networks", "convnet3:4", "convnet3:2",
               "--results", str(tmp_path / "rows.csv")]
    environment = os.environ | {"DDLIB_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert first.returncode == 0, first.stderr
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    (tmp_path / "rows.csv").write_text("\n".join(rows[:-1]) + "\n")      # as if stopped before the last
    subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert [row.rsplit(",", 4)[0] for row in (tmp_path / "rows.csv").read_text().splitlines()] == [row.rsplit(",", 4)[0] for row in rows]
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "has the rows of this command already" in again.stdout
    assert (tmp_path / "rows.csv").read_text().splitlines() == rows


def test_experts_of_another_config_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    first = experts.train(REAL, mtt.TINY.experts())
    second = experts.train(REAL, replace(mtt.TINY, buffer_lr=0.01).experts())
    assert first.folder != second.folder


def test_a_version_of_the_method_says_so_in_its_rows():
    tiny = ddpp.PRESETS["tiny"]
    assert [replace(tiny, **changes).variant for changes in ({}, {"sign_rule": "off"}, {"epsilon": 0.5}, {"sign_rule": "absolute"})] == [
        "", "off", "signed, epsilon 0.5", "absolute, epsilon 0.1"]
    ending = ["", "-proj-only", "-dm-only"]
    assert [esp.PRESETS[f"cifar10-ipc10{version}"].variant for version in ending] == ["", "L_Proj only", "L_DM only"]
    assert replace(esp.PRESETS["tiny"], artifact="pixels", span="differences").variant == "pixels, span differences"
    assert replace(skd.PRESETS["tiny-no-standardization"], tau=8.0).variant == "no standardization, tau 8.0"
    assert replace(gld.PRESETS["tiny"], local_reduction="sum").variant == "local_reduction sum"
    assert (replace(dim.PRESETS["tiny"], weight=0.0).variant, replace(cgan.PRESETS["tiny"], objective="log").variant) == (
        "weight 0.0", "objective log")
    printed = {cell.variant for cell in papers.cells()}
    assert {"L_Proj only", "L_DM only", "no standardization"} <= printed             # so that rows stand beside the papers' own


@pytest.mark.parametrize("method", [cgan, dim, esp, gld, skd], ids=lambda method: method.NAME)
def test_presets_are_complete_methods_unless_their_name_says_otherwise(method):
    for name, config in method.PRESETS.items():
        assert not config.variant or name.endswith(("-only", "-no-standardization")), (name, config.variant)


def test_a_set_made_without_a_run_knows_its_method():
    assert next(ddpp.distill(REAL, ddpp.PRESETS["tiny"])).syn.meta["method"] == "DDPP"
    assert next(mtt.distill(REAL, mtt.PRESETS["tiny"])).syn.meta["method"] == "MTT"


def test_a_student_that_exploded_is_called_so():
    broken, target, config = torch.full((4,), math.nan), torch.ones(4), ddpp.PRESETS["tiny"]
    with pytest.raises(Diverged, match="parameters stopped being finite"):
        ddpp.loss_terms(broken, target, torch.zeros(4), config)


def test_a_test_network_that_cannot_see_the_images_is_refused_before_anything_is_distilled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dm", "--out", str(tmp_path / "run"), "--evaluate", "strict-cpu", "--networks", "convnet5:4"])
    assert methods.main(dm) == 1
    assert "convnet5" in capsys.readouterr().err and not (tmp_path / "run").exists()
