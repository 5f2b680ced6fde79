"""A distilled set can be used alone: drawn from, looked at, saved, moved and read back."""

import json

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ddlib import data, distilled, evaluate, files
from ddlib.distilled import DistilledSet, PixelSet

matplotlib.use("Agg")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture
def syn(toy):
    return PixelSet.from_real(toy, 3, rng(), method="Random")


def test_from_real_holds_ipc_training_images_of_every_class(toy, syn):
    assert syn.images.shape == (3 * toy.num_classes, *toy.shape)
    assert syn.labels.tolist() == [label for label in range(toy.num_classes) for _ in range(3)]
    assert torch.equal(syn.images, toy.preprocess(toy.train.images[syn.meta["indices"]]))
    assert len(set(syn.meta["indices"])) == len(syn.images)


def test_budget_counts_pixels_and_soft_labels(syn):
    assert syn.budget == syn.images.numel()
    assert syn.ipc == 3
    soft = PixelSet(syn.images, syn.all()[1], classes=syn.classes, preprocess=syn.preprocess)
    assert soft.budget == syn.images.numel() + len(syn.images) * syn.num_classes
    assert soft.ipc == 3


def test_draw_returns_each_image_equally_often_up_to_one(syn):
    images, labels = syn.draw(30, rng())
    assert images.shape == (30, *syn.shape) and labels.shape == (30, syn.num_classes)
    times = [int((images == image).flatten(1).all(1).sum()) for image in syn.images]
    assert set(times) <= {2, 3} and sum(times) == 30
    for image, label in zip(images, labels, strict=True):
        matches = (syn.images == image).flatten(1).all(1)
        assert torch.equal(F.one_hot(syn.labels[matches][0], syn.num_classes).float(), label)


class NoiseSet(DistilledSet):
    """A stand-in for a generator: images are drawn anew from noise."""

    kind = "noise"

    def __init__(self, like):
        self.classes, self.shape, self.preprocess, self.meta, self.budget_scalars = like.classes, like.shape, like.preprocess, {}, 7

    @property
    def budget(self):
        return self.budget_scalars

    def draw(self, num, rng):
        labels = torch.arange(num) % self.num_classes
        return torch.randn(num, *self.shape, generator=rng), F.one_hot(labels, self.num_classes).float()

    def all(self, rng):
        return self.draw(2 * self.num_classes, rng)

    def tensors(self):
        return {"scalars": torch.zeros(7)}

    @classmethod
    def from_tensors(cls, tensors, **facts):
        raise NotImplementedError


@pytest.mark.parametrize("resample", [False, True])
def test_frozen_sets_repeat_their_images_and_resampling_does_not(toy, syn, resample, monkeypatch):          # T-EVAL-1
    epochs = []

    def spy(net, batches, **_):
        epochs.extend(sorted(torch.cat([next(batches)[0] for _ in range(2)]).flatten(1).sum(1).tolist()) for _ in range(2))

    monkeypatch.setattr(evaluate.train, "fit", spy)
    protocol = evaluate.Protocol(name="test", source="", epochs=2, batch_size=4, width=4, resample=resample)
    evaluate.train_network(NoiseSet(syn), toy, protocol, seed=0, repeat=0)                # 8 images: two batches an epoch
    assert (epochs[0] == epochs[1]) is not resample


def test_labels_must_be_classes_or_probabilities(toy, syn):
    for wrong in (syn.labels + 2, syn.labels - 1, torch.ones(len(syn.labels), 3)):
        with pytest.raises(ValueError, match="labels must be"):
            PixelSet(syn.images, wrong, classes=syn.classes, preprocess=syn.preprocess)


@pytest.mark.parametrize("kind", ["none", "standardize", "zca_a", "zca_b"])
def test_a_saved_set_comes_back_whole(toy, tmp_path, kind):
    preprocess = data.Preprocess.fit(toy.train.images, kind)
    syn = PixelSet(preprocess(toy.train.images[:4]), torch.arange(4), classes=toy.classes, preprocess=preprocess,
                   alpha=torch.tensor(0.02), meta={"dataset": "toy", "method": "MTT", "config": {"ipc": 1}, "seed": 3})
    back = distilled.load(syn.save(tmp_path / "set.safetensors"))
    assert type(back) is PixelSet and back.classes == syn.classes and back.shape == syn.shape and back.budget == syn.budget
    assert torch.equal(back.images, syn.images) and torch.equal(back.labels, syn.labels) and back.alpha == syn.alpha
    assert torch.equal(back.preprocess(toy.test.images), preprocess(toy.test.images))
    assert torch.allclose(back.pixels()[0], syn.pixels()[0])
    assert back.meta["seed"] == 3 and back.meta["config"] == {"ipc": 1} and {"commit", "torch", "ddlib"} <= back.meta.keys()


def test_reading_never_unpickles(syn, tmp_path):
    torch.save({"images": syn.images}, tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        distilled.load(tmp_path / "pickle.safetensors")


def test_an_unknown_kind_asks_for_an_update(syn, tmp_path):
    header = {"classes": list(syn.classes), "preprocess": syn.preprocess.state()[1], "meta": {}}
    files.write_tensors(tmp_path / "set.safetensors", "distilled/hologram", header, syn.tensors())
    with pytest.raises(ValueError, match="'hologram'.*update ddlib"):
        distilled.load(tmp_path / "set.safetensors")


def test_a_set_without_its_parts_is_incomplete(tmp_path):
    files.write_tensors(tmp_path / "set.safetensors", "distilled/pixels", {"classes": ["a"]}, {})
    with pytest.raises(ValueError, match="incomplete"):
        distilled.load(tmp_path / "set.safetensors")


def test_pixels_are_what_was_photographed(toy, syn):
    images, labels = syn.pixels()
    assert torch.allclose(images, toy.train.images[syn.meta["indices"]] / 255, atol=1e-6)
    assert torch.equal(labels, syn.labels)


def test_as_dataset_feeds_a_data_loader(syn):
    images, labels = next(iter(torch.utils.data.DataLoader(syn.as_dataset(), batch_size=5)))
    assert images.shape == (5, *syn.shape) and images.min() >= 0 and images.max() <= 1 and labels.dtype == torch.int64


def test_to_folder_writes_one_png_an_image(toy, syn, tmp_path):
    syn.classes = ("a/b", "c d", "..", "e")
    folder = syn.to_folder(tmp_path / "pngs")
    written = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert len(written) == len(syn.images) and {path.parts[0] for path in written} == {"000_a-b", "001_c-d", "002_", "003_e"}
    image = torch.from_numpy(np.array(Image.open(folder / "001_c-d" / "0002.png")))
    assert torch.equal(image[None], toy.train.images[syn.meta["indices"][5]])
    with pytest.raises(FileExistsError, match="not empty"):
        syn.to_folder(folder)


def test_show_draws_a_figure(syn):
    assert syn.show().axes


def test_images_and_labels_must_fit(toy):
    with pytest.raises(ValueError, match="images must be"):
        PixelSet(torch.zeros(3, 1, 4, 4), torch.zeros(2), classes=("a",), preprocess=toy.preprocess)


def test_state_is_restored_in_place(syn, tmp_path):
    state = {name: tensor.clone() for name, tensor in syn.state_dict().items()}
    images = syn.images
    syn.images.zero_()
    syn.load_state_dict(state)
    assert syn.images is images and torch.equal(images, state["images"])
    assert json.dumps(syn.meta)
