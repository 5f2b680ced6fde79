"""ESP: projections on what experts span, exact gradients of both losses, and no graph that outlives an update."""

import dataclasses
import math
import weakref
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ddlib import augment, data, evaluate, experts, models, papers, runs
from ddlib.distilled import FactoredSet, PixelSet, fit_budget
from ddlib.methods import dm, esp, kfs

TINY = esp.PRESETS["tiny"]
P = 428                                                                                 # of the tiny network


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def trajectory(length, num_params=P, seed=0, step=0.03):
    """Snapshots (length + 1, num_params) that are nearly collinear, as those of experts are: slow drift and little noise."""
    start, drift = 0.1 * randn(num_params, seed=seed), step * 0.1 * randn(num_params, seed=seed + 1)
    noise = 0.1 * step * 0.1 * randn(length + 1, num_params, seed=seed + 2).cumsum(0)
    return start + drift * torch.arange(length + 1)[:, None] + noise


@pytest.fixture(scope="module")
def toy():
    """Float64 on the way into networks, so that everything after it is exact."""
    real = data.load("toy")
    return dataclasses.replace(real, preprocess=real.preprocess.to(torch.float64))


@pytest.fixture(scope="module")
def toy32():
    return data.load("toy")


@pytest.fixture
def net(toy):
    return models.build("convnet3", shape=toy.shape, num_classes=4, width=4, seed=0).double().requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """One folder of experts for the whole file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def update(real, images, theta, span, net, config=TINY, strategy="none", seed=0):
    return esp.update(real, images, theta, span, net, config, strategy, rng(seed))


# -------------------------------------------------------------------------------------------------------- the subspace

@pytest.mark.parametrize("kind", ["points", "differences"])
def test_the_basis_is_orthonormal_although_snapshots_are_nearly_collinear(kind):        # T-ESP-1
    for theta in (trajectory(10, 5000).float(), trajectory(20, 5000, step=1e-4).float()):
        span = esp.basis(theta, kind)
        assert span.dtype == torch.float32 and span.shape[1] >= 2
        assert (span.T.double() @ span.double() - torch.eye(span.shape[1])).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["points", "differences"])
def test_projecting_twice_is_projecting_once_and_either_side_may_be_projected(kind):    # T-ESP-2
    span, u, v = esp.basis(trajectory(5), kind), randn(P, seed=8), randn(P, seed=9)
    assert_close(esp.project(span, esp.project(span, v)), esp.project(span, v))
    assert_close(u @ esp.project(span, v), esp.project(span, u) @ v)
    assert esp.project(span, v).norm() > 1e-3


def test_the_rank_is_that_of_the_snapshots():                                           # T-ESP-3
    theta = trajectory(5)
    assert esp.basis(theta).shape == (P, 6) and esp.basis(theta, "differences").shape == (P, 5)
    twice = torch.cat([theta, theta[2:4]])
    for kind, rank in (("points", 6), ("differences", 5)):
        span = esp.basis(twice, kind)
        assert span.shape == (P, rank) and span.isfinite().all()
    still = theta[:1].expand(4, P)
    assert esp.basis(still).shape == (P, 1) and esp.basis(still, "differences").shape == (P, 0)
    assert esp.project(esp.basis(still, "differences"), theta[0]).abs().sum() == 0


@pytest.mark.parametrize("noise", [1e-2, 1e-9])                                         # the second is cut: too small to be a direction
def test_snapshots_and_moves_lie_in_their_span(noise):                                  # T-ESP-4
    theta = trajectory(6)
    theta[3] = theta[2] + noise * randn(P, seed=5)
    for kind, vectors in (("points", theta), ("differences", theta[1:] - theta[0])):
        span = esp.basis(theta, kind)
        largest = torch.linalg.svdvals(vectors)[0]
        assert (noise < 1e-6) == (span.shape[1] < len(vectors))
        for vector in vectors:
            assert (vector - esp.project(span, vector)).norm() <= 1e-6 * largest


def test_a_projection_shortens_and_leaves_a_right_angle():                              # T-ESP-5
    span, v = esp.basis(trajectory(5)), randn(P, seed=9)
    inside = esp.project(span, v)
    assert inside.norm() < v.norm()
    assert_close(inside.square().sum() + (v - inside).square().sum(), v.square().sum())


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_gradient_inside_the_span_costs_nothing(norm):                                # T-ESP-6
    theta = trajectory(5)
    span = esp.basis(theta)
    inside = theta.T @ randn(6, seed=4)
    assert esp.proj_loss(inside, span, norm) < 1e-12 * P
    assert esp.proj_loss(randn(P, seed=9), span, norm) > 1


def test_the_projection_ignores_order_and_scale_of_the_snapshots():                     # T-ESP-10
    theta, v = trajectory(5), randn(P, seed=9)
    reference = esp.project(esp.basis(theta), v)
    for changed in (theta[[3, 0, 5, 1, 4, 2]], theta * torch.tensor([1, -2, 0.5, 3, -1, 10.0])[:, None]):
        assert_close(esp.project(esp.basis(changed), v), reference, rtol=1e-6, atol=1e-9)
    assert (esp.project(esp.basis(theta[:5]), v) - reference).norm() > 1e-3


def test_of_a_random_vector_the_span_holds_d_of_p():                                    # T-ESP-11
    span = esp.basis(trajectory(5))
    num_params, rank = span.shape
    vectors = randn(num_params, 400, seed=7)
    shares = esp.project(span, vectors).square().sum(0) / vectors.square().sum(0)
    sigma = math.sqrt(2 * rank * (num_params - rank) / (num_params**2 * (num_params + 2)) / 400)     # of a Beta distribution's mean
    assert abs(shares.mean() - rank / num_params) < 3 * sigma
    assert shares.std() < 2 * 20 * sigma


def test_as_many_snapshots_as_parameters_span_everything():                             # T-ESP-12
    for snapshots, kind in ((6, "points"), (9, "points"), (7, "differences")):
        span, v = esp.basis(randn(snapshots, 6), kind), randn(6, seed=3)
        assert span.shape == (6, 6)
        assert_close(esp.project(span, v), v)


def test_real_experts_span_what_they_should(toy32):
    segment = experts.train(toy32, TINY.experts()).draw_segment(3, 1, rng())
    points, differences = esp.basis(segment.theta), esp.basis(segment.theta, "differences")
    assert points.shape == (P, 4) and differences.shape == (P, 3)
    for theta in segment.theta:
        assert (theta - esp.project(points, theta)).norm() < 1e-5 * theta.norm()
        assert_close(esp.project(points, theta - segment.theta[0]), theta - segment.theta[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- the losses

def test_the_projection_loss_has_the_derivative_of_the_paper():
    span = esp.basis(trajectory(5))
    gradient = randn(P, seed=2).requires_grad_()
    (found,) = torch.autograd.grad(esp.proj_loss(gradient, span), gradient)
    sign = (gradient - esp.project(span, gradient)).detach().sign()
    assert_close(found, sign - esp.project(span, sign))
    outside = (gradient - span @ span.T @ gradient).tolist()
    for norm, value in (("l1", sum(abs(x) for x in outside)), ("l2", math.sqrt(sum(x * x for x in outside)))):
        assert_close(esp.proj_loss(gradient, span, norm).item(), value)


def test_the_distribution_loss_equals_loops_over_floats():
    real, syn = randn(2, 3, 4).tolist(), randn(2, 2, 4, seed=1).tolist()
    total = sum((sum(x[f] for x in real[c]) / 3 - sum(x[f] for x in syn[c]) / 2) ** 2 for c in range(2) for f in range(4)) / 2
    for reduction, value in (("sum", total), ("mean", total / 4)):
        assert_close(esp.dm_loss(torch.tensor(real), torch.tensor(syn), reduction), torch.tensor(value))


def test_the_inner_loss_is_a_mean_and_its_parts_add_up():
    logits, labels = randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    one_hot = F.one_hot(labels, 4).double()
    for loss, wanted in (("cross_entropy", F.cross_entropy(logits, labels)),
                         ("bce", -(one_hot * logits.sigmoid().log() + (1 - one_hot) * (-logits).sigmoid().log()).mean())):
        parts = [esp.inner_loss(part, of, loss, 7) for part, of in zip(logits.split(3), labels.split(3), strict=True)]
        assert_close(sum(parts), wanted)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_projection_gradient_agrees_with_central_differences(net, loss, norm):
    theta, span, labels = models.flatten(net), esp.basis(trajectory(4)), torch.tensor([0, 1, 2, 3])
    images = randn(4, 1, 16, 16, seed=3)
    found = esp.project_gradient(net, theta, images, labels, span, norm=norm, loss=loss)

    def value(pixels):
        leaf = theta.clone().requires_grad_()
        mean = esp.inner_loss(models.functional(net, leaf, pixels), labels, loss, 4)
        return esp.proj_loss(torch.autograd.grad(mean, leaf)[0], span, norm)

    assert_close(found.outside, value(images))
    for seed in range(3):
        direction = randn(*images.shape, seed=20 + seed)
        numeric = (value(images + 1e-6 * direction) - value(images - 1e-6 * direction)) / 2e-6
        assert_close((found.pixels * direction).sum(), numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 5, 8])
@pytest.mark.parametrize(("norm", "loss"), [("l1", "cross_entropy"), ("l2", "bce")])
def test_two_passes_in_chunks_equal_one_pass(net, chunk, norm, loss):
    theta, span, labels = models.flatten(net), esp.basis(trajectory(4)), torch.arange(4).repeat_interleave(3)
    images = randn(12, 1, 16, 16, seed=3)
    whole = esp.project_gradient(net, theta, images, labels, span, norm=norm, loss=loss)
    parts = esp.project_gradient(net, theta, images, labels, span, norm=norm, loss=loss, chunk=chunk)
    assert whole.pixels.abs().sum() > 0
    for one, other in zip(whole, parts, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)
    first_only = esp.project_gradient(net, theta, images, labels, span, norm=norm, loss=loss, chunk=chunk, second=False)
    assert first_only.pixels is None
    for one, other in zip(whole[:4], first_only[:4], strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- an update

def test_without_the_projection_an_update_is_that_of_dm(toy, net):                      # T-ESP-8
    """beta 0, Pi = I, N = 1, from the initial weights: DM's pixel gradient divided by C, and the same step of the same optimizer."""
    config = dataclasses.replace(TINY, artifact="pixels", ipc=2, proj_weight=0.0, syn_steps=1, max_start=1)
    theta, pixel = models.flatten(net), PixelSet.from_real(toy, 2, rng())
    for seed in range(6):
        gradient, moved, _ = update(toy, pixel.images, theta, torch.eye(P).double(), net, config, augment.DSA, seed)
        images = pixel.images.clone().requires_grad_()
        real_images, syn_images = dm.draw_pairs(toy, images, config.real_batch, augment.DSA, rng(seed))
        loss = dm.matching_loss(dm.embed_real(net, real_images, 4), net.embed(syn_images).unflatten(0, (4, -1)))
        (by_dm,) = torch.autograd.grad(loss, images)
        assert by_dm.norm() > 0
        assert_close(gradient, by_dm / 4, rtol=1e-12, atol=1e-14)

        leaf = theta.clone().requires_grad_()
        (plain,) = torch.autograd.grad(F.cross_entropy(models.functional(net, leaf, syn_images.detach()), pixel.labels), leaf)
        assert_close(moved, theta - config.inner_lr * plain)

        ours, theirs = pixel.images.clone(), pixel.images.clone()
        for images, grad, rate in ((ours, gradient, 4.0), (theirs, by_dm, 1.0)):
            images.grad = grad
            torch.optim.SGD([images], lr=rate, momentum=0.5).step()
        assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["points", "differences"])
def test_a_student_stays_in_the_affine_hull_of_the_segment(toy, net, kind):             # T-ESP-7
    points = models.flatten(net) + trajectory(4) - trajectory(4)[0]
    span, theta, images = esp.basis(points, kind), points[0], randn(8, 1, 16, 16)
    config = dataclasses.replace(TINY, span=kind)
    for step in range(6):
        _, theta, _ = update(toy, images, theta, span, net, config, augment.DSA, step)
    affine = torch.cat([points, torch.ones(5, 1)], dim=1).T                             # weights that sum to 1
    wanted = torch.cat([theta, torch.ones(1)])
    residual = (affine @ torch.linalg.lstsq(affine, wanted[:, None]).solution - wanted[:, None]).norm()
    assert (theta - points[0]).norm() > 1e-3
    assert residual < 1e-6 if kind == "differences" else residual > 1e-6               # points: only in the linear span
    assert (theta - points[0] - esp.project(span, theta - points[0])).norm() < 1e-9


@pytest.mark.parametrize(("norm", "loss"), [("l1", "cross_entropy"), ("l2", "bce")])
def test_the_terms_of_an_update_are_what_they_are_called(toy, net, norm, loss):
    theta, span, images = models.flatten(net), esp.basis(trajectory(4)), randn(8, 1, 16, 16)
    config = dataclasses.replace(TINY, proj_weight=1e-2, proj_norm=norm, loss=loss)
    both, moved, terms = update(toy, images, theta, span, net, config)
    dm_only, same, dm_terms = update(toy, images, theta, span, net, dataclasses.replace(config, proj_weight=0.0))
    proj_only, also, proj_terms = update(toy, images, theta, span, net, dataclasses.replace(config, dm_weight=0.0))
    assert_close(both, dm_only + proj_only)
    assert_close(terms["ratio"], proj_only.norm() / dm_only.norm())
    assert "ratio" not in dm_terms and "ratio" not in proj_terms and "dm" not in proj_terms
    assert_close(moved, same, rtol=1e-10, atol=1e-12)
    assert_close(moved, also, rtol=1e-10, atol=1e-12)
    found = esp.project_gradient(net, theta, images, torch.arange(4).repeat_interleave(2), span, norm=norm, loss=loss)
    assert_close(terms["proj"], found.outside)
    assert_close(terms["grad_norm"], found.gradient.norm())
    assert_close(terms["rho"], found.inside.norm() / found.gradient.norm())
    assert 0 < terms["rho"] < 1
    assert_close(moved, theta - TINY.inner_lr * found.inside)
    assert_close(proj_only, 1e-2 * found.pixels)


def test_features_come_from_the_student_or_from_a_random_network(toy, net):
    span, images = esp.basis(trajectory(4)), randn(8, 1, 16, 16)
    thetas = models.flatten(net), models.flatten(net) + 0.1 * randn(P)
    for dm_net, alike in (("student", False), ("random", True)):
        config = dataclasses.replace(TINY, dm_net=dm_net)
        one, other = (update(toy, images, theta, span, net, config)[2]["dm"] for theta in thetas)
        assert torch.equal(one, other) is alike
    config = dataclasses.replace(TINY, dm_net="random")
    assert len({float(update(toy, images, thetas[0], span, net, config, seed=seed)[2]["dm"]) for seed in range(3)}) == 3


def test_the_feature_reduction_is_used(toy, net):
    span, images, theta = esp.basis(trajectory(4)), randn(8, 1, 16, 16), models.flatten(net)
    total, mean = (update(toy, images, theta, span, net, dataclasses.replace(TINY, feature_reduction=each))[2]["dm"]
                   for each in ("sum", "mean"))
    assert_close(total, mean * net.embed(images).shape[1])


class Kept:
    """Counts the bytes that living graphs hold for their backward passes."""

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    def __init__(self):
        self.live = self.peak = 0

    def pack(self, tensor):
        box, size = Kept.Box(tensor), tensor.numel() * tensor.element_size()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(box, self.free, size)
        return box

    def free(self, size):
        self.live -= size

    def unpack(self, box):
        return box.tensor


def test_no_graph_survives_an_update(toy32):                                            # T-ESP-9
    peaks = []
    for syn_steps in (1, 2, 6):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            *_, step = esp.distill(toy32, dataclasses.replace(TINY, steps=1, syn_steps=syn_steps, augment="none"))
        peaks.append(kept.peak)
        assert not step.syn.codes.grad.requires_grad
    assert peaks[0] > 1e5 and len(set(peaks)) == 1


def test_chunks_bound_the_graph(toy32, net):
    theta, span, images = models.flatten(net), esp.basis(trajectory(4)), randn(24, 1, 16, 16)
    labels, peaks = torch.arange(4).repeat_interleave(6), []
    for chunk in (24, 3):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            esp.project_gradient(net, theta, images, labels, span, chunk=chunk)
        peaks.append(kept.peak)
    assert peaks[1] < peaks[0] / 5


# ------------------------------------------------------------------------------------------------------------- a run

def test_gradients_reach_codes_decoders_and_pixels(toy32):
    syn = next(esp.distill(toy32, TINY)).syn
    assert (syn.codes.grad.abs().flatten(2).sum(-1) > 0).all()
    assert all((tensor.grad.abs().flatten(1).sum(-1) > 0).all() for tensor in syn.decoders.values())
    syn = next(esp.distill(toy32, dataclasses.replace(TINY, artifact="pixels", ipc=2))).syn
    assert isinstance(syn, PixelSet) and syn.ipc == 2 and (syn.images.grad.flatten(1).abs().sum(-1) > 0).all()


def test_a_part_of_the_set_is_as_many_images_of_every_class(toy32, monkeypatch):
    shown, original = [], esp.update
    monkeypatch.setattr(esp, "update", lambda real, images, *rest: shown.append(len(images)) or original(real, images, *rest))
    for syn_batch, count in ((0, 24), (4, 4), (11, 8), (100, 24)):                      # three codes, two decoders, four classes
        next(esp.distill(toy32, dataclasses.replace(TINY, syn_batch=syn_batch)))
        assert shown.pop() == count


def test_what_the_data_rule_out_is_said_before_experts_are_trained(toy32, monkeypatch):
    monkeypatch.setattr(experts, "train", lambda *_, **__: pytest.fail("experts were trained first"))
    for wrong, message in (({"syn_batch": 3}, "syn_batch must be 0.*at least 4"), ({"num_decoders": 4}, "choose from 1 to 3"),
                           ({"artifact": "pixels", "ipc": 1000}, "1000")):
        config = dataclasses.replace(TINY, **wrong)
        for call in (esp.prepare, lambda *both: next(esp.distill(*both))):
            with pytest.raises(ValueError, match=message):
                call(toy32, config)


@pytest.mark.parametrize("kind", ["points", "differences"])
def test_a_segment_decides_subspace_and_start_of_the_student(toy32, monkeypatch, kind):
    """Length and starts as asked; its losses are means over its updates; the student goes on from where it is."""
    drawn, updates, draw, update = [], [], experts.ExpertBuffer.draw_segment, esp.update

    def spy_on_draw(self, length, max_start, rng):
        assert (length, max_start) == (1, 3)
        drawn.append(draw(self, length, max_start, rng))
        return drawn[-1]

    def spy_on_update(real, images, theta, span, *rest):
        result = update(real, images, theta, span, *rest)
        updates.append((theta, span, *result))
        return result

    monkeypatch.setattr(experts.ExpertBuffer, "draw_segment", spy_on_draw)
    monkeypatch.setattr(esp, "update", spy_on_update)
    steps = list(esp.distill(toy32, dataclasses.replace(TINY, steps=8, segment=1, max_start=3, syn_steps=2, proj_weight=0.0, span=kind)))
    assert {segment.first for segment in drawn} == {0, 1, 2} and {segment.expert for segment in drawn} == {0, 1}
    for segment, step, (first, second) in zip(drawn, steps, zip(updates[::2], updates[1::2], strict=True), strict=True):
        assert torch.equal(first[0], segment.theta[0]) and torch.equal(second[0], first[3])
        assert all(torch.equal(each[1], esp.basis(segment.theta, kind)) for each in (first, second))
        for name, value in step.losses.items():
            assert_close(value, float(first[4][name] + second[4][name]) / 2)


def test_the_set_learns(toy32):
    """Class means agree better, and more of the gradient lies in the span of experts, than at the beginning."""
    config = dataclasses.replace(TINY, steps=25, proj_weight=1e-3, syn_steps=2)
    steps = list(esp.distill(toy32, config))
    mean = lambda name, part: sum(step.losses[name] for step in part) / len(part)
    assert mean("dm", steps[-5:]) < 0.5 * mean("dm", steps[:2])
    assert mean("rho", steps[-5:]) > mean("rho", steps[:2])


def test_rates_fall_linearly_over_all_updates(toy32):
    rates = [step.state.parts["optimizer"].param_groups[0]["lr"] for step in esp.distill(toy32, TINY)]       # after each segment
    updates = TINY.steps * TINY.syn_steps
    assert_close(rates, [TINY.code_lr * (1 - (TINY.syn_steps * (index + 1) - 1) / updates) for index in range(TINY.steps)])
    assert all(now > later for now, later in pairwise(rates))


def test_the_same_seed_gives_the_same_distilled_set_and_another_seed_another(toy32):
    def last(seed):
        *_, step = esp.distill(toy32, dataclasses.replace(TINY, seed=seed))
        return step.syn.all()[0].detach()

    assert torch.equal(last(0), last(0))
    assert not torch.equal(last(0), last(1))


@pytest.mark.parametrize("artifact", ["codes", "pixels"])
def test_a_run_that_was_stopped_ends_with_the_same_set(toy32, tmp_path, artifact):
    config = dataclasses.replace(TINY, steps=4, artifact=artifact, dm_net="random", syn_batch=4, ipc=2)
    *_, whole = esp.distill(toy32, config)
    runs.run(esp, config, tmp_path / "run", real=toy32, minutes=1e-9)
    for _ in range(4):
        result = runs.run(esp, config, tmp_path / "run", real=toy32, minutes=1e-9)
    assert result.finished and torch.equal(result.syn.all()[0], whole.syn.all()[0])
    assert {"dm", "proj", "rho", "grad_norm", "inner", "ratio"} < result.metrics().keys() and len(result.metrics()["dm"]) == 4
    assert result.syn.meta["method"] == "ESP" and result.syn.ipc == 2
    protocol = evaluate.with_options("strict-cpu", width=4, repeats=1, steps=2)
    assert evaluate.evaluate(result.syn, toy32, protocol, quiet=True).row(method="ESP")["ipc"] == "2"


def test_experts_are_trained_before_and_with_the_students_loss(toy32, monkeypatch, tmp_path):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    config = dataclasses.replace(TINY, loss="bce")
    assert config.experts().loss == "bce" and TINY.experts().loss == "cross_entropy"
    with pytest.raises(TimeoutError):
        esp.prepare(toy32, config, minutes=1e-9)
    esp.prepare(toy32, config)
    monkeypatch.setattr(experts.Job, "work", lambda *_: pytest.fail("experts were trained again"))
    assert next(esp.distill(toy32, config)).index == 1


# ------------------------------------------------------------------------------------------------------------ settings

def test_every_published_cell_has_a_preset_with_the_papers_settings():
    cells = papers.published(method="ESP", paper="ESP", eval_arch=None, variant=None)
    suffix = {"L_Proj only": "-proj-only", "L_DM only": "-dm-only"}
    assert len(cells) > 30
    for cell in cells:
        config = esp.PRESETS[f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc}{suffix.get(cell.variant, '')}"]
        assert (config.dataset, config.ipc, config.artifact, config.width) == (cell.dataset, cell.ipc, "codes", 128)
        assert (config.num_experts, config.inner_lr, config.code_lr, config.decoder_lr, config.syn_batch) == (1000, 0.1, 0.1, 0.01, 0)
        assert config.proj_weight == (0 if cell.variant == "L_DM only" else 1e-5)
        assert config.dm_weight == (0 if cell.variant == "L_Proj only" else 1)


@pytest.mark.parametrize("name", esp.PRESETS)
def test_every_preset_is_complete_and_spends_what_kfs_spends(name):
    config = esp.PRESETS[name]
    assert config.dataset in data.DATASETS and config.network in models.NETWORKS
    twin = kfs.PRESETS[name.removesuffix("-proj-only").removesuffix("-dm-only")]
    for setting in ("dataset", "ipc", "num_decoders", "num_codes", "network", "width"):
        assert getattr(config, setting) == getattr(twin, setting)
    num_classes, shape = {"toy": (4, (1, 16, 16)), "fashion_mini": (10, (1, 28, 28)), "tiny_imagenet": (200, (3, 64, 64)),
                          "cifar100": (100, (3, 32, 32))}.get(config.dataset, (10, (3, 32, 32)))
    assert fit_budget(config.ipc, shape, num_classes, config.num_decoders) >= 3


def test_small_networks_get_a_larger_beta():
    assert_close(esp.beta(320_010), 1e-5)
    assert_close(esp.beta(7_466), 2.6e-5, rtol=0.02, atol=0)
    residual = torch.randn(7_466, generator=rng(), dtype=torch.float64)              # the same weight of the term under both norms
    assert_close(esp.beta(7_466, norm="l2") * residual.norm().item(), esp.beta(7_466) * residual.abs().sum().item(), rtol=0.02, atol=0)
    assert TINY.proj_weight == esp.beta(models.num_params(models.build("convnet3", shape=(1, 16, 16), num_classes=4, width=4)))


def test_codes_and_pixels_start_as_stated(toy32):
    config = dataclasses.replace(TINY, code_lr=0.0, decoder_lr=0.0, pixel_lr=0.0)
    syn = next(esp.distill(toy32, config)).syn
    assert isinstance(syn, FactoredSet) and 0.8 < syn.codes.std() < 1.2
    syn = next(esp.distill(toy32, dataclasses.replace(config, artifact="pixels"))).syn
    assert torch.equal(syn.images, toy32.preprocess(toy32.train.images[syn.meta["started_from"]]))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"artifact": "poster"}, "artifact must be one of codes, pixels"), ({"span": "lines"}, "span must be"),
    ({"proj_norm": "l3"}, "proj_norm must be"), ({"loss": "mse"}, "loss must be"), ({"dm_net": "expert"}, "dm_net must be"),
    ({"feature_reduction": "max"}, "feature_reduction must be"), ({"segment": 0}, "segment must be"),
    ({"syn_steps": 0}, "syn_steps must be"), ({"segment": 3}, "need buffer_epochs of at least 4, got 3"),
    ({"proj_weight": 0.0, "dm_weight": 0.0}, "not both 0"),
    ({"inner_lr": 0.0}, "inner_lr"), ({"network": "densenet121"}, "mix the classes"), ({"num_decoders": 0}, "num_decoders"),
    ({"proj_weight": math.nan}, "proj_weight"), ({"width": 0}, "width")])
def test_settings_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **wrong)


def test_more_codes_than_the_budget_holds_are_refused_before_experts_are_trained():
    with pytest.raises(ValueError, match=r"choose num_codes up to \d+, or 0"):
        esp.check_data(data.load("toy"), dataclasses.replace(esp.PRESETS["tiny"], num_codes=10_000))
