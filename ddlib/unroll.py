"""Differentiable training: the parameters after J steps, with gradients to whatever the mini-batches were made of.

Three exact forms and one that is not, behind one function. `plain` keeps the graph of every step, so memory grows with J.
`remat` keeps only the parameter vectors of the way and recomputes one step at a time backwards: the same gradient, nearly
constant memory, about twice the time. `compiled` does the same with a Hessian-vector product written out by hand, which the
compiler can fuse. `detached` (TESLA; Cui et al., ICML 2023) forgets that a step's starting point depends on earlier
images: the memory of one step, and another gradient.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ddlib import models
from ddlib.train import Batch, can_compile

Form = Literal["plain", "remat", "compiled", "detached"]
OptimizerState = tuple[Tensor, ...]


class Rule(Protocol):
    """An inner optimizer as a function: nothing in place, so that it can be differentiated."""

    def start(self, theta: Tensor) -> OptimizerState:
        """Its state before the first step."""

    def step(self, theta: Tensor, gradient: Tensor, state: OptimizerState, rate: Tensor) -> tuple[Tensor, OptimizerState]:
        """The parameters (P,) and the state after one step."""


@dataclass(frozen=True)
class SGD:
    """theta <- theta - rate v with v <- momentum v + gradient: `torch.optim.SGD`."""

    momentum: float = 0.0

    def start(self, theta: Tensor) -> OptimizerState:
        return (torch.zeros_like(theta),) if self.momentum else ()

    def step(self, theta: Tensor, gradient: Tensor, state: OptimizerState, rate: Tensor) -> tuple[Tensor, OptimizerState]:
        if not self.momentum:
            return theta - rate * gradient, ()
        velocity = self.momentum * state[0] + gradient
        return theta - rate * velocity, (velocity,)


@dataclass(frozen=True)
class Adam:
    """`torch.optim.Adam`; the derivative of the root is taken as 0 where the second moment is exactly 0 (dead parameters)."""

    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8

    def start(self, theta: Tensor) -> OptimizerState:
        return torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros((), dtype=theta.dtype, device=theta.device)

    def step(self, theta: Tensor, gradient: Tensor, state: OptimizerState, rate: Tensor) -> tuple[Tensor, OptimizerState]:
        mean, square, count = state
        (first, second), count = self.betas, count + 1
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient.square()
        moved = square > 0
        root = torch.where(moved, torch.where(moved, square, 1.0).sqrt(), 0.0)          # sqrt'(0) is infinite
        root = root / (1 - second**count).sqrt()
        return theta - rate * (mean / (1 - first**count)) / (root + self.adam_eps), (mean, square, count)


def mean_loss(net: models.Classifier, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy at theta (P,) on images (B, c, h, w) and labels, (B,) or (B, C)."""
    return F.cross_entropy(models.functional(net, theta, images), labels)


def loss_gradient(net: models.Classifier, theta: Tensor, images: Tensor, labels: Tensor, create_graph: bool = False) -> Tensor:
    """Gradient (P,) of the mean cross-entropy at theta (P,); with `create_graph` it can be differentiated again."""
    return grad(mean_loss(net, theta, images, labels), theta, create_graph=create_graph)[0]


def unroll(net: models.Classifier, theta: Tensor, sources: Sequence[Tensor], batch: Callable[..., Batch], *, steps: int,
           rate: Tensor | float, rule: Rule | None = None, form: Form = "remat", state: OptimizerState | None = None) -> Tensor:
    """theta_J: the parameters (P,) after `steps` updates from `theta` (P,), differentiable in theta, sources and rate.

    theta_{j+1} = theta_j - rate * gradient of the mean cross-entropy on `batch(j, *sources)` (MTT, eq. 2), or as `rule` says.
    sources: the tensors that batches are made of: pixels, soft labels, a poster. batch(j, *sources) gives images
    (B, c, h, w) and labels, (B,) classes or (B, C) probabilities, of step j, and must give the same again when asked again:
    draw random numbers before. state: of the rule, where a training goes on (a constant; default: a fresh start).
    form: "plain", "remat" and "compiled" are exact; "detached" is not (see above). "compiled" needs a ConvNet and a C++
    compiler, falls back to "remat" and says so once where it has none. Batch norm is refused: it would change the network.
    """
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r}; choose from {', '.join(get_args(Form))}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        raise ValueError("a network with batch norm cannot be unrolled, because every call changes its statistics: use a convnet")
    rule = rule or SGD()
    rate = torch.as_tensor(rate, dtype=theta.dtype, device=theta.device)
    state = rule.start(theta.detach()) if state is None else state
    if form == "plain":
        theta = theta if theta.requires_grad else theta.detach().requires_grad_()       # a gradient is taken at it
        for j in range(steps):
            gradient = loss_gradient(net, theta, *batch(j, *sources), create_graph=True)
            theta, state = rule.step(theta, gradient, state, rate)
        return theta
    backwards: Backwards = DoubleBackward(net, detached=form == "detached")
    if form == "compiled" and not isinstance(net, models.ConvNet):
        say_once("the compiled unroll is written out for ConvNets only; the uncompiled one gives the same gradient, more slowly")
    elif form == "compiled" and can_compile(theta.device.type):
        backwards = Tangent(cast(models.ConvNet, net), compiled=True)
    return _Rematerialised.apply(Task(backwards, batch, steps, rule, state), rate, theta, *sources)


@dataclass(frozen=True)
class Task:
    """What `_Rematerialised` needs besides tensors that it differentiates."""

    backwards: Backwards
    batch: Callable[..., Batch]
    steps: int
    rule: Rule
    state: OptimizerState


class _Rematerialised(torch.autograd.Function):
    """Forward: train without a graph and keep the way. Backward: from the last step to the first, one step's graph at a time.

    With adjoint a_{j+1} of theta_{j+1} and g_j the gradient at step j, plain SGD has a_j = a_{j+1} - rate H_j a_{j+1}, and each
    step adds -rate (d g_j / d source)^T a_{j+1} to its source: one Hessian-vector product per step gives both.
    """

    @staticmethod
    def forward(ctx: Any, task: Task, rate: Tensor, theta: Tensor, *sources: Tensor) -> Tensor:
        state, ctx.path = task.state, []
        vectors = 1 + sum(part.shape == theta.shape for part in state) + task.backwards.keeps_gradients
        room = theta.new_empty(task.steps, vectors, len(theta))       # one block: small ones in between keep the heap from shrinking
        for j in range(task.steps):
            gradient = task.backwards.first(theta, *task.batch(j, *sources))
            rows = iter(room[j])
            theta, state = next(rows).copy_(theta), tuple(next(rows).copy_(part) if part.shape == theta.shape else part for part in state)
            ctx.path.append((theta, state, next(rows).copy_(gradient) if task.backwards.keeps_gradients else None))
            theta, state = task.rule.step(theta, gradient, state, rate)
        ctx.task = task
        ctx.save_for_backward(rate, *sources)
        return theta.clone() if not task.steps else theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        task, (rate, *sources) = ctx.task, ctx.saved_tensors
        leaves = [source.detach().requires_grad_(needed)
                  for source, needed in zip(sources, ctx.needs_input_grad[3:], strict=True)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        totals, rate_total = [torch.zeros_like(leaf) for leaf in wanted], torch.zeros_like(rate)
        adjoints: list[Tensor] = [adjoint, *(torch.zeros_like(part) for part in task.state)]
        for j in reversed(range(task.steps)):
            theta, state, gradient = ctx.path[j]
            with torch.enable_grad():
                images, labels = task.batch(j, *leaves)
                gradient, derivatives = task.backwards.second(theta, images, labels, gradient)
                inputs = [part.detach().requires_grad_() for part in (theta, gradient, rate, *state)]
                moved, after = task.rule.step(inputs[0], inputs[1], tuple(inputs[3:]), inputs[2])
                theta_bar, gradient_bar, rate_bar, *state_bar = vjp([moved, *after], inputs, adjoints)
            hessian_part, images_bar, labels_bar = derivatives(gradient_bar)
            adjoints = [theta_bar if hessian_part is None else theta_bar + hessian_part, *state_bar]
            rate_total += rate_bar
            for total, part in zip(totals, vjp([images, labels], wanted, [images_bar, labels_bar]), strict=True):
                total += part
        given = iter(totals)
        return None, rate_total, adjoints[0], *(next(given) if leaf.requires_grad else None for leaf in leaves)


def vjp(outputs: Sequence[Tensor], inputs: Sequence[Tensor], adjoints: Sequence[Tensor | None]) -> list[Tensor]:
    """Sum over outputs of adjoint^T d output / d input, zero for inputs that play no part."""
    live = [(output, adjoint) for output, adjoint in zip(outputs, adjoints, strict=True) if output.requires_grad and adjoint is not None]
    if not live or not inputs:
        return [torch.zeros_like(each) for each in inputs]
    return list(grad([output for output, _ in live], inputs, [adjoint for _, adjoint in live], allow_unused=True, materialize_grads=True))


Parts = tuple[Tensor | None, ...]    # of theta, images and labels; None for what needs no gradient
Second = tuple[Tensor, Callable[[Tensor], Parts]]


class Backwards(Protocol):
    """How the first and second derivatives of one step's loss are computed."""

    @property
    def keeps_gradients(self) -> bool:
        """Whether `second` wants back what `first` gave."""

    def first(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,) at theta."""

    def second(self, theta: Tensor, images: Tensor, labels: Tensor, gradient: Tensor | None) -> Second:
        """The gradient once more, and a function of a direction (P,): the derivatives of <gradient, direction>."""


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]


def parts(output: Tensor, adjoint: Tensor | None, inputs: Sequence[Tensor]) -> Parts:
    """Derivatives of `output` with respect to those of `inputs` that need one."""
    wanted = [each for each in inputs if each.requires_grad]
    found = iter(grad(output, wanted, adjoint, allow_unused=True, materialize_grads=True) if wanted else ())
    return tuple(next(found) if each.requires_grad else None for each in inputs)


@dataclass(frozen=True)
class DoubleBackward:
    """Differentiate the gradient: works for every network. detached: theta counts as a constant in the gradient."""

    net: models.Classifier
    detached: bool = False
    keeps_gradients = False

    def first(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            return loss_gradient(self.net, theta.detach().requires_grad_(), images.detach(), labels.detach())

    def second(self, theta: Tensor, images: Tensor, labels: Tensor, gradient: Tensor | None) -> Second:
        theta, (images, labels) = theta.detach().requires_grad_(), leaves_of(images, labels)
        graph = loss_gradient(self.net, theta, images, labels, create_graph=True)

        def derivatives(direction: Tensor) -> Parts:
            of_theta = theta.detach() if self.detached else theta
            return parts(graph, direction, [of_theta, images, labels])

        return graph.detach(), derivatives


def tangent_loss(net: models.ConvNet, theta: Tensor, direction: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """d/de of the mean cross-entropy at theta + e direction, at e = 0: the network and its tangent, block by block.

    Its ordinary gradient is the Hessian-vector product: with respect to theta H direction, with respect to images
    the mixed second derivative along direction. No second backward pass is needed, so a compiler can take it whole.
    """
    at, along = models.unflatten(net, theta), models.unflatten(net, direction)
    x, dx = images, torch.zeros((), dtype=images.dtype, device=images.device)
    for index, block in enumerate(net.body):                                            # x: (B, width, h / 2^index, w / 2^index)
        name, conv, norm = f"body.{index}", cast(nn.Conv2d, block[0]), cast(nn.GroupNorm, block[1])  # type: ignore[index]
        padding = cast(tuple[int, int], conv.padding)
        weight, d_weight = at[f"{name}.0.weight"], along[f"{name}.0.weight"]
        y = F.conv2d(x, weight, at[f"{name}.0.bias"], padding=padding)
        dy = F.conv2d(x, d_weight, along[f"{name}.0.bias"], padding=padding)
        if index > 0:                                                                   # the images themselves stand still
            dy = dy + F.conv2d(dx, weight, padding=padding)
        # instance norm: n = (y - mean y) / std y, so dn = (dy - mean dy - n mean(n dy)) / std y
        centred = y - y.mean(dim=(2, 3), keepdim=True)
        inverse = (centred.square().mean(dim=(2, 3), keepdim=True) + norm.eps).rsqrt()
        n = centred * inverse
        dn = (dy - dy.mean(dim=(2, 3), keepdim=True) - n * (n * dy).mean(dim=(2, 3), keepdim=True)) * inverse
        scale, d_scale = at[f"{name}.1.weight"][:, None, None], along[f"{name}.1.weight"][:, None, None]
        z = n * scale + at[f"{name}.1.bias"][:, None, None]
        dz = dn * scale + n * d_scale + along[f"{name}.1.bias"][:, None, None]
        x, dx = F.avg_pool2d(z.relu(), 2), F.avg_pool2d(dz * (z > 0), 2)
    x, dx = x.flatten(1), dx.flatten(1)                                                 # (B, F)
    logits = F.linear(x, at["head.weight"], at["head.bias"])                            # (B, C)
    d_logits = F.linear(dx, at["head.weight"]) + F.linear(x, along["head.weight"], along["head.bias"])
    targets = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    mass = targets.sum(dim=1, keepdim=True)                                             # 1 for a probability
    return ((mass * logits.softmax(dim=1) - targets) * d_logits).sum(dim=1).mean()


@dataclass(frozen=True)
class Tangent:
    """Differentiate the tangent of the loss, written out for the ConvNet's block; compiled or not."""

    net: models.ConvNet
    compiled: bool = False
    keeps_gradients = True

    def first(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            loss = pick(mean_loss, self.compiled)(self.net, theta, images.detach(), labels.detach())
            return grad(loss, theta)[0]

    def second(self, theta: Tensor, images: Tensor, labels: Tensor, gradient: Tensor | None) -> Second:
        assert gradient is not None
        theta, (images, labels) = theta.detach().requires_grad_(), leaves_of(images, labels)

        def derivatives(direction: Tensor) -> Parts:
            with torch.enable_grad():
                slope = pick(tangent_loss, self.compiled)(self.net, theta, direction, images, labels)
            return parts(slope, None, [theta, images, labels])

        return gradient, derivatives


@functools.cache
def compile_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def pick(function: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    return compile_once(function) if compiled else function


@functools.cache
def say_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)
