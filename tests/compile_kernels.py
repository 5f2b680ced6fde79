"""Compile every kernel for a GPU that need not be there: `python tests/compile_kernels.py 90` (compute capability 9.0).

The operations are run with plain tensors and a launch that compiles and returns, so that types and constants are those of real use.
Nothing is executed and results mean nothing. Prints a line for each kernel: its name, registers and bytes of machine code.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)             # Triton decides when it is imported
import torch

with mock.patch("torch.cuda.is_available", return_value=True), mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)):
    from ddlib import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddlib import augment, poster, runs
from ddlib.kernels import augment as change
from ddlib.kernels import block, skd, subspace, trajectory
from ddlib.kernels import poster as patches

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64", torch.int64: "i64",
         torch.int32: "i32", torch.bool: "i1", torch.uint8: "u8"}
OPTIONS = ("num_warps", "num_stages")
done: dict[tuple[Any, ...], int] = {}


def compile_only(capability: int) -> Any:
    """In place of `JITFunction.run`: machine code for these arguments, once for each combination of types and constants."""

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        given = dict(zip(self.arg_names, args, strict=False)) | named
        signature, constants = {}, {}
        for parameter in self.params:
            value = given[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):      # ones are constants of a launch
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                signature[parameter.name] = (f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor)
                                             else "fp32" if isinstance(value, float) else "i32")
        key = (self.__name__, *signature.values(), *constants.values())
        if key not in done:
            made = triton.compile(ASTSource(fn=self, signature=signature, constexprs=constants),
                                  target=GPUTarget("cuda", capability, 32), options=options)
            done[key] = len(made.asm["cubin"])
            kinds = [kind for kind in signature.values() if kind.startswith("*")]
            print(f"{self.__module__.rsplit('.', 1)[-1]}.{self.__name__} {' '.join(dict.fromkeys(kinds))}: {done[key]:,} bytes", flush=True)

    return run


def backwards(value: torch.Tensor, leaf: torch.Tensor, twice: bool = False) -> None:
    direction = torch.ones_like(value).requires_grad_(twice)
    (first,) = torch.autograd.grad(value, leaf, direction, create_graph=twice)
    if twice:
        torch.autograd.grad(first, (leaf, direction), torch.ones_like(first))


def use_all(dtype: torch.dtype) -> None:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    for side in (4, 15, 32):
        x = leaf(2, 8, side, side)
        backwards(block.norm_relu_pool(x, torch.ones(8), torch.zeros(8), 1e-5), x, twice=True)
    layout, picture = poster.Layout(40, 20, 16, 16, 4, 2), leaf(3, 20, 40)
    backwards(patches.extract(picture, layout.index(len(picture)), (16, 16)), picture)
    for op in augment.OPS:
        for siamese in (False, True):
            images = leaf(4, 3, 32, 32)
            backwards(change.change(op, images, augment.draw(op, 4, (3, 32, 32), runs.stream(0, op), siamese=siamese).values[0]), images)
    P = 5000
    for rule in ("signed", "absolute", "off"):
        student = leaf(P)
        backwards(trajectory.match(student, torch.ones(P, dtype=dtype), torch.zeros(P, dtype=dtype), 0.1, rule).loss, student)
    for norm in ("l1", "l2"):
        gradient = leaf(P)
        backwards(subspace.split(gradient, torch.ones(P, 5, dtype=dtype), norm).loss, gradient)
    for standardize in (True, False):
        made, seen = leaf(8, 10), leaf(8, 10)
        backwards(skd.skd_loss(seen, made, 2.0, standardize), made)


def main() -> None:
    capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    with mock.patch("triton.runtime.jit.JITFunction.run", compile_only(capability)), \
            mock.patch("ddlib.kernels.INTERPRETED", True), kernels.using("on"):
        for dtype in (torch.float32, torch.bfloat16):
            use_all(dtype)
    print(f"{len(done)} kernels compiled for compute capability {capability / 10:g}")


if __name__ == "__main__":
    main()
