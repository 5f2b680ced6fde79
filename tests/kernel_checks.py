"""What every kernel must show: the numbers and derivatives of its plain form, in float64, and that it writes all it returns.

Kernels run on the GPU where there is one, else under Triton's interpreter on the CPU (conftest.py asks for it).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ddlib import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within, memory that is allocated and not written holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run(function: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool], double: bool, seed: int = 7) -> list[Tensor]:
    """The value, derivatives by the wanted inputs against a random direction and, if double, those of their sum against another."""
    inputs = [each.detach().requires_grad_(want) for each, want in zip(inputs, wanted, strict=True)]
    leaves = [each for each in inputs if each.requires_grad]

    def direction(like: Tensor, number: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed + number)
        return torch.randn(like.shape, generator=rng, dtype=torch.float64).to(like)

    value = function(*inputs)
    if not leaves:
        return [value.detach()]
    adjoint = direction(value, 0).requires_grad_(double)
    first = torch.autograd.grad(value, leaves, adjoint, create_graph=double, allow_unused=True, materialize_grads=True)
    if not double:
        return [value.detach(), *first]
    along = sum((part * direction(part, 1 + i)).sum() for i, part in enumerate(first))
    second = torch.autograd.grad(along, [*leaves, adjoint], allow_unused=True, materialize_grads=True)
    return [each.detach() for each in (value, *first, *second)]


def same_as_reference(fast: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor],
                      wanted: Sequence[bool] | None = None, double: bool = False, tolerance: float = 0.0) -> None:
    """Assert that `fast` with kernels gives `reference` of the same numbers in float64: value, gradients, double gradients.

    Differences are measured against the largest entry of each tensor, or 0.01. wanted: which inputs need gradients (default: all
    floating ones). A kernel that leaves its work to plain torch fails.
    """
    wanted = wanted if wanted is not None else [each.is_floating_point() for each in inputs]
    inputs = [each.to(DEVICE) if each.device != DEVICE else each for each in inputs]
    exact = run(reference, [each.double() if each.is_floating_point() else each for each in inputs], wanted, double)
    kernels.say_once.cache_clear()
    with kernels.using("on"), poisoned_memory(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*plain torch runs instead")
        found = run(fast, inputs, wanted, double)
    dtypes = [each.dtype for each in inputs if each.is_floating_point()]
    tolerance = tolerance or max(TOLERANCE[dtype] for dtype in dtypes)
    for number, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        assert ours.shape == theirs.shape, (number, ours.shape, theirs.shape)
        scale = max(theirs.abs().max().item(), 1e-2) if theirs.numel() else 1.0
        worst = (ours.double() - theirs).abs().max().item() if theirs.numel() else 0.0
        assert worst <= tolerance * scale, f"output {number} of {len(exact)}: off by {worst:.3g} where the largest is {scale:.3g}"
