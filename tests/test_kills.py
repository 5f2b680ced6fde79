"""A killed run leaves what an undisturbed one leaves: ten kills of the hundred and more of `python tests/kills.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kills
import pytest
from conftest import ROOT

SEED = 5


def test_ten_kills_leave_no_trace_and_no_process(tmp_path, monkeypatch):
    """Plain images, experts, and a GAN that another method goes on from; seven at random moments, three before file operations."""
    with kills.lives(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(kills, "COMMAND", [word.replace("convnet3:4", "convnet3:2") for word in kills.COMMAND])
            total, faults = kills.run(server, kills=7, events=3, seed=SEED, methods=["dm", "mtt", "skd"], typed=False)
        assert faults == [] and total == 10
        monkeypatch.setattr(kills, "COMMAND", ["--preset", "huge"])
        with pytest.raises(RuntimeError, match="no preset 'huge'"):      # a life that fails is no life that was killed
            server.live("dm", tmp_path / "failed")
    assert server.server.poll() is not None


def test_the_comparison_sees_what_a_kill_could_leave(tmp_path):
    for name in ("one", "other"):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        (folder / "time.json").write_text(json.dumps({"minutes": len(name)}))
        (folder / "metrics.csv").write_text("step,match\n1,0.5\n")
        (folder.parent / "rows.csv").write_text(f"accuracy_mean,minutes\n70.0,{len(name)}\n")
    one, other = tmp_path / "one", tmp_path / "other"
    assert kills.differences(one, other) == []
    (one / "run" / ".metrics.csv.part").touch()
    assert kills.differences(one, other) == ["run/.metrics.csv.part is left over"]
    assert kills.differences(other, one) == ["run/.metrics.csv.part is missing"]
    (other / "run" / ".metrics.csv.part").touch()
    (one / "run" / "metrics.csv").write_text("step,match\n1,0.25\n")
    (one / "rows.csv").write_text("accuracy_mean,minutes\n70.1,3\n")
    assert kills.differences(one, other) == ["rows.csv differs", "run/metrics.csv differs"]


@pytest.mark.parametrize("words", [["--methods", "dn"], ["--kills", "many"]])
def test_the_script_names_what_it_does_not_know(words):
    done = subprocess.run([sys.executable, str(Path(kills.__file__)), *words], capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.returncode == 2 and words[1] in done.stderr and "Traceback" not in done.stderr
