"""Experts: their bits depend on seed, expert and epoch alone, whatever happens on the way; reading maps, checks and never loads it all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional as F

from ddlib import augment, data, experts, files, models, runs, train

TINY = experts.ExpertConfig(dataset="toy", width=4, num_experts=3, epochs=4, batch_size=64, momentum=0.9, lr=0.05)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the subprocesses: the number of threads is part of what decides the bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A buffer made without any disturbance."""
    return experts.train(toy, TINY, tmp_path_factory.mktemp("whole"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"}


def copied(whole, folder):
    shutil.copytree(whole.folder, folder)
    return folder


# ----------------------------------------------------------------------------------------------------------- what is kept

def test_snapshots_have_their_own_storage_and_move(toy, whole, tmp_path):
    """T-BUF-1, in training and on disk."""
    for numbers in ([0, 1], [0]):
        job = experts.Job(toy, TINY, tmp_path, 1.0, len(numbers))
        team = experts.Team(job, [job.resumed(number) for number in numbers])
        for _ in range(2):
            team.train_epoch()
        tensors = [*team.weights, *(theta for expert in team.group for theta in expert.thetas)]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(team.weights) + 3 * len(numbers)
    thetas = team.group[0].thetas
    theta = whole.snapshots(0, 0, 4)                                                     # (5, P)
    assert theta.dtype == torch.float32 and theta.shape == (5, whole.num_params)
    assert torch.equal(torch.stack(thetas), theta[:3])
    assert all(not torch.equal(before, after) for before, after in pairwise(theta))


def test_the_same_seed_gives_the_same_buffer(toy, whole, tmp_path):
    """T-BUF-2."""
    experts.train(toy, TINY, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(whole.folder)
    other = experts.train(toy, replace(TINY, seed=1, num_experts=1), tmp_path / "other")
    starts = [whole.snapshots(expert, 0, 0) for expert in range(3)] + [other.snapshots(0, 0, 0)]
    assert all(not torch.equal(starts[i], starts[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_an_expert_is_sgd_with_momentum_written_out(toy, tmp_path, loss):
    config = replace(TINY, num_experts=1, epochs=2, weight_decay=0.01, loss=loss)
    theta = experts.train(toy, config, tmp_path).snapshots(0, 0, 2)
    net = models.build("convnet3", shape=toy.shape, num_classes=4, width=4)
    weights, velocity = theta[0], torch.zeros_like(theta[0])
    for epoch in range(2):
        order = torch.randperm(len(toy.train), generator=runs.stream(0, "expert", 0, epoch, "order"))
        noise = runs.stream(0, "expert", 0, epoch, "augment")
        for indices in order.split(64):
            images = augment.augment(toy.preprocess(toy.train.images[indices]), augment.DSA, noise)
            at = weights.clone().requires_grad_()
            logits, labels = models.functional(net, at, images), toy.train.labels[indices]
            one_hot = F.one_hot(labels, 4).float()
            value = F.cross_entropy(logits, labels) if loss == "cross_entropy" else -(
                one_hot * F.logsigmoid(logits) + (1 - one_hot) * F.logsigmoid(-logits)).sum() / (4 * len(labels))
            velocity = 0.9 * velocity + torch.autograd.grad(value, at)[0] + 0.01 * weights
            weights = weights - 0.05 * velocity
        assert torch.allclose(weights, theta[epoch + 1], atol=1e-5), (weights - theta[epoch + 1]).abs().max()


def test_experts_learn(toy, tmp_path):
    config = replace(TINY, num_experts=1, epochs=12, augment="none", width=8)
    theta = experts.train(toy, config, tmp_path).snapshots(0, 12, 12)[0]
    net = models.build("convnet3", shape=toy.shape, num_classes=4, width=8)
    net.load_state_dict(models.unflatten(net, theta))
    assert train.accuracy(net, toy.validation, toy.preprocess) > 0.6


def test_whitening_once_is_whitening_every_batch(tmp_path, monkeypatch):
    real = data.load("toy", preprocess="zca_a")
    config = replace(TINY, num_experts=1, epochs=2, preprocess="zca_a")
    once = experts.train(real, config, tmp_path / "once").snapshots(0, 0, 2)
    monkeypatch.setattr(experts, "WHITEN_ONCE", 0)
    assert torch.allclose(experts.train(real, config, tmp_path / "each").snapshots(0, 0, 2), once, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ interruptions

@pytest.mark.parametrize("epochs", [1, 4])
def test_a_buffer_cut_by_time_trains_one_epoch_a_call_and_goes_on_with_the_same_bits(toy, whole, tmp_path, monkeypatch, epochs):
    config, train_epoch, trained = replace(TINY, epochs=epochs), experts.Team.train_epoch, []
    monkeypatch.setattr(experts.Team, "train_epoch", lambda team: trained.append(team.epoch) or train_epoch(team))
    for call in range(1, 3 * epochs):
        with pytest.raises(TimeoutError, match=f"{call // epochs} of 3 experts are trained and the time is up"):
            experts.train(toy, config, tmp_path / "slices", minutes=1e-9)
        assert len(trained) == call, "a call trains one epoch and no more, whichever expert it belongs to"
    experts.train(toy, config, tmp_path / "slices", minutes=1e-9)
    assert trained == [*range(epochs)] * 3
    assert {path.suffix for path in (tmp_path / "slices").glob("expert-*")} == {".safetensors"}
    undisturbed = whole.folder if epochs == 4 else experts.train(toy, config, tmp_path / "whole").folder
    assert contents(tmp_path / "slices") == contents(undisturbed)


def test_a_buffer_stopped_by_an_exception_in_any_step_goes_on_with_the_same_bits(toy, whole, tmp_path, monkeypatch):
    draw, calls = augment.augment, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) % 11 == 10:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(augment, "augment", interrupted)
    monkeypatch.setattr(experts.Job, "announce", lambda *_: None)
    stops = 0
    for _ in range(50):
        try:
            experts.train(toy, TINY, tmp_path)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 3 and contents(tmp_path) == contents(whole.folder)


# An epoch takes at least 50 ms, so that a fast machine does not finish before it is killed or joined.
VICTIM = """
import sys, time
from ddlib import data, experts
epoch = experts.Team.train_epoch
def slow(team):
    print("epoch", *[expert.number for expert in team.group], team.epoch, flush=True)
    time.sleep(0.05)
    epoch(team)
experts.Team.train_epoch, experts.SAVE_SECONDS = slow, 0.0
config = experts.ExpertConfig(dataset="toy", width=4, num_experts=int(sys.argv[2]), epochs=4, batch_size=64, momentum=0.9, lr=0.05)
experts.train(data.load("toy"), config, sys.argv[1])
"""


def victim(folder, count):
    return subprocess.Popen([sys.executable, "-c", VICTIM, str(folder), str(count)], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE)


def test_a_killed_job_goes_on_with_the_same_bits(toy, whole, tmp_path):
    """SIGKILL, at a random moment of an epoch in the middle of an expert."""
    process = victim(tmp_path, 3)
    for line in process.stdout:
        if line == "epoch 1 2\n":
            break
    time.sleep(0.06 * float(torch.rand((), generator=runs.stream(time.time_ns(), "kill"))))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(contents(tmp_path)) == 1
    _, saved = files.read_tensors(tmp_path / "expert-00001.partial", "partial")
    assert len(saved["theta"]) >= 2, "what was trained before the kill is kept"
    experts.train(toy, TINY, tmp_path)
    assert contents(tmp_path) == contents(whole.folder)


def test_two_processes_share_the_work(whole, tmp_path):
    pair = [victim(tmp_path, 6) for _ in range(2)]
    trained = [[line.strip() for line in process.communicate()[0].splitlines() if line.startswith("epoch ")] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted(trained[0] + trained[1]) == [f"epoch {expert} {epoch}" for expert in range(6) for epoch in range(4)], "each once"
    assert all(trained), "both took part"
    found = contents(tmp_path)
    assert len(found) == 6 and contents(whole.folder).items() <= found.items()


def test_an_expert_that_another_process_is_at_is_left_to_it(toy, whole, tmp_path, monkeypatch):
    lock, clock = experts.acquire(tmp_path / "expert-00001.lock"), time.monotonic
    with monkeypatch.context() as patch:                         # an hour of waiting
        patch.setattr(time, "sleep", lambda _: patch.setattr(time, "monotonic", lambda: clock() + 3600))
        with pytest.raises(TimeoutError, match="2 of 3 experts"):
            experts.train(toy, TINY, tmp_path, minutes=60)
    assert sorted(contents(tmp_path)) == ["expert-00000.safetensors", "expert-00002.safetensors"]
    lock.close()                                                  # the other process has died
    experts.train(toy, TINY, tmp_path)
    assert contents(tmp_path) == contents(whole.folder)


def test_a_damaged_beginning_is_named_and_made_again(toy, whole, tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(TimeoutError):
            experts.train(toy, TINY, tmp_path, minutes=1e-9)
    partial = tmp_path / "expert-00000.partial"
    partial.write_bytes(partial.read_bytes()[:-3])
    experts.train(toy, TINY, tmp_path)
    assert "expert-00000.partial is damaged" in capsys.readouterr().out and contents(tmp_path) == contents(whole.folder)


def test_a_diverging_expert_is_an_error_and_no_file(toy, tmp_path):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        experts.train(toy, replace(TINY, lr=1e30), tmp_path)
    assert not contents(tmp_path)


# ------------------------------------------------------------------------------------------------------------------- files

def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def swap(path):
    path.write_bytes(path.with_name("expert-00000.safetensors").read_bytes())


def junk(path):
    files.write_tensors(path, "network", {}, {"theta": torch.zeros(5, 3)})


@pytest.mark.parametrize(("damage", "message"), [(cut, "damaged"), (swap, "another expert"), (junk, "holds 'network'")])
def test_a_wrong_header_or_size_is_named_and_made_again_at_the_start(toy, whole, tmp_path, capsys, damage, message):
    folder = copied(whole, tmp_path / "buffer")
    damage(folder / "expert-00001.safetensors")
    with pytest.raises(ValueError, match=f"expert-00001.safetensors.*{message}.*; calling `ddlib.experts.train` makes it again"):
        experts.open_buffer(folder)
    capsys.readouterr()
    experts.train(toy, TINY, folder)
    printed = capsys.readouterr().out
    assert printed.count("expert-00001.safetensors") == 1 and message in printed and "1 of 3 to train" in printed
    assert contents(folder) == contents(whole.folder)


def test_a_flipped_byte_is_found_in_reading_and_the_file_made_again(toy, whole, tmp_path, capsys):
    folder = copied(whole, tmp_path / "buffer")
    path, sound = folder / "expert-00001.safetensors", (folder / "expert-00001.safetensors").read_bytes()
    flip(path)
    capsys.readouterr()
    buffer = experts.train(toy, TINY, folder)
    assert capsys.readouterr().out == "", "a start looks at headers and sizes"
    assert torch.equal(buffer.snapshots(0, 0, 4), whole.snapshots(0, 0, 4)), "the other experts are good"
    with pytest.raises(ValueError, match="its checksum differs") as found:
        buffer.snapshots(1, 0, 0)
    assert str(found.value) == (f"{path} was altered after it was saved (its checksum differs): restore it or make it again; "
                                "calling `ddlib.experts.train` makes it again (it is expert-00001.damaged now)")
    with pytest.raises(FileNotFoundError, match="expert-00001.safetensors is missing; calling `ddlib.experts.train` makes it again"):
        buffer.snapshots(1, 0, 0)
    experts.train(toy, TINY, folder)
    assert "1 of 3 to train" in capsys.readouterr().out and path.read_bytes() == sound
    assert torch.equal(buffer.snapshots(1, 0, 4), whole.snapshots(1, 0, 4))
    assert not list(folder.glob("*.damaged"))


def test_a_damaged_file_that_cannot_be_renamed_is_to_be_deleted(whole, tmp_path, monkeypatch):
    folder = copied(whole, tmp_path / "buffer")
    flip(folder / "expert-00001.safetensors")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(experts.Path, "replace", refuse)
    with pytest.raises(ValueError, match=r"its checksum differs.*makes it again \(delete it first\)"):
        experts.open_buffer(folder).snapshots(1, 0, 0)


def test_precisions_are_not_mixed_in_silence(toy, tmp_path, monkeypatch, capsys):
    """ "auto" on one machine and then on another, with experts finished and begun; what is whole is no matter."""
    config = replace(TINY, precision="auto", num_experts=2, epochs=2)
    monkeypatch.setattr(train, "can_compile", lambda _: False)
    monkeypatch.setattr(train, "has_bfloat16", lambda _: False)
    experts.train(toy, replace(config, num_experts=1), tmp_path)
    with pytest.raises(TimeoutError):
        experts.train(toy, config, tmp_path, minutes=1e-9)
    assert "the result will mix" not in capsys.readouterr().out
    shutil.copytree(tmp_path, tmp_path / "begun")
    (tmp_path / "begun" / "expert-00000.safetensors").unlink()
    monkeypatch.setattr(train, "has_bfloat16", lambda _: True)
    experts.train(toy, replace(config, num_experts=1), tmp_path)
    assert capsys.readouterr().out == "", "nothing is trained, nothing mixed"
    for folder in (tmp_path / "begun", tmp_path):
        experts.train(toy, config, folder)
        printed = capsys.readouterr().out
        assert printed.count(f"{folder} were trained in float32 and the rest will be in bfloat16: the result will mix both") == 1
    made_by = [files.read_header(tmp_path / f"expert-0000{number}.safetensors", "expert")[0]["made_by"] for number in range(2)]
    assert [found["precision"] for found in made_by] == ["float32", "bfloat16"]


def test_a_method_prepares_its_experts(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    config = SimpleNamespace(ipc=1000, experts=lambda: TINY)
    with pytest.raises(ValueError, match="ipc 1000 is more than"):
        experts.prepare(toy, config)
    assert not list(tmp_path.rglob("*")), "nothing is trained for settings that cannot be"
    config.ipc = 1
    with pytest.raises(TimeoutError):
        experts.prepare(toy, config, minutes=1e-9)
    experts.prepare(toy, config)
    monkeypatch.setattr(experts.Job, "work", None)
    assert experts.train(toy, TINY).folder.parent == tmp_path / "experts"


@pytest.mark.parametrize(("network", "device", "together"), [("convnet3", "cpu", 1), ("convnet3", "cuda", 8), ("resnet10_dim", "cuda", 1)])
def test_a_gpu_trains_several_at_once_where_the_network_allows_it(toy, tmp_path, monkeypatch, network, device, together):
    monkeypatch.setattr(train, "has_bfloat16", lambda _: False)
    elsewhere = MagicMock(shape=toy.shape, num_classes=4, fingerprint=toy.fingerprint, preprocess=toy.preprocess)
    elsewhere.train.images.device = torch.device(device)
    assert experts.Job(elsewhere, replace(TINY, network=network), tmp_path, 1.0, None).together == together


def test_a_complete_buffer_is_not_trained_again_and_can_grow(toy, whole, tmp_path, monkeypatch, capsys):
    folder = copied(whole, tmp_path / "buffer")
    grown = experts.train(toy, replace(TINY, num_experts=4), folder)
    assert grown.num_experts == 4 and contents(whole.folder).items() < contents(folder).items()
    assert "1 of 4 to train" in capsys.readouterr().out
    monkeypatch.setattr(experts.Team, "fit", None)
    assert experts.train(toy, replace(TINY, num_experts=2), folder).num_experts == 2
    assert experts.open_buffer(folder).num_experts == 4 and capsys.readouterr().out == ""


def test_what_lies_ahead_is_said_first(toy, tmp_path, capsys, monkeypatch):
    experts.train(toy, replace(TINY, num_experts=2), tmp_path)
    first, *rest = capsys.readouterr().out.splitlines()
    size = sum(map(len, contents(tmp_path).values())) / 1e6
    assert first.startswith("experts: 2 of 2 to train, 8 epochs of 4 steps") and "about 0.0 minutes on cpu (1 thread)" in first
    assert abs(float(first.split(" MB in ")[0].split()[-1]) - size) < 0.1
    assert rest == ["epochs of experts 4/8", "epochs of experts 8/8"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"1 experts need 0.00 GB and .* has 0.00 GB free: make room"):
        experts.train(toy, replace(TINY, num_experts=3), tmp_path)


def test_another_config_or_other_data_in_the_same_folder_are_refused(toy, whole):
    with pytest.raises(ValueError, match=r"lr = 0.05 there, 0.1 now"):
        experts.train(toy, replace(TINY, lr=0.1), whole.folder)
    fewer = replace(toy, train=data.Split(toy.train.images[1:], toy.train.labels[1:]))
    with pytest.raises(ValueError, match="data = "):
        experts.train(fewer, TINY, whole.folder)
    with pytest.raises(ValueError, match="preprocessed by 'standardize' and the experts are to see 'zca_a'"):
        experts.train(toy, replace(TINY, preprocess="zca_a"))


def test_config_and_data_decide_the_folder(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    folders = [experts.Job(toy, config, None, 1.0, 1).folder for config in (TINY, replace(TINY, num_experts=9), replace(TINY, seed=1))]
    assert folders[0] == folders[1] != folders[2] and folders[0].parent == tmp_path / "experts"
    assert folders[0].name.startswith("toy-convnet3-w4-")


def test_a_folder_without_experts_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished expert"):
        experts.open_buffer(tmp_path)
    (tmp_path / "config.json").write_text('{"method": "DM"}')
    (tmp_path / "expert-00000.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="no finished expert"):
        experts.open_buffer(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- reading

def test_segments_are_drawn_from_all_experts_and_starts_below_the_bound(whole):
    rng, twin = runs.stream(0, "segments"), runs.stream(0, "segments")
    drawn = set()
    for _ in range(100):
        expert, first, theta = whole.draw_segment(2, 3, rng)
        start, target, *same = whole.draw_ends(2, 3, twin)
        assert torch.equal(theta, whole.snapshots(expert, first, first + 2)) and same == [expert, first]
        assert torch.equal(theta[0], start) and torch.equal(theta[2], target)
        drawn.add((expert, first))
    assert drawn == {(expert, first) for expert in range(3) for first in range(3)}


def test_what_is_read_is_a_copy(whole):
    theta = whole.snapshots(0, 1, 2)
    kept = theta.clone()
    theta.zero_()
    assert torch.equal(whole.snapshots(0, 1, 2), kept)


@pytest.mark.parametrize(("length", "max_start", "message"), [(2, 4, "need experts of 5 epochs, these have 4"), (0, 1, "at least one"),
                                                              (1, 0, "at least one")])
def test_segments_that_cannot_be_drawn_are_an_error(whole, length, max_start, message):
    for draw in (whole.draw_segment, whole.draw_ends):
        with pytest.raises(ValueError, match=message):
            draw(length, max_start, runs.stream(0))


@pytest.mark.parametrize("asked", [(3, 0, 1), (0, 0, 5), (0, 2, 1), (0, -1, 1)])
def test_snapshots_that_do_not_exist_are_an_error(whole, asked):
    with pytest.raises(ValueError, match="there are experts 0 to 2 with snapshots 0 to 4"):
        whole.snapshots(*asked)


def test_a_checksum_is_computed_at_the_first_reading_and_never_again(toy, whole, tmp_path, monkeypatch):
    folder, verify, seen = copied(whole, tmp_path / "buffer"), files.verify, []
    monkeypatch.setattr(files, "verify", lambda path, kind: seen.append(path.name) or verify(path, kind))
    buffer = experts.train(toy, TINY, folder)
    assert seen == []
    for _ in range(2):
        buffer.snapshots(0, 0, 1)
        experts.open_buffer(folder).snapshots(0, 2, 3)
        experts.train(toy, TINY, folder).snapshots(2, 0, 0)
    assert seen == ["expert-00000.safetensors", "expert-00002.safetensors"]


READER = """
import re, sys
import torch
from ddlib import experts
held = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024    # getrusage has the parent's, too
before = held()
start, target, expert, first = experts.open_buffer(sys.argv[1]).draw_ends(40, 20, torch.Generator())
print(start.shape[0], float(start.sum() + target.sum()), held() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell the peak memory of a process")
def test_reading_a_segment_loads_neither_the_file_nor_what_lies_between(tmp_path):
    """64 snapshots of a million zeros, 256 MB, of which two are read: 8 MB and their copies, beside the checksum."""
    claim = {"epochs": 63, "num_params": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(claim))
    theta = torch.zeros(1).expand(64, 10**6)
    files.write_tensors(tmp_path / "expert-00000.safetensors", "expert", {"claim": claim, "expert": 0}, {"theta": theta})
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    num_params, total, megabytes = map(float, done.stdout.split())
    assert num_params == 10**6 and total == 0 and 8 < megabytes < 60, f"{megabytes:.0f} MB to read 8"


# ------------------------------------------------------------------------------------------------------------ side by side

@pytest.mark.parametrize("together", [2, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_experts_side_by_side_are_the_same_up_to_rounding(toy, tmp_path, together, loss):
    config = replace(TINY, loss=loss, epochs=2)
    alone = experts.train(toy, config, tmp_path / "alone")
    with pytest.raises(TimeoutError):
        experts.train(toy, config, tmp_path / "together", minutes=1e-9, together=together)
    buffer = experts.train(toy, config, tmp_path / "together", together=together)
    for expert in range(3):
        one, other = alone.snapshots(expert, 0, 2), buffer.snapshots(expert, 0, 2)
        assert torch.equal(one[0], other[0]) and torch.allclose(one, other, atol=1e-5)


def test_experts_of_unequal_progress_are_not_mixed(toy, whole, tmp_path):
    with pytest.raises(TimeoutError):
        experts.train(toy, TINY, tmp_path, minutes=1e-9)                                 # expert 0 is one epoch ahead
    buffer = experts.train(toy, TINY, tmp_path, together=3)
    assert all(torch.allclose(buffer.snapshots(k, 0, 4), whole.snapshots(k, 0, 4), atol=1e-5) for k in range(3))


def test_networks_with_batch_norm_are_trained_alone(toy, tmp_path):
    config = replace(TINY, network="resnet10_dim", epochs=1, num_experts=1)
    with pytest.raises(ValueError, match="batch norm or dropout"):
        experts.train(toy, config, tmp_path, together=2)
    assert experts.train(toy, config, tmp_path).num_params == models.num_params(
        models.build("resnet10_dim", shape=toy.shape, num_classes=4, width=4))


# ---------------------------------------------------------------------------------------------------- settings and commands

@pytest.mark.parametrize(("change", "message"), [
    ({"epochs": 0}, "at least 1"), ({"lr": 0.0}, "lr must be above 0"), ({"momentum": 1.0}, "momentum"),
    ({"network": "vit"}, "network must be one of convnet3"), ({"loss": "mse"}, "loss must be"),
    ({"preprocess": "pca"}, "preprocess must be"), ({"precision": "int8"}, "precision"), ({"augment": "mixup"}, "unknown operation")])
def test_settings_that_cannot_be_are_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_methods_settings_decide_its_experts():
    shared = {"dataset": "toy", "network": "convnet4", "width": 5, "preprocess": "none", "num_experts": 6}
    settings = experts.Buffered(**shared, buffer_epochs=7, buffer_lr=0.8, buffer_batch=9, buffer_precision="auto", buffer_seed=10)
    assert settings.experts() == experts.ExpertConfig(**shared, epochs=7, lr=0.8, batch_size=9, precision="auto", seed=10)
    with pytest.raises(ValueError, match="epochs"):
        experts.Buffered(buffer_epochs=0)


WORDS = ("--dataset", "toy", "--width", "4", "--num-experts", "2", "--epochs", "2", "--out")


def test_the_command_trains_in_slices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["experts", *WORDS, str(tmp_path), "--minutes", "1e-9"])
    assert experts.main() == 0
    assert "stopped: 0 of 2 experts are trained and the time is up; the same command goes on" in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "ddlib.experts", *WORDS, str(tmp_path)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and "2 experts of 2 epochs and 428 parameters in" in done.stdout, done.stderr
    assert len(contents(tmp_path)) == 2


@pytest.mark.parametrize(("words", "message"), [(["--minutes", "0"], "minutes must be above 0"), (["--loss", "mse"], "loss must be one of"),
                                                (["--together", "0"], "together at least 1"), (["--dataset", "y"], "unknown dataset")])
def test_the_command_answers_bad_input_in_a_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr(train, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["experts", *WORDS, str(tmp_path), *words])
    assert experts.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
