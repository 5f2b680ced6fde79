"""Image sets, their validation split, preprocessing with both whitenings, and the readers with everything that can go wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import types
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from make_fashion_mini import arrays as fashion_mini_arrays
from PIL import Image

from ddlib import data
from ddlib.data import ImageSet, Preprocess, check_ipc, load


@pytest.fixture(scope="module")
def toy() -> ImageSet:
    return load("toy")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(2500, 1, 4, 4) uint8 with correlated pixels; more than one chunk of every sum."""
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(2500, 16, generator=rng) @ torch.randn(16, 16, generator=rng) * 12 + 120
    return mixed.clamp(0, 255).round().to(torch.uint8).reshape(-1, 1, 4, 4)


def pixels64(images: torch.Tensor) -> torch.Tensor:
    return images.double() / 255


def custom(counts: tuple[int, ...] = (20, 20), channels: int = 1, **options) -> ImageSet:
    """A set with `counts` training images per class, every image different."""
    labels = np.repeat(np.arange(len(counts)), counts)
    x = np.random.default_rng(0).integers(0, 256, (len(labels), channels, 4, 4), dtype=np.uint8)
    return ImageSet.from_arrays(x, labels, x[:: max(1, min(counts))], labels[:: max(1, min(counts))], **options)


# ------------------------------------------------------------------------------------------------------------ preprocessing

def test_zca_a_whitens_the_training_covariance_to_lambda_over_lambda_plus_eps(images):
    """T-ZCA-1."""
    before = torch.linalg.eigvalsh(torch.cov(pixels64(images).flatten(1).T))
    whitened = Preprocess.fit(images, "zca_a", zca_eps=0.1, dtype=torch.float64)(images)
    after = torch.linalg.eigvalsh(torch.cov(whitened.flatten(1).T))
    torch.testing.assert_close(after, before / (before + 0.1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whitened.mean(dim=0), torch.zeros(1, 4, 4, dtype=torch.float64), rtol=0, atol=1e-10)


def test_zca_b_whitens_the_normalised_second_moment_relative_to_its_mean_eigenvalue(images):
    flat = pixels64(images).flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True)
    before = torch.linalg.eigvalsh(unit.T @ unit / len(unit))
    white = Preprocess.fit(images, "zca_b", zca_eps=0.1, dtype=torch.float64)(images).flatten(1)
    after = torch.linalg.eigvalsh(white.T @ white / len(white))
    torch.testing.assert_close(after, before / (before + 0.1 * before.mean()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "standardize", "zca_a"])
def test_inverse_undoes_the_preprocessing(images, kind):
    """T-ZCA-2."""
    fitted = Preprocess.fit(images, kind, dtype=torch.float64)
    torch.testing.assert_close(fitted.inverse(fitted(images)), pixels64(images), rtol=0, atol=1e-10)


def test_zca_b_inverse_is_exact_given_the_images_own_mean_and_norm(images):
    """T-ZCA-2. Without them the result is the same image up to its own contrast and brightness."""
    fitted = Preprocess.fit(images, "zca_b", dtype=torch.float64)
    mean, norm = data.own_mean_and_norm(pixels64(images))
    torch.testing.assert_close(fitted.inverse(fitted(images), mean, norm), pixels64(images), rtol=0, atol=1e-10)
    typical = fitted.inverse(fitted(images))
    typical_mean, typical_norm = data.own_mean_and_norm(typical)
    torch.testing.assert_close(typical_mean, mean.mean().expand(len(images)))
    torch.testing.assert_close(typical_norm, norm.mean().expand(len(images)))


def test_zca_b_ignores_an_images_contrast_and_brightness(images):
    """T-ZCA-3; zca_a does not."""
    x = pixels64(images[:20])
    for kind, same in (("zca_b", True), ("zca_a", False)):
        fitted = Preprocess.fit(images, kind, dtype=torch.float64)
        assert torch.allclose(fitted(x), fitted(0.3 * x + 0.2), rtol=0, atol=1e-10) is same


@pytest.mark.parametrize("kind", data.KINDS)
def test_transforming_test_images_leaves_the_fitted_state_as_it_was(toy, kind):
    """T-ZCA-4."""
    fitted = Preprocess.fit(toy.train.images, kind)
    before = {name: tensor.clone() for name, tensor in fitted.state()[0].items()}
    fitted.inverse(fitted(toy.test.images))
    after = fitted.state()[0]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", data.KINDS)
def test_preprocessing_is_fitted_to_the_training_split_alone(kind):
    x, y = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8), np.arange(40) % 2
    one, other = (ImageSet.from_arrays(x, y, test, y[:10], preprocess=kind) for test in (x[:10], 255 - x[:10]))
    alone = Preprocess.fit(one.train.images, kind)
    for fitted in (one.preprocess, other.preprocess):
        assert all(torch.equal(fitted.state()[0][name], tensor) for name, tensor in alone.state()[0].items())


def test_standardize_gives_every_channel_mean_zero_and_deviation_one():
    real = custom((600, 700), channels=3)
    x = Preprocess.fit(real.train.images, "standardize", dtype=torch.float64)(real.train.images)
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(x.std(dim=(0, 2, 3), unbiased=False), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", data.KINDS)
def test_a_constant_image_or_channel_stays_finite(kind):
    fitted = Preprocess.fit(torch.full((5, 1, 4, 4), 7, dtype=torch.uint8), kind)
    assert fitted(torch.zeros(2, 1, 4, 4)).isfinite().all()


@pytest.mark.parametrize("kind", data.KINDS)
def test_uint8_and_floats_in_0_1_are_the_same_images(toy, kind):
    fitted = Preprocess.fit(toy.train.images, kind)
    x = fitted(toy.test.images)
    assert x.dtype == torch.float32 and x.shape == toy.test.images.shape
    torch.testing.assert_close(fitted(toy.test.images.float() / 255), x)


@pytest.mark.parametrize("kind", data.KINDS)
def test_a_stored_preprocessing_is_the_same_preprocessing(toy, kind):
    fitted = Preprocess.fit(toy.train.images, kind, zca_eps=0.2)
    again = Preprocess.from_state(*fitted.state())
    assert (again.kind, again.zca_eps) == (kind, fitted.zca_eps) and (fitted.zca_eps == 0.2 or kind in ("none", "standardize"))
    assert torch.equal(again(toy.test.images), fitted(toy.test.images))


def test_a_preprocessing_passes_gradients_on(toy):
    x = pixels64(toy.test.images[:2]).requires_grad_()
    for kind in data.KINDS:
        fitted = Preprocess.fit(toy.train.images, kind, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x, fitted=fitted: fitted.inverse(fitted(x)).sum(dim=(1, 2, 3)), (x,))


def test_preprocessing_says_what_it_cannot_do(toy):
    with pytest.raises(ValueError, match=r"unknown preprocessing 'zca'; choose from none, standardize"):
        Preprocess.fit(toy.train.images, "zca")
    with pytest.raises(ValueError, match="positive zca_eps"):
        Preprocess.fit(toy.train.images, "zca_a", zca_eps=0)
    with pytest.raises(ValueError, match="fitted to 1 channels"):
        toy.preprocess(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="fitted to 256 pixels"):
        Preprocess.fit(toy.train.images, "zca_b").inverse(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="matrix"):
        Preprocess.from_state(toy.preprocess.state()[0], {"kind": "zca_a"})
    with pytest.raises(ValueError, match="kind None"):
        Preprocess.from_state({}, {})


# ------------------------------------------------------------------------------------------------------------- image sets

def test_validation_is_a_tenth_of_every_class_and_shares_no_image_with_train():
    counts = (50, 24, 10, 3, 2, 1)
    real = custom(counts)
    held_out = [len(real.validation.of_class(label)) for label in range(6)]
    assert held_out == [5, 2, 1, 1, 1, 0]
    assert [len(real.train.of_class(label)) for label in range(6)] == [n - v for n, v in zip(counts, held_out, strict=True)]
    train, validation = ({image.numpy().tobytes() for image in split.images} for split in (real.train, real.validation))
    assert not train & validation and len(train | validation) == sum(counts)


def test_the_split_and_the_toys_are_the_same_for_everybody(toy):
    assert data._validation_mask(torch.arange(40) % 2).nonzero().flatten().tolist() == SPLIT_OF_40
    assert toy.fingerprint == load("toy").fingerprint == TOY_FINGERPRINT


SPLIT_OF_40 = [2, 3, 23, 36]
TOY_FINGERPRINT = "820b72be8ab2209b"


def test_toy_has_four_separable_but_noisy_classes(toy):
    assert (toy.shape, toy.num_classes, len(toy.train) + len(toy.validation), len(toy.test)) == ((1, 16, 16), 4, 240, 80)
    assert [len(toy.test.of_class(label)) for label in range(4)] == [20] * 4
    train, test = (toy.preprocess(split.images).flatten(1) for split in (toy.train, toy.test))
    means = torch.stack([train[toy.train.of_class(label)].mean(dim=0) for label in range(4)])
    singles = torch.stack([train[toy.train.of_class(label)[0]] for label in range(4)])
    accuracy = [(torch.cdist(test, centres).argmin(dim=1) == toy.test.labels).float().mean() for centres in (means, singles)]
    assert accuracy[0] > 0.85 and accuracy[1] < accuracy[0] - 0.1


def test_draw_gives_different_images_of_the_class_and_follows_its_generator(toy):
    drawn = [toy.draw(2, 54, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    of_class = {image.numpy().tobytes() for image in toy.train.images[toy.train.labels == 2]}
    assert {image.numpy().tobytes() for image in drawn[0]} == of_class and len(of_class) == 54
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].dtype == torch.uint8
    with pytest.raises(ValueError, match="55 images asked of class 2, which has 54"):
        toy.draw(2, 55, torch.Generator())
    with pytest.raises(ValueError, match="class 4, which has 0"):
        toy.draw(4, 1, torch.Generator())


def test_of_class_lists_the_indices_in_order():
    split = data.Split(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 2, 2, 0, 3]))
    assert [split.of_class(label).tolist() for label in (-1, 0, 1, 2, 3, 4)] == [[], [1, 4], [], [0, 2, 3], [5], []]


def test_fingerprint_follows_every_label_and_pixel(toy):
    images, labels = toy.train.images.clone(), toy.train.labels.clone()
    images[3, 0, 5, 5] ^= 1
    labels[:2] = labels[:2].flip(0)
    others = [data.replace(toy, train=data.Split(images, toy.train.labels)), data.replace(toy, train=data.Split(toy.train.images, labels)),
              data.replace(toy, validation=toy.train), data.replace(toy, classes=("a", "b", "c", "d"))]
    assert len({real.fingerprint for real in [toy, *others]}) == 5
    assert data.replace(toy, test=toy.train).fingerprint == toy.fingerprint    # test images are read by an evaluation alone
    assert toy.to("cpu").fingerprint == toy.fingerprint


def test_images_stay_uint8_and_arrays_are_copied():
    x, y = np.full((6, 4, 4), 9, dtype=np.uint8), np.arange(6) % 2
    real = ImageSet.from_arrays(x, y, x, y, ["a", "b"], "mine")
    x[:] = 0
    for split in (real.train, real.validation, real.test, real.to("cpu").train):
        assert split.images.dtype == torch.uint8 and (split.images == 9).all() and split.labels.dtype == torch.int64
    assert (real.name, real.classes, real.shape, real.num_classes) == ("mine", ("a", "b"), (1, 4, 4), 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_tensors_in_either_layout_give_one_set(channels):
    x, y = torch.randint(0, 256, (8, channels, 4, 5), dtype=torch.uint8), torch.arange(8) % 2
    last = x.permute(0, 2, 3, 1)
    sets = [ImageSet.from_arrays(a, b, a, b) for a, b in ((x, y), (last, y.int()), (last.numpy(), y.tolist()))]
    assert sets[0].shape == (channels, 4, 5) and len({real.fingerprint for real in sets}) == 1


def test_from_arrays_says_what_does_not_fit():
    x, y = np.zeros((4, 4, 4), dtype=np.uint8), np.array([0, 1, 0, 1])
    wide = np.zeros((4, 3, 5, 3), dtype=np.uint8)
    for arguments, options, message in (
        ((x / 255, y, x, y), {}, "x_train is torch.float64 and must be uint8"),
        ((x, y, x[:, :3], y), {}, r"training images are \(1, 4, 4\) and test images \(1, 3, 4\)"),
        ((x, y[:3], x, y), {}, "x_train holds 4 images and y_train 3 labels"),
        ((x, y, x[:0], y[:0]), {}, "x_test holds 0 images"),
        ((x, y / 2, x, y), {}, "y_train must be one integer per image"),
        ((x, y, x, y + 1), {"classes": ["a", "b"]}, "labels must run from 0 to 1 for 2 classes; found 0 to 2"),
        ((x, y - 1, x, y), {}, "found -1 to 1"),
        ((x, y * 2, x, y), {}, "class '1' has no training image"),
        ((wide, y, wide, y), {}, "can be read two ways: say layout="),
        ((wide, y, wide, y), {"layout": "CHW"}, "unknown layout 'CHW'"),
        ((x[None], y, x, y), {"layout": "NHWC"}, r"images must be \(N, h, w\)"),
        ((np.zeros((4, 2, 4, 4), np.uint8), y, x, y), {}, "with 1 or 3 channels"),
        ((x, y, x, y), {"preprocess": "zca"}, "unknown preprocessing 'zca'"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageSet.from_arrays(*arguments, **options)
    assert ImageSet.from_arrays(wide, y, wide, y, layout="NHWC").shape == (3, 3, 5)


@pytest.mark.parametrize("ipc", [0, -1, 1.0, 0.5, True, "1", None, float("nan")])
def test_ipc_must_be_a_whole_number_of_at_least_one(toy, ipc):
    with pytest.raises(ValueError, match="ipc must be a whole number of at least 1, got"):
        check_ipc(toy, ipc)


def test_ipc_is_at_most_the_smallest_class():
    real = custom((30, 10, 40), classes=["a", "b", "c"])
    assert check_ipc(real, 9) == 9 and type(check_ipc(real, np.int64(3))) is int
    with pytest.raises(ValueError, match="ipc 10 is more than the 9 training images of class 'b' of custom: choose at most 9"):
        check_ipc(real, 10)


# ----------------------------------------------------------------------------------------------------------------- folders

def write_image(path: Path, height: int, width: int, mode: str = "RGB", seed: int = 0) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def write_folder(path: Path, height: int = 6, width: int = 5, mode: str = "RGB") -> Path:
    """Two classes of four different random images in either part."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (path / part / name).mkdir(parents=True)
            for index in range(4):
                write_image(path / part / name / f"{index}.png", height, width, mode, seed=index)
    return path


def test_a_folder_of_images_is_read_losslessly_in_class_order(tmp_path):
    real = ImageSet.from_folder(write_folder(tmp_path / "pets"))
    assert (real.name, real.classes, real.shape) == ("pets", ("cat", "dog"), (3, 6, 5))
    assert (len(real.train), len(real.validation), len(real.test)) == (6, 2, 8) and real.test.labels.tolist() == [0] * 4 + [1] * 4
    third = np.array(Image.open(tmp_path / "pets/test/cat/2.png"))                      # (6, 5, 3)
    assert np.array_equal(real.test.images[2].permute(1, 2, 0).numpy(), third)


def test_a_folder_is_resized_and_converted_only_when_asked(tmp_path):
    write_folder(tmp_path)
    real = ImageSet.from_folder(tmp_path, size=(4, 4), mode="L")
    assert real.shape == (1, 4, 4) and real.train.images.dtype == torch.uint8
    with pytest.raises(ValueError, match="unknown mode 'grey'"):
        ImageSet.from_folder(tmp_path, mode="grey")


def test_a_folder_error_names_the_file_that_does_not_fit(tmp_path):
    write_folder(tmp_path)
    odd = tmp_path / "train" / "dog" / "7.png"
    for width, mode in ((6, "RGB"), (5, "L"), (5, "RGBA"), (5, "P")):
        write_image(odd, 6, width, mode)
        with pytest.raises(ValueError, match=f"{odd} is 6x{width} {mode} where 6x5 RGB is wanted: convert it, or give size="):
            ImageSet.from_folder(tmp_path)
    write_image(odd, 6, 5)
    for broken in (odd.read_bytes()[:40], b"no image", b""):
        odd.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{odd} is no readable PNG or JPEG"):
            ImageSet.from_folder(tmp_path)
    odd.unlink()
    ImageSet.from_folder(tmp_path)
    write_folder(tmp_path / "clear", mode="RGBA")
    with pytest.raises(ValueError, match="cat/0.png is 6x5 RGBA where mode L or RGB is wanted"):
        ImageSet.from_folder(tmp_path / "clear")


def test_missing_empty_or_unequal_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"folder {tmp_path}/none/train is missing: place images as"):
        ImageSet.from_folder(tmp_path / "none")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="bare/train has no class folders"):
        ImageSet.from_folder(tmp_path / "bare")
    write_folder(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match="have different class folders"):
        ImageSet.from_folder(tmp_path / "pets")
    (tmp_path / "pets" / "test" / "cow").mkdir()
    with pytest.raises(ValueError, match="train/cow holds no .png or .jpg image"):
        ImageSet.from_folder(tmp_path / "pets")


@pytest.mark.parametrize(("name", "shape", "archive"), [
    ("tiny_imagenet", (3, 64, 64), "tiny-imagenet-200.zip from the CS231n course page"),
    ("cub200", (3, 32, 32), "CUB_200_2011.tgz"),
    ("covid_cxr", (1, 112, 112), "COVID-19 Radiography Database"),
])
def test_placed_sets_take_their_shape_and_say_where_they_come_from(tmp_path, name, shape, archive):
    with pytest.raises(FileNotFoundError, match=archive) as error:
        load(name, tmp_path)
    assert f"{tmp_path / name}/train/CLASS/*.png" in str(error.value)
    write_folder(tmp_path / name, 40, 70, "L")
    write_image(tmp_path / name / "train" / "cat" / "colour.JPEG", 50, 50)
    real = load(name, tmp_path)
    assert (real.name, real.shape, real.has_orientation) == (name, shape, False)


# ----------------------------------------------------------------------------------------------------------------- readers

def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown dataset 'cifar'; choose from cifar10, cifar100"):
        load("cifar")


def test_the_root_comes_from_the_argument_then_the_environment_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DDLIB_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_folder("here") == Path("here") and data.data_folder() == tmp_path / "env"
    monkeypatch.delenv("DDLIB_DATA")
    assert data.data_folder() == tmp_path / "cache" / "ddlib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.data_folder() == Path.home() / ".cache" / "ddlib"


def test_fashion_mini_is_whole_small_and_licensed():
    stored = data.ASSETS / "fashion_mini.npz"
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == data.FASHION_MINI_SHA256 and stored.stat().st_size <= 3e6
    assert "MIT License" in (data.ASSETS / "fashion_mini.LICENSE.txt").read_text()
    real = load("fashion_mini")
    assert (real.shape, real.classes[0], real.has_orientation) == ((1, 28, 28), "T-shirt/top", False)
    for split, per_class in ((real.train, 450), (real.validation, 50), (real.test, 100)):
        assert split.labels.bincount().tolist() == [per_class] * 10
    assert real.fingerprint == "fe058f8d94e507b2"
    assert real.preprocess.mean.tolist() == pytest.approx([0.2861]) and real.preprocess.std.tolist() == pytest.approx([0.3530])


def test_a_damaged_fashion_mini_is_refused(monkeypatch, tmp_path):
    whole = (data.ASSETS / "fashion_mini.npz").read_bytes()
    monkeypatch.setattr(data, "ASSETS", tmp_path)
    for content in (None, whole[:-10], whole[:5000] + b"\0" + whole[5001:]):
        if content is not None:
            (tmp_path / "fashion_mini.npz").write_bytes(content)
        with pytest.raises(ValueError, match="fashion_mini.npz is missing or damaged"):
            load("fashion_mini")


def test_load_fits_the_kind_that_is_asked_for():
    assert load("toy").preprocess.kind == "standardize" and load("toy", preprocess="none").preprocess.kind == "none"
    fitted = load("toy", preprocess="zca_b").preprocess
    assert fitted.kind == "zca_b" and load("toy", preprocess=fitted).preprocess is fitted
    with pytest.raises(ValueError, match="unknown preprocessing 'zca'"):
        load("fashion_mini", preprocess="zca")


class TinyCifar:
    """Stands in for torchvision's CIFAR10: two arrays and a list of names, 'downloaded' by writing them."""

    base_folder = "tiny"
    contents = {"train": bytes(range(200)) * 2, "test": bytes(range(100, 200)), "meta": b"a b"}
    train_list = [["train", hashlib.md5(contents["train"]).hexdigest()]]
    test_list = [["test", hashlib.md5(contents["test"]).hexdigest()]]
    meta = {"filename": "meta", "md5": hashlib.md5(contents["meta"]).hexdigest()}
    downloads = 0
    failure: BaseException | None = None      # raised in the middle of the second file
    arriving = contents

    def __init__(self, root, train, download=False):
        folder = Path(root) / self.base_folder
        if download:
            type(self).downloads += 1
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self.arriving.items():
                half = name == "test" and self.failure is not None
                (folder / name).write_bytes(content[:50] if half else content)
                if half:
                    raise self.failure
        pixels = (folder / ("train" if train else "test")).read_bytes()
        self.data = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 5, 5)
        self.targets = [index % 2 for index in range(len(self.data))]
        self.classes = (folder / "meta").read_text().split()


@pytest.fixture
def tiny(monkeypatch):
    reader = type("TinyCifar", (TinyCifar,), {})
    monkeypatch.setitem(data.TORCHVISION, "cifar10", reader)
    monkeypatch.setitem(data.CONSTANTS, "cifar10", ((0.5,), (0.5,)))
    return reader


def test_a_download_happens_once_and_leaves_only_the_data(tiny, tmp_path):
    first = load("cifar10", tmp_path / "new")
    assert tiny.downloads > 0 and [entry.name for entry in (tmp_path / "new").iterdir()] == ["tiny"]
    tiny.downloads = 0
    assert load("cifar10", tmp_path / "new").fingerprint == first.fingerprint and tiny.downloads == 0
    (tmp_path / "new" / "tiny" / "test").unlink()
    assert load("cifar10", tmp_path / "new").fingerprint == first.fingerprint and tiny.downloads > 0


@pytest.mark.parametrize("failure", [URLError("no route"), OSError("disk full"), RuntimeError("corrupted"), KeyboardInterrupt()])
def test_a_download_that_breaks_off_leaves_nothing_behind(tiny, tmp_path, failure):
    tiny.failure = failure
    socket.setdefaulttimeout(None)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else FileNotFoundError) as error:
        load("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == [] and socket.getdefaulttimeout() is None
    if not isinstance(failure, KeyboardInterrupt):
        assert "cifar10 is not complete in" in str(error.value) and "place tiny/train, tiny/test, tiny/meta there" in str(error.value)
    tiny.failure = None
    load("cifar10", tmp_path)


def test_a_download_with_wrong_bytes_is_not_kept(tiny, tmp_path):
    tiny.arriving = {**tiny.contents, "test": bytes(100)}
    with pytest.raises(FileNotFoundError, match="tiny/test arrived with a wrong MD5"):
        load("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_download_left_is_never_read_and_goes_after_a_day(tiny, tmp_path):
    old, recent = tmp_path / ".cifar10-old", tmp_path / ".cifar10-recent"
    for left in (old, recent):
        (left / "tiny").mkdir(parents=True)
        (left / "tiny" / "train").write_bytes(b"half")
    os.utime(old, (0, 0))
    load("cifar10", tmp_path)
    assert not old.exists() and recent.exists()


@pytest.mark.parametrize("content", [b"", TinyCifar.contents["train"][:-1], bytes(400)])
def test_a_truncated_or_altered_file_is_named(tiny, tmp_path, content):
    load("cifar10", tmp_path)
    (tmp_path / "tiny" / "train").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/tiny/train is damaged or truncated .*: delete it and load cifar10 again"):
        load("cifar10", tmp_path)


def test_svhn_needs_scipy_and_keeps_labels_0_to_9(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        load("svhn", tmp_path)
    contents = {"train_32x32.mat": b"train", "test_32x32.mat": b"test"}
    split_list = {name.split("_")[0]: ["", name, hashlib.md5(content).hexdigest()] for name, content in contents.items()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    x, y = np.zeros((32, 32, 3, 20), dtype=np.uint8), np.arange(20)[:, None] % 10 + 1      # MATLAB counts the digit 0 as 10
    scipy, io = types.ModuleType("scipy"), types.ModuleType("scipy.io")
    scipy.io, io.loadmat = io, lambda path: {"X": x, "y": y}
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    monkeypatch.setitem(sys.modules, "scipy.io", io)
    monkeypatch.setattr(data.tv.SVHN, "split_list", split_list)
    real = load("svhn", tmp_path)
    assert real.shape == (3, 32, 32) and real.has_orientation and real.classes == tuple("0123456789")
    assert real.test.labels.tolist() == [*range(1, 10), 0] * 2


def test_published_constants_stand_for_the_known_sets():
    assert data.CONSTANTS["cifar100"] == data.CONSTANTS["cifar10"]
    assert data.CONSTANTS["mnist"] == ((0.1307,), (0.3081,))
    assert data.CONSTANTS["cifar10"] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


# ---------------------------------------------------------------------------------------------------------- full data sets

def full_root(name: str) -> Path:
    """DDLIB_DATA where it holds the files of `name`; otherwise the test is skipped."""
    root = os.environ.get("DDLIB_DATA")
    if not root or not all((Path(root) / file).is_file() for file in data.torchvision_files(name)):
        pytest.skip(f"DDLIB_DATA does not hold {name}: set it to a folder that torchvision's {name} was downloaded to")
    return Path(root)


@pytest.mark.data
@pytest.mark.parametrize(("name", "shape", "train", "test"), [
    ("mnist", (1, 28, 28), 60000, 10000), ("fashion_mnist", (1, 28, 28), 60000, 10000), ("cifar10", (3, 32, 32), 50000, 10000),
])
def test_full_sets_load_without_a_network(monkeypatch, name, shape, train, test):
    root = full_root(name)
    monkeypatch.setattr(socket, "socket", None)
    real = load(name, root)
    assert (real.shape, len(real.train) + len(real.validation), len(real.test)) == (shape, train, test)
    assert real.has_orientation is (name == "mnist") and real.num_classes == 10
    measured = Preprocess.fit(real.train.images).mean
    torch.testing.assert_close(measured, real.preprocess.mean, rtol=0, atol=2e-3)


@pytest.mark.data
def test_a_truncated_mnist_file_is_named(tmp_path):
    root = full_root("mnist")
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for file in data.torchvision_files("mnist"):
        shutil.copy(root / file, tmp_path / file)
    broken = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    os.truncate(broken, 1_000_000)
    with pytest.raises(ValueError, match=f"{broken} is damaged or truncated"):
        load("mnist", tmp_path)


@pytest.mark.data
def test_fashion_mini_is_the_first_images_of_every_class_of_fashion_mnist():
    made = fashion_mini_arrays(full_root("fashion_mnist"))
    with np.load(data.ASSETS / "fashion_mini.npz") as stored:
        assert sorted(stored) == ["test", "train"] and all(np.array_equal(stored[part], made[part]) for part in stored)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", data.KINDS)
def test_a_gpu_sees_the_same_images(toy, kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = data.replace(toy, preprocess=Preprocess.fit(toy.train.images, kind))
    there = here.to("cuda")
    drawn = [real.draw(1, 9, torch.Generator().manual_seed(0)) for real in (here, there)]
    assert drawn[1].is_cuda and torch.equal(drawn[0], drawn[1].cpu()) and there.fingerprint == here.fingerprint
    refitted = Preprocess.fit(there.train.images, kind)
    for fitted in (there.preprocess, here.preprocess, refitted):
        torch.testing.assert_close(fitted(drawn[1]).cpu(), here.preprocess(drawn[0]), rtol=1e-3, atol=1e-3)
