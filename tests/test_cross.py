"""Chapter 10 compares sets of one budget on several networks: what it cannot compare it refuses before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import pytest
import torch
from conftest import ROOT

from ddlib import data, distilled, models

CHAPTER = jupytext.read(ROOT / "notebooks" / "10_cross_architecture.py", fmt="py:percent")
IMPORTS, PARAMETERS, SETTING = [cell.source for cell in CHAPTER.cells if cell.cell_type == "code"][:3]


def start(**parameters: Any) -> dict[str, Any]:
    """The chapter's names after its first three code cells, run with these parameters."""
    names: dict[str, Any] = {}
    exec(IMPORTS, names)
    exec(PARAMETERS, names)
    names.update(parameters)
    exec(SETTING, names)
    return names


def store(folder: Path, ipc: int) -> Path:
    real = data.load("toy")
    labels = torch.arange(real.num_classes).repeat_interleave(ipc)
    images = torch.zeros(len(labels), *real.shape)
    distilled.PixelSet(images, labels, classes=real.classes, preprocess=real.preprocess,
                       meta={"dataset": "toy", "method": "DM"}).save(folder / "dm.safetensors")
    return folder


def test_a_set_of_another_ipc_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dm\.safetensors holds 2 images per class and this run compares sets of 1"):
        start(preset="tiny", sets=str(store(tmp_path, 2)))


def test_sets_of_the_named_ipc_are_compared_with_as_many_photographs(tmp_path):
    names = start(preset="tiny", sets=str(store(tmp_path, 2)), ipc=2)
    assert list(names["loaded"]) == ["DM"]
    assert all(each.ipc == 2 for each in names["randoms"])


def test_a_misspelt_generator_is_refused():
    with pytest.raises(ValueError, match=r"resampled names 'GCAN'; write all, none, or some of CGAN,DiM,GLD,SKD"):
        start(preset="tiny", resampled="GCAN,SKD")


def test_an_ipc_below_one_is_refused():
    with pytest.raises(ValueError, match="ipc must be at least 1, got 0"):
        start(preset="tiny", ipc=0)


def test_the_full_preset_has_the_six_published_networks():
    names = start(preset="full", repeats=1)
    assert names["tests"] == dict.fromkeys(["convnet3", "resnet18", "alexnet", "vgg11", "densenet121", "efficientnet_v2_s"])
    with torch.device("meta"):                                     # every one can be built for the book's images
        for network in names["tests"]:
            models.build(network, shape=names["real"].shape, num_classes=10)
