"""A distilled set can be used alone: drawn from, looked at, saved, moved and read back."""

import json

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ddlib import data, distilled, evaluate, files, gan
from ddlib.distilled import DistilledSet, FactoredSet, GeneratorSet, PixelSet

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
        pytest.fail("this set is never read back")


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


def factored(toy, num_decoders=3, ipc=2, dtype=torch.float64, num_codes=0):
    syn = FactoredSet.from_noise(toy, ipc, num_decoders, rng(1), num_codes, method="KFS")
    decoders = {name: tensor.to(dtype) for name, tensor in syn.decoders.items()}
    return FactoredSet(syn.codes.to(dtype), decoders, ipc=ipc, shape=syn.shape, classes=syn.classes, preprocess=syn.preprocess)


@pytest.mark.parametrize(("shape", "code", "scalars", "size"), [
    ((1, 28, 28), (2, 7, 7), 98, 295), ((3, 32, 32), (12, 4, 4), 192, 2255), ((3, 64, 64), (12, 8, 8), 768, 2255),
    ((1, 16, 16), (2, 4, 4), 32, 295), ((1, 112, 112), (2, 28, 28), 1568, 295), ((3, 28, 28), (12, 4, 4), 192, 2255)])
def test_codes_and_decoders_have_their_stated_sizes(toy, shape, code, scalars, size):
    assert distilled.code_shape(shape) == code
    blank = data.Split(torch.zeros(4, *shape, dtype=torch.uint8), torch.arange(4))
    real = data.ImageSet(name="blank", classes=toy.classes, train=blank, validation=blank, test=blank, preprocess=data.Preprocess.none(),
                         has_orientation=True)
    syn = FactoredSet.from_noise(real, ipc=8, num_decoders=2, rng=rng())
    assert syn.codes[0, 0].numel() == scalars and syn.budget == syn.codes.numel() + 2 * size
    images, _ = syn.all()
    assert images.shape[1:] == shape
    by_decoder = images.unflatten(0, (-1, 2)).std(dim=(0, 2, 3, 4))
    assert by_decoder.min() > 0.8 and by_decoder.max() < 1.25


@pytest.mark.parametrize(("ipc", "shape", "num_classes", "num_decoders", "num_codes"), [
    (1, (3, 32, 32), 10, 4, 11), (10, (3, 32, 32), 10, 4, 155), (10, (3, 32, 32), 10, 8, 150), (50, (3, 32, 32), 10, 4, 795),
    (1, (3, 32, 32), 100, 8, 15), (1, (3, 32, 32), 100, 16, 14), (10, (3, 32, 32), 100, 4, 159), (1, (3, 64, 64), 200, 16, 15),
    (1, (1, 28, 28), 10, 2, 7), (1, (1, 28, 28), 10, 4, 6), (10, (1, 28, 28), 10, 4, 78)])
def test_a_budget_buys_the_stated_number_of_codes(ipc, shape, num_classes, num_decoders, num_codes):
    assert distilled.fit_budget(ipc, shape, num_classes, num_decoders) == num_codes


def test_the_budget_is_used_up_to_the_last_code_and_not_passed(toy):
    syn = factored(toy, num_decoders=2, ipc=3)
    assert syn.budget <= 3 * toy.num_classes * 256 < syn.budget + toy.num_classes * 32
    assert syn.ipc == 3 and syn.budget / (toy.num_classes * 256) < 3
    more = torch.randn(4, syn.num_codes + 1, 2, 4, 4)
    facts = {"shape": syn.shape, "classes": syn.classes, "preprocess": syn.preprocess}
    with pytest.raises(ValueError, match=f"{syn.num_codes} codes per class would fit"):
        FactoredSet(more, syn.decoders, ipc=3, **facts)
    with pytest.raises(ValueError, match="4x16x16 images, not 1x16x16"):
        FactoredSet(torch.randn(4, 1, 4, 16, 16), {}, ipc=3, **facts)
    with pytest.raises(ValueError, match="choose from 1 to 3"):
        distilled.fit_budget(1, toy.shape, 4, num_decoders=4)
    assert distilled.fit_budget(1, toy.shape, 4, num_decoders=3) == 1


def test_each_code_meets_each_decoder_once_class_by_class(toy):                         # T-KFS-2
    syn = factored(toy)
    images, labels = syn.all()
    assert len(images) == 4 * syn.num_codes * 3 and labels.argmax(1).tolist() == [c for c in range(4) for _ in range(syn.num_codes * 3)]
    number = 0
    for of_class in syn.codes:
        for code in of_class:
            for decoder in range(3):
                x = code[None]
                for stage in range(2):
                    weight, bias = syn.decoders[f"weight{stage}"][decoder], syn.decoders[f"bias{stage}"][decoder]
                    x = F.conv_transpose2d(x.relu() if stage else x, weight, bias, stride=2, padding=1)
                torch.testing.assert_close(images[number], x[0])
                number += 1


def test_codes_that_are_images_need_no_decoder(toy):                                    # T-KFS-3
    syn = PixelSet.from_real(toy, 3, rng())
    codes = syn.images.unflatten(0, (4, 3))
    same = FactoredSet(codes, {}, ipc=3, shape=toy.shape, classes=toy.classes, preprocess=toy.preprocess)
    assert torch.equal(same.all()[0], syn.images) and torch.equal(same.all()[1], syn.all()[1]) and same.budget == syn.budget
    (group,) = same.param_groups(0.5, 0.1)
    assert group["params"] == [same.codes] and group["lr"] == 0.5


def test_draw_decodes_what_it_draws_and_nothing_else(toy, monkeypatch):
    syn = factored(toy)
    images, labels = syn.all()
    shapes, convolve = [], F.conv_transpose2d
    monkeypatch.setattr(F, "conv_transpose2d", lambda x, *rest, **options: shapes.append(len(x)) or convolve(x, *rest, **options))
    some, some_labels = syn.draw(5, rng(2))
    assert sum(shapes) == 2 * 5                                                         # two stages
    times = []
    for image, label in zip(some, some_labels, strict=True):
        (found,) = (images == image).flatten(1).all(1).nonzero()[0]
        assert torch.equal(labels[found], label)
        times.append(int(found))
    assert len(set(times)) == 5
    every, _ = syn.draw(2 * len(images) + 1, rng(3))
    counts = [int((every == image).flatten(1).all(1).sum()) for image in images]
    assert set(counts) == {2, 3} and sum(counts) == len(every)


def test_images_between_code_sizes_are_cut_evenly(toy):
    codes = torch.randn(4, 1, 2, 4, 4, generator=rng())
    decoders = factored(toy, 1, dtype=torch.float32).decoders
    whole, cut = (FactoredSet(codes, decoders, ipc=2, shape=shape, classes=toy.classes, preprocess=toy.preprocess).all()[0]
                  for shape in [(1, 16, 16), (1, 14, 13)])
    assert torch.equal(cut, whole[:, :, 1:15, 1:14])


def test_decoding_has_second_derivatives(toy):
    syn = factored(toy, num_decoders=2, num_codes=1)
    inputs = [tensor.requires_grad_() for tensor in (syn.codes, *syn.decoders.values())]
    names = list(syn.decoders)

    def images(codes, *weights):
        syn.codes, syn.decoders = codes, dict(zip(names, weights, strict=True))
        return syn.decode(torch.tensor([5, 0, 3]))[:, :, ::5, ::5].square()

    assert torch.autograd.gradgradcheck(images, inputs, fast_mode=True, check_fwd_over_rev=False)


def test_a_saved_factored_set_comes_back_whole(toy, tmp_path):
    syn = factored(toy, dtype=torch.float32)
    back = distilled.load(syn.save(tmp_path / "set.safetensors"))
    assert type(back) is FactoredSet and back.ipc == 2 and back.budget == syn.budget and back.shape == syn.shape
    assert torch.equal(back.all()[0], syn.all()[0]) and torch.equal(back.all()[1], syn.all()[1])
    assert back.meta["num_codes"] == syn.num_codes and back.meta["num_decoders"] == 3
    assert syn.show().axes and syn.pixels()[0].min() >= 0
    state = {name: tensor.clone() for name, tensor in syn.state_dict().items()}
    codes = syn.codes
    syn.codes.zero_(), syn.decoders["bias0"].fill_(3)
    syn.load_state_dict(state)
    assert syn.codes is codes and torch.equal(back.all()[0], syn.all()[0])


# ---------------------------------------------------------------------------------------------------------- generators

@pytest.fixture
def made(toy):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = gan.Generator(toy.shape, toy.num_classes, width=4)
    with torch.no_grad():
        for _ in range(30):                                                             # running statistics of its own
            net(gan.condition(torch.arange(16) % 4, 4, net.noise_size, rng()))
        net.layers[-2].weight.mul_(5)                                                   # an untrained one makes hardly any contrast
    return GeneratorSet(net, images_per_class=3, classes=toy.classes, preprocess=toy.preprocess, meta={"method": "CGAN"})


def test_a_generator_makes_its_images_class_by_class_from_the_stream(made):
    images, labels = made.all(rng(1))
    assert images.shape == (12, *made.shape) and labels.argmax(1).tolist() == [label for label in range(4) for _ in range(3)]
    assert torch.equal(images, made.all(rng(1))[0]) and not torch.equal(images, made.all(rng(2))[0])
    assert len(images.unique(dim=0)) == 12


def test_a_generator_answers_for_any_number_of_images_at_the_same_budget(made):
    assert [made.at(ipc).all(rng())[0].shape[0] for ipc in (1, 10, 50)] == [4, 40, 200]
    assert [made.at(ipc).ipc for ipc in (1, 10)] == [1, 10] and made.ipc == 3
    assert made.at(50).budget == made.budget and made.at(50).meta == made.meta
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="images_per_class must be a whole number"):
            made.at(wrong)


def test_the_budget_of_a_generator_is_its_weights_and_running_statistics(made):
    parameters = sum(weight.numel() for weight in made.net.parameters())
    statistics = 2 * (4 * 2 * 2 + 7 * 4)                                                # mean and variance of eight batch norms
    assert made.budget == parameters + statistics


def test_a_generator_draws_balanced_labels_in_random_order(made):
    images, labels = made.draw(30, rng())
    assert images.shape == (30, *made.shape) and sorted(labels.sum(0).tolist()) == [7, 7, 8, 8]
    assert labels.argmax(1).tolist() != sorted(labels.argmax(1).tolist())
    assert not torch.equal(images, made.draw(30, rng(1))[0])
    fewer = torch.stack([made.draw(2, rng(seed))[1].sum(0) for seed in range(40)])      # fewer images than classes: none is left out
    assert fewer.max() == 1 and fewer.sum(0).min() > 5


def test_images_are_asked_for_by_label(made):
    """The label's place in the noise decides: another label changes the image although the noise is the same."""
    first, second = (made.sample(torch.full((2,), label), rng()) for label in (0, 1))
    assert not torch.equal(first, second)
    z = gan.condition(torch.tensor([2, 0]), 4, 100, rng(5))
    made.net.eval()
    assert torch.equal(made.sample(torch.tensor([2, 0]), rng(5)), made.net(z))


def test_samples_do_not_depend_on_chunks_and_leave_the_network_as_it_was(made, monkeypatch):
    made.net.train()
    before = {name: tensor.clone() for name, tensor in made.net.state_dict().items()}
    images = made.at(5).all(rng())[0]
    monkeypatch.setattr(GeneratorSet, "chunk", 3)
    torch.testing.assert_close(made.at(5).all(rng())[0], images)
    assert made.net.training and not images.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.net.state_dict().items())


def test_generated_images_reach_networks_through_the_preprocessing(toy, made):
    sample = made.sample(torch.arange(4).repeat_interleave(3), rng(3))
    assert sample.min() < 0
    torch.testing.assert_close(made.all(rng(3))[0], toy.preprocess((sample + 1) / 2))
    torch.testing.assert_close(made.pixels(rng(3))[0], (sample + 1) / 2)


def test_a_saved_generator_comes_back_whole(made, tmp_path):
    again = distilled.load(made.save(tmp_path / "set.safetensors"))
    assert isinstance(again, GeneratorSet) and again.ipc == 3 and again.budget == made.budget and again.meta["method"] == "CGAN"
    assert all(torch.equal(tensor, again.net.state_dict()[name]) for name, tensor in made.net.state_dict().items())
    for one, other in zip((*made.all(rng(4)), *made.draw(5, rng(4))), (*again.all(rng(4)), *again.draw(5, rng(4))), strict=True):
        assert torch.equal(one, other)


def test_a_generator_is_looked_at_and_exported_like_any_set(made, tmp_path):
    assert len(made.as_dataset()) == 12
    assert len(list(made.to_folder(tmp_path / "images").glob("*/*.png"))) == 12
    assert made.show() is not None


def test_a_generator_is_restored_in_place(made):
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    images = made.all(rng())[0]
    with torch.no_grad():
        next(made.net.parameters()).add_(1)
    assert not torch.equal(made.all(rng())[0], images)
    made.load_state_dict(state)
    assert torch.equal(made.all(rng())[0], images)


def test_a_generator_file_without_a_weight_is_incomplete(made, tmp_path):
    whole = GeneratorSet.tensors
    made.tensors = lambda: {name: tensor for name, tensor in whole(made).items() if name != "net.start.0.bias"}
    with pytest.raises(ValueError, match="is incomplete"):
        distilled.load(made.save(tmp_path / "set.safetensors"))


def test_a_generator_of_other_classes_is_refused(toy, made):
    with pytest.raises(ValueError, match="made for 4 classes and 3 names"):
        GeneratorSet(made.net, images_per_class=1, classes=toy.classes[:3], preprocess=toy.preprocess)


def test_a_copy_on_another_device_leaves_the_original(made):
    there = made.to("meta")
    assert there.device.type == "meta" and made.device.type == "cpu" and there.ipc == made.ipc
    assert {tensor.device.type for tensor in there.preprocess.state()[0].values()} == {"meta"}
    assert made.to("cpu").net is made.net


def test_a_generator_that_is_read_leaves_the_global_stream_alone(made):
    before, tensors = torch.get_rng_state(), made.tensors()
    GeneratorSet.from_tensors(tensors, classes=made.classes, preprocess=made.preprocess, meta=made.meta)
    assert torch.equal(torch.get_rng_state(), before)
