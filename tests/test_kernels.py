"""Who runs, what the kernels are compiled to, and that methods do not notice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kernel_checks import DEVICE
from safetensors.torch import load_file

from ddlib import data, kernels
from ddlib.kernels import augment as change
from ddlib.kernels import poster as patches
from ddlib.kernels import skd, subspace, traffic, trajectory
from ddlib.methods import cgan, ddpp, dim, dm, esp, gld, kfs, mtt, podd, rat_bptt
from ddlib.methods import skd as skd_method

LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def called(monkeypatch: pytest.MonkeyPatch, tensors: tuple[torch.Tensor, ...] = LOGITS) -> int:
    """How often skd's kernel runs for one loss."""
    count = []
    monkeypatch.setattr(skd._SKD, "apply", lambda *inputs: count.append(1) or torch.zeros(()))
    skd.skd_loss(*tensors, 2.0)
    return len(count)


def test_on_a_cpu_plain_torch_runs_unless_kernels_are_asked_for(monkeypatch):
    monkeypatch.delenv("DDLIB_KERNELS", raising=False)
    assert kernels.mode() == "auto" and called(monkeypatch) == 0
    with kernels.using("on"):
        assert called(monkeypatch) == 1
        with kernels.using("off"):
            assert called(monkeypatch) == 0
        assert called(monkeypatch) == 1
    monkeypatch.setenv("DDLIB_KERNELS", "on")
    assert called(monkeypatch) == 1
    with kernels.using("off"):
        assert not kernels.run_fast("skd", SimpleNamespace(is_cuda=True))


def test_double_precision_is_left_to_torch_and_said_once(monkeypatch):
    kernels.say_once.cache_clear()
    with kernels.using("on"), pytest.warns(UserWarning, match="kernel skd: not for float64, plain torch runs instead"):
        assert called(monkeypatch, tuple(each.double() for each in LOGITS)) == 0


def test_a_gpu_without_triton_and_an_unknown_mode_have_a_sentence(monkeypatch):
    with pytest.raises(ValueError, match="unknown mode of the kernels 'fast'; choose from auto, on, off"), kernels.using("fast"):
        pass
    assert kernels.mode() in ("auto", "on", "off")                     # the refused mode is gone
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    with pytest.raises(RuntimeError, match="kernels need Triton"), kernels.using("on"):
        pass
    kernels.say_once.cache_clear()
    monkeypatch.setenv("DDLIB_KERNELS", "on")
    with pytest.warns(UserWarning, match="plain torch runs instead, as they need Triton"):
        assert not kernels.run_fast("skd", *LOGITS)


def test_a_machine_without_gpu_has_no_kernels_and_needs_none():
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "DDLIB_KERNELS")}
    code = "from ddlib import kernels; from ddlib.kernels import skd; print(kernels.AVAILABLE, type(skd._kernel).__name__)"
    done = subprocess.run([sys.executable, "-c", code], env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "function"], done.stderr


MISFITS = {
    "skd": lambda: skd.skd_loss(torch.randn(8, 5), torch.randn(4, 5), 2.0),
    "subspace": lambda: subspace.split(torch.randn(100), torch.randn(120, 3)),
    "poster": lambda: patches.extract(torch.randn(1, 8, 8), torch.zeros(2, 5, dtype=torch.int64), (2, 2)),
    "augment": lambda: change.change("crop", torch.randn(4, 1, 8, 8), torch.zeros(3, 2)),
    "trajectory": lambda: trajectory.match(torch.randn(10), torch.randn(12), torch.randn(12), 0.1, "signed"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_shapes_that_do_not_go_together_never_reach_a_kernel(name):
    """It would read or write beyond its tensors; plain torch has an error for them."""
    kernels.say_once.cache_clear()
    with kernels.using("on"), pytest.warns(UserWarning, match=f"kernel {name}: not for"), pytest.raises(RuntimeError):
        MISFITS[name]()


@pytest.mark.parametrize(("least", "block"), [(0, 1), (1, 1), (2, 2), (3, 4), (1000, 1024), (1024, 1024)])
def test_blocks_are_powers_of_two(least, block):
    assert kernels.power_of_2(least) == block


def test_traffic_counts_what_is_launched_and_moved():
    x = torch.ones(100)
    with traffic.Traffic() as seen:
        y = x + 1                                    # reads and writes 400 bytes
        y.view(10, 10).t()                           # moves nothing
        y.mul_(2)                                    # 400 bytes, in their place: seen once
        x[:1].expand(50) * torch.ones(50)            # makes 200 bytes, reads 200 twice, makes 200
    assert (seen.launches, seen.bytes) == (4, 800 + 400 + 200 + (200 + 200 + 200))


@pytest.mark.skipif(not kernels.AVAILABLE, reason="Triton is not installed")
def test_every_kernel_compiles_for_a_gpu_that_is_not_there():
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("compile_kernels.py")), "90"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in kernels_in_the_library():
        assert f"{name} " in done.stdout, f"{name} was not compiled"


def kernels_in_the_library() -> list[str]:
    """Functions that are launched, as `file._name`: a launch is written `_name[grid](...)` or given to a launcher by name."""
    found = []
    for path in sorted(Path(kernels.__file__).parent.glob("*.py")):
        text = path.read_text()
        names = re.findall(r"^@jit\ndef (\w+)\(", text, flags=re.MULTILINE)
        found += [f"{path.stem}.{name}" for name in names if re.search(rf"\b{name}\[|\({name}, ", text)]
    return found


def test_the_library_has_six_kernels():
    assert {name.split(".")[0] for name in kernels_in_the_library()} == {"augment", "block", "poster", "skd", "subspace", "trajectory"}


METHODS = {module.__name__.rsplit(".", 1)[1]: module for module in (cgan, ddpp, dim, dm, esp, gld, kfs, mtt, podd, rat_bptt, skd_method)}


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


# an interpreted inner step takes seconds: fewer of them where there are many
FEWER = {"podd": {"window": 1, "max_inner": 2, "patches_x": 2, "distances": "none"}, "rat_bptt": {"window": 2, "max_inner": 3}}
# of the networks that they match through only ConvNets have blocks; beside the GAN's gradient that of the match is small
FEWER |= {name: {"pool": "convnet3", "pool_widths": "4", "weight": 10.0, "max_gradient": 1e9} for name in ("dim", "gld", "skd")}


@pytest.mark.parametrize("name", METHODS)
def test_the_tiny_preset_distils_the_same_set_with_kernels(name, runs_folder, tmp_path):
    """What two updates have changed is the same: a set that hardly moves would hide wrong gradients within a tolerance."""
    method, real = METHODS[name], data.load("toy").to(DEVICE)
    config = replace(method.PRESETS["tiny"], steps=3, **FEWER.get(name, {}))
    if hasattr(method, "prepare"):
        method.prepare(real, config)                                   # experts and GANs, once, without kernels
    moved = []
    for mode in ("off", "on"):
        path = tmp_path / f"{mode}.safetensors"
        with kernels.using(mode):
            steps = method.distill(real, config)
            next(steps).syn.save(path)
            before = load_file(path)
            for last in steps:
                last.syn.save(path)
        after = load_file(path)
        assert after.keys() == before.keys()
        # of a generator not its counters, nor the biases that a norm removes: Adam moves those by the signs of rounding errors
        compared = [key for key in sorted(after) if ".net." not in key or after[key].ndim > 1]
        moved.append(torch.cat([(after[key].double() - before[key].double()).flatten() for key in compared]))
    plain, fast = moved
    assert plain.norm() > 0 and (fast - plain).norm() <= 0.01 * plain.norm()
