"""Runs resume with the same bits, stop when told, and never run something else in your folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from ddlib import data, distilled, evaluate, files, runs
from ddlib.methods import Diverged, cgan, dm, main

TINY = dm.PRESETS["tiny"]


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


def test_streams_are_separate_and_repeatable():
    draws = [torch.rand(3, generator=runs.stream(*key)).tolist() for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a")]]
    assert draws[0] == draws[4]
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_finished_run_is_read_and_not_run_again(toy, tmp_path, monkeypatch):
    first = runs.run(dm, TINY, tmp_path / "run", real=toy)
    assert first.finished and first.steps == TINY.steps
    assert first.metrics()["step"] == list(range(1, TINY.steps + 1))
    monkeypatch.setattr(dm, "distill", None)
    again = runs.run(dm, TINY, tmp_path / "run", real=toy)
    assert torch.equal(first.syn.images, again.syn.images)


def test_the_artifact_says_where_it_came_from(toy, tmp_path):
    runs.run(dm, replace(TINY, seed=4), tmp_path, real=toy)
    meta = distilled.load(tmp_path / "distilled.safetensors").meta
    assert meta["method"] == "DM" and meta["seed"] == 4 and meta["config"]["steps"] == TINY.steps and meta["dataset"] == "toy"
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "distilled.safetensors", "environment.txt", "metrics.csv", "time.json"]


def test_snapshots_are_kept_evenly_and_read_back(toy, tmp_path):
    result = runs.run(dm, TINY, tmp_path, real=toy, snapshots=3)
    kept = result.snapshots()
    assert list(kept) == [1, 2, 4, 6] and torch.equal(kept[6].images, result.syn.images)
    *_, second = dm.distill(toy, replace(TINY, steps=2))
    assert torch.equal(kept[2].images, second.syn.images)


def test_another_config_in_the_same_folder_is_refused(toy, tmp_path):
    runs.run(dm, TINY, tmp_path, real=toy)
    with pytest.raises(ValueError, match=r"seed = 0 there, 1 now"):
        runs.run(dm, replace(TINY, seed=1), tmp_path, real=toy)


def test_other_data_in_the_same_folder_are_refused(toy, tmp_path):
    runs.run(dm, TINY, tmp_path, real=toy)
    with pytest.raises(ValueError, match="preprocess = 'standardize' there, 'zca_a' now"):
        runs.run(dm, TINY, tmp_path, real=data.load("toy", preprocess="zca_a"))
    fewer = replace(toy, train=data.Split(toy.train.images[1:], toy.train.labels[1:]))
    with pytest.raises(ValueError, match="data ="):
        runs.run(dm, TINY, tmp_path, real=fewer)


def test_a_config_that_cannot_run_does_not_claim_the_folder(toy, tmp_path):
    with pytest.raises(ValueError, match="ipc"):
        runs.run(dm, replace(TINY, ipc=0), tmp_path, real=toy)
    assert runs.run(dm, TINY, tmp_path, real=toy).finished


def test_two_processes_never_share_a_folder(toy, tmp_path):
    with runs.alone(tmp_path), pytest.raises(ValueError, match="another process is working"):
        runs.run(dm, TINY, tmp_path, real=toy)
    assert runs.run(dm, TINY, tmp_path, real=toy).finished


def test_a_run_that_may_wait_starts_when_the_folder_is_free(toy, tmp_path):
    left = threading.Event()

    def work():
        with runs.alone(tmp_path):
            entered.set()
            time.sleep(0.5)
            left.set()

    entered, worker = threading.Event(), threading.Thread(target=work)
    worker.start()
    entered.wait()
    assert runs.run(dm, TINY, tmp_path, real=toy, wait=True).finished and left.is_set()
    worker.join()
    with runs.alone(tmp_path), pytest.raises(ValueError, match="another process is working"):
        runs.run(dm, TINY, tmp_path, real=toy, wait=True, minutes=0.01)


def test_damaged_settings_are_named(toy, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        runs.run(dm, TINY, tmp_path, real=toy)


def test_a_loss_that_fails_right_after_resuming_points_to_the_checkpoint(toy, tmp_path, monkeypatch):
    runs.run(dm, TINY, tmp_path, real=toy, minutes=1e-9)
    monkeypatch.setattr(dm, "matching_loss", lambda *pair: (pair[1] * float("nan")).sum())
    with pytest.raises(Diverged) as caught:
        runs.run(dm, TINY, tmp_path, real=toy)
    assert "the state after step 1 is in" in caught.value.__notes__[0]


def test_a_run_cut_by_time_goes_on_with_the_same_bits(toy, tmp_path):
    whole = runs.run(dm, TINY, tmp_path / "whole", real=toy)
    for _ in range(TINY.steps):
        part = runs.run(dm, TINY, tmp_path / "slices", real=toy, minutes=1e-9)
    assert part.finished
    assert (tmp_path / "slices/distilled.safetensors").read_bytes() == (tmp_path / "whole/distilled.safetensors").read_bytes()
    assert (tmp_path / "slices/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()
    assert whole.metrics() == part.metrics()


def test_metrics_written_after_the_last_checkpoint_are_forgotten(toy, tmp_path):
    whole = runs.run(dm, TINY, tmp_path / "whole", real=toy)
    for _ in range(2):
        runs.run(dm, TINY, tmp_path / "cut", real=toy, minutes=1e-9)
    with open(tmp_path / "cut/metrics.csv", "a") as file:
        file.write("3,9.0,9.0\n4,9.")                            # a kill came between these lines and their checkpoint
    assert runs.run(dm, TINY, tmp_path / "cut", real=toy).metrics() == whole.metrics()


def test_the_last_state_is_left_where_it_is_asked_for(toy, tmp_path):
    runs.run(dm, TINY, tmp_path / "plain", real=toy)
    runs.run(dm, TINY, tmp_path / "kept", real=toy, keep_checkpoint=True)
    assert set(os.listdir(tmp_path / "kept")) - set(os.listdir(tmp_path / "plain")) == {"final.safetensors"}
    found = runs.read_checkpoint(tmp_path / "kept")
    *_, last = dm.distill(toy, TINY)
    assert found["index"] == TINY.steps and torch.equal(found["syn"]["images"], last.syn.images)
    assert torch.equal(found["rng"], last.state()["rng"])
    with pytest.raises(FileNotFoundError, match="finish the run with keep_checkpoint=True"):
        runs.read_checkpoint(tmp_path / "plain")
    with pytest.raises(ValueError, match="delete that folder"):
        runs.run(dm, TINY, tmp_path / "plain", real=toy, keep_checkpoint=True)


def killed(*_):
    raise KeyboardInterrupt


def test_a_finished_run_has_its_last_state_wherever_it_was_killed(toy, tmp_path, monkeypatch):
    """The set is written last, so a folder that has it has the state."""
    runs.run(dm, TINY, tmp_path / "whole", real=toy, keep_checkpoint=True)
    runs.run(dm, TINY, tmp_path / "cut", real=toy, minutes=1e-9, keep_checkpoint=True)
    with monkeypatch.context() as patch:
        patch.setattr(distilled.PixelSet, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.run(dm, TINY, tmp_path / "cut", real=toy, keep_checkpoint=True)
    assert not (tmp_path / "cut/distilled.safetensors").exists() and (tmp_path / "cut/final.safetensors").exists()
    runs.run(dm, TINY, tmp_path / "cut", real=toy, keep_checkpoint=True)
    for name in ("distilled.safetensors", "final.safetensors", "metrics.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_slice_of_no_time_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="minutes must be above 0"):
        runs.run(dm, TINY, tmp_path, minutes=0)


# A step takes at least 10 ms, so that a fast machine does not finish before it is killed.
VICTIM = """
import sys, time
from dataclasses import replace
from ddlib import runs
from ddlib.methods import dm
loss = dm.matching_loss
dm.matching_loss = lambda *pair: time.sleep(0.01) or loss(*pair)
runs.run(dm, replace(dm.PRESETS["tiny"], steps=300), sys.argv[1], checkpoint_seconds=0.2, every=10**9)
"""


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    """SIGKILL, three times, each at a random moment after new work was saved; then to the end: bytes of an undisturbed run."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path / "whole")], check=True, env=env)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    waits = (0.2 * torch.rand(3, generator=runs.stream(time.time_ns(), "kill"))).tolist()
    reached = []
    for wait in waits:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", VICTIM, str(tmp_path / "killed")], env=env)
        deadline = time.monotonic() + 60
        while (checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(files.read_tensors(checkpoint, "checkpoint")[0]["tree"]["$dict"][0][1])
    assert reached == sorted(set(reached)) and reached[-1] < 300, f"every try got on, none ended: {reached}"
    subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path / "killed")], check=True, env=env)
    for name in ("distilled.safetensors", "metrics.csv", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), f"{name} after {waits}"
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_a_loss_that_is_not_finite_stops_with_the_last_good_set_and_names_the_term(toy, tmp_path, monkeypatch):
    loss = dm.matching_loss
    calls = []
    monkeypatch.setattr(dm, "matching_loss", lambda *pair: calls.append(1) or loss(*pair) * (float("nan") if len(calls) == 4 else 1))
    with pytest.raises(Diverged, match=r"the term 'match' became nan at step 4") as caught:
        runs.run(dm, TINY, tmp_path / "nan", real=toy)
    assert "the set after step 3 is in" in caught.value.__notes__[0] and "last_good.safetensors" in caught.value.__notes__[0]
    monkeypatch.setattr(dm, "matching_loss", loss)
    *_, third = dm.distill(toy, replace(TINY, steps=3))
    assert torch.equal(distilled.load(tmp_path / "nan/last_good.safetensors").images, third.syn.images)
    assert not (tmp_path / "nan/distilled.safetensors").exists()


def test_an_update_that_overflows_keeps_the_set_before_it(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.SGD, "step", overflow_at(3, torch.optim.SGD.step))
    with pytest.raises(Diverged, match="the set itself stopped being finite at step 3") as caught:
        runs.run(dm, TINY, tmp_path, real=toy)
    assert "the set after step 2 is in" in caught.value.__notes__[0]
    assert torch.isfinite(distilled.load(tmp_path / "last_good.safetensors").images).all()


def overflow_at(step, original):
    calls = []

    def updated(optimizer):
        original(optimizer)
        calls.append(1)
        if len(calls) == step:
            optimizer.param_groups[0]["params"][0].data.fill_(float("inf"))

    return updated


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys):
    assert list(runs.progress(iter("abcdefg"), 7, every=3, title="letters")) == list("abcdefg")
    assert capsys.readouterr().out.splitlines() == ["letters 3/7", "letters 6/7", "letters 7/7"]


def command(*words, cwd):
    return subprocess.run([sys.executable, "-m", "ddlib.methods.dm", *words], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_command_line_distils_in_slices_and_evaluates(tmp_path):
    words = ["--preset", "tiny", "--steps", "30", "--out", "run"]
    cut = command(*words, "--minutes", "1e-9", cwd=tmp_path)
    assert cut.returncode == 0 and "at step 1 of 30; the same command goes on" in cut.stdout
    done = command(*words, "--evaluate", "strict-cpu", "--results", "rows.csv", cwd=tmp_path)
    assert done.returncode == 0 and "finished 30 steps" in done.stdout, done.stderr
    _, row = (tmp_path / "rows.csv").read_text().splitlines()
    assert row.startswith("toy,DM,1,convnet3,convnet3,width 4,") and "python -m ddlib.methods.dm --preset tiny" in row
    assert json.loads((tmp_path / "run/config.json").read_text())["steps"] == 30


@pytest.mark.parametrize(("words", "message"), [(["--preset", "huge"], "no preset 'huge'; choose from"), (["--ipc", "0"], "ipc"),
                                                (["--dataset", "imagenet22k"], "unknown dataset"), (["--minutes", "0"], "above 0"),
                                                (["--network", "densenet121"], "does not go with DM"), (["--out", "/dev/null"], "error:")])
def test_the_command_line_answers_bad_input_in_a_sentence(tmp_path, words, message):
    done = command(*words, cwd=tmp_path)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_the_command_line_evaluates_one_generator_at_several_ipc(tmp_path, monkeypatch, capsys):
    evaluated = []

    def evaluate_quickly(syn, real, protocol, **options):
        evaluated.append((syn.ipc, protocol.name, options["folder"].name))
        accuracies = torch.tensor([0.5, 0.6]).double()
        return evaluate.Evaluation(accuracies, protocol, syn, real.name, 0, (1, 1), "cpu (1 thread)", 0.0, 0)

    monkeypatch.setattr(evaluate, "evaluate", evaluate_quickly)
    words = ["--preset", "tiny", "--out", str(tmp_path / "run"), "--ipcs", "1", "10", "--evaluate", "strict-cpu", "strict-cpu-resampled",
             "--results", str(tmp_path / "rows.csv")]
    monkeypatch.setattr(sys, "argv", ["cgan", *words])
    assert main(cgan) == 0
    wanted = [(ipc, name, f"ipc-{ipc}") for ipc in (1, 10) for name in ("strict-cpu", "strict-cpu-resampled")]
    assert evaluated == wanted
    rows = evaluate.read_rows(tmp_path / "rows.csv")
    assert [(row["ipc"], row["protocol"]) for row in rows] == [(str(ipc), name) for ipc, name, _ in wanted]
    assert len({row["budget_scalars"] for row in rows}) == 1

    lines = (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    (tmp_path / "rows.csv").write_text("".join(lines[:3] + lines[4:]))                  # the third row was not written yet
    assert main(cgan) == 0 and evaluated[4:] == [(10, "strict-cpu", "ipc-10")]
    assert main(cgan) == 0 and len(evaluated) == 5 and "has the rows of this command already" in capsys.readouterr().out


def test_other_sets_are_not_asked_for_several_ipc(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dm", "--ipcs", "1", "10"])
    with pytest.raises(SystemExit):
        main(dm)
    assert "unrecognized arguments: --ipcs" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["cgan", "--out", str(tmp_path), "--ipcs", "0"])
    assert main(cgan) == 1 and "--ipcs must be at least 1" in capsys.readouterr().err
