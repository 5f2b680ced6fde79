"""Running a chapter from a terminal: wrong names fail before a kernel starts, output streams, results are listed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import CHAPTERS, ROOT

from ddlib import chapter, data, distilled, evaluate, plots
from ddlib.methods import dim

PARAMETERS = """ipc: int = 1  # images per class
rate: float = 0.5
verbose: bool = True
preset: str = "tiny"  # "tiny" | "full"
sizes: list = [1, 2]
out: str = ""
"""
WORK = """import os, pathlib, time
print("ipc", repr(ipc), repr(rate), repr(verbose), repr(preset))
print("malloc", os.environ["MALLOC_MMAP_MAX_"], os.environ["OMP_WAIT_POLICY"], "in", os.getcwd())
assert preset != "broken", "the preset is broken"
if preset == "killed":
    os._exit(9)
if preset == "slow":
    print("sleeping", os.getpid(), flush=True)
    time.sleep(600)
folder = pathlib.Path(out)
(folder / "table.txt").write_text(f"method  ipc\\nDM      {ipc}\\n")
(folder / "pictures").mkdir(exist_ok=True)
(folder / "pictures" / "grid.png").write_bytes(b"png")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of notebooks with one small chapter that can work, fail, die or be slow, and a second one without parameters."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# Small"), parameters, nbformat.v4.new_code_cell(WORK)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), notebooks / "03_small.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")], metadata=metadata), notebooks / "04_bare.ipynb")
    return notebooks


@pytest.mark.parametrize("name", ["03_small", "03", "03_small.ipynb", "03_s"])
def test_a_chapter_is_found_by_its_name_or_a_prefix_of_it(folder, name):
    assert chapter.find(name, folder).name == "03_small.ipynb"


@pytest.mark.parametrize("name", ["05", "small", "", "../notebooks/03_small", "0"])
def test_an_unknown_or_ambiguous_chapter_lists_the_known_ones(folder, name):
    with pytest.raises(ValueError, match="choose from 03_small, 04_bare"):
        chapter.find(name, folder)


def test_an_unknown_parameter_lists_the_known_ones_with_types_defaults_and_comments(folder):
    with pytest.raises(ValueError) as error:
        chapter.run("03", [("ipcc", "1")], folder=folder)
    text = str(error.value)
    assert "03_small has no parameter 'ipcc'" in text
    for piece in ("ipc: int = 1", "# images per class", "rate: float = 0.5", 'preset: str = "tiny"', "verbose: bool = True"):
        assert piece in text
    with pytest.raises(ValueError, match="04_bare has no parameter 'ipc'"):
        chapter.run("04", [("ipc", "1")], folder=folder)
    assert not (folder.parent / "runs").exists(), "nothing was started"


@pytest.mark.parametrize(
    "name, text, annotation, value",
    [
        ("n", "10", "int", 10),
        ("n", "-3", "int", -3),
        ("x", "1e-3", "float", 1e-3),
        ("x", "2", "float", 2.0),
        ("b", "false", "bool", False),
        ("b", "True", "bool", True),
        ("s", "1", "str", "1"),
        ("s", "", "str", ""),
    ],
)
def test_values_get_the_annotated_type(name, text, annotation, value):
    converted = chapter.convert(name, text, annotation)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    "text, annotation", [("ten", "int"), ("1.5", "int"), ("fast", "float"), ("maybe", "bool"), ("", "int"), ("[1]", "list")]
)
def test_a_value_of_another_type_is_an_error_of_one_sentence(text, annotation):
    with pytest.raises(ValueError, match="parameter size") as error:
        chapter.convert("size", text, annotation)
    assert annotation in str(error.value)
    assert "\n" not in str(error.value)


def test_a_parameter_given_twice_is_an_error(folder):
    with pytest.raises(ValueError, match="given twice"):
        chapter.run("03", [("ipc", "1"), ("ipc", "2")], folder=folder)
    with pytest.raises(ValueError, match="given twice"):
        chapter.run("03", [("out", "x")], out=folder / "y", folder=folder)


def test_a_file_in_the_place_of_the_results_is_an_error(folder, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        chapter.run("03", out=tmp_path / "taken", folder=folder)


def test_a_run_passes_values_on_streams_what_is_printed_and_ends_with_table_and_paths(folder, capfd, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(folder.parent / "elsewhere"))
    assert chapter.run("03", [("ipc", "7"), ("rate", "1e-3"), ("verbose", "false")], folder=folder) == 0
    printed = capfd.readouterr().out
    out = folder.parent / "elsewhere" / "03_small" / "ipc=7,rate=1e-3,verbose=false"
    assert "ipc 7 0.001 False 'tiny'" in printed
    assert f"malloc 0 PASSIVE in {folder.parent}" in printed
    assert printed.index("DM      7") > printed.index("ipc 7")
    for name in ("03_small.ipynb", "table.txt", "pictures/grid.png"):
        assert (out / name).is_file()
        assert str(out / name) in printed[printed.index("and wrote") :]
    executed = nbformat.read(out / "03_small.ipynb", as_version=4)
    assert any("injected-parameters" in cell.metadata.get("tags", []) for cell in executed.cells)


def test_a_failing_chapter_names_its_last_error_and_keeps_the_notebook(folder, tmp_path, capfd):
    assert chapter.run("03", [("preset", "broken")], out=tmp_path / "out", folder=folder) == 1
    errors = capfd.readouterr().err
    assert "AssertionError: the preset is broken" in errors
    assert str(tmp_path / "out" / "03_small.ipynb") in errors
    executed = nbformat.read(tmp_path / "out" / "03_small.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in executed.cells for output in cell.get("outputs", []))


def test_a_kernel_that_dies_is_reported_as_such(folder, tmp_path, capfd):
    assert chapter.run("03", [("preset", "killed")], out=tmp_path / "out", folder=folder) == 1
    assert "kernel died" in capfd.readouterr().err


def test_an_interrupted_chapter_says_that_it_resumes_and_leaves_no_kernel(folder, tmp_path):
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from ddlib import chapter\n"
        f"sys.exit(chapter.run('03', [('preset', 'slow')], out=Path({str(tmp_path / 'out')!r}), folder=Path({str(folder)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-u", "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("sleeping"):
            kernel = int(line.split()[1])
            break
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resumes" in errors
    assert time.monotonic() - started < 60
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddlib.chapter", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ}
    )


def test_the_command_exits_2_and_prints_one_error_for_a_wrong_name():
    done = command("99_nothing")
    assert done.returncode == 2
    assert "unknown chapter '99_nothing'" in done.stderr
    assert "Traceback" not in done.stderr
    for name in CHAPTERS:
        assert name in done.stderr


def test_only_the_last_state_of_a_redrawn_line_is_shown(capsys):
    stream = chapter.LineStream(sys.stdout)
    stream.write("one\ntwo half")
    stream.write(" done\r\n 10%\r 50%\r100%\nrest")
    stream.close()
    assert capsys.readouterr().out == "one\ntwo half done\n100%\nrest\n"


def test_what_a_chapter_records_is_kept_with_its_minutes_and_shown_without(tmp_path):
    row = dict.fromkeys(evaluate.COLUMNS, "") | {
        "dataset": "fashion_mini", "method": "DM", "ipc": 1, "eval_arch": "convnet3", "variant": "width 16", "accuracy_mean": "71.40",
        "accuracy_std": "1.30", "n": 3, "protocol": "strict-cpu", "minutes": "98.76"}
    options = {"dataset": "fashion_mini", "ipcs": [1], "methods": ["DM"]}
    shown = chapter.record(tmp_path, [row], str(tmp_path / "rows.csv"), pictures={"bars": plots.bars({"DM": (71.4, 1.3)})}, **options)
    assert "71.5±0.5 [1]" in shown.text() and "71.4±1.3 (3)" in shown.text()                          # Fashion-MNIST's, and ours
    assert "98.8" not in shown.text()
    assert "98.8" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert [kept["minutes"] for kept in evaluate.read_rows(tmp_path / "rows.csv")] == ["98.76"]
    chapter.record(tmp_path, [row], pictures={}, **options)
    assert len(evaluate.read_rows(tmp_path / "rows.csv")) == 1            # without a file, no row


def test_settings_are_shown_by_name():
    table = chapter.setting_table(dim.PRESETS["cpu"], ("gan_width", "pool"), "Preset cpu")
    assert table.rows == (("gan_width", "16"), ("pool", "convnet3, resnet10, resnet18")) and table.caption == "Preset cpu"


def test_the_gan_of_a_matching_run_is_trained_once_silently_and_tells_its_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    real, config = data.load("toy"), replace(dim.PRESETS["tiny"], gan_width=4, gan_steps=2, ipc=3)
    game, origin, minutes = chapter.one_gan(real, config)
    assert capsys.readouterr().out == "" and minutes > 0
    assert game.optimizers[0].param_groups[0]["lr"] == config.lr != config.gan_lr and origin.ipc == 3
    kept = distilled.load(next(tmp_path.glob("gan/*/distilled.safetensors")))
    assert torch.equal(origin.all()[0], kept.at(3).all()[0])
    assert chapter.one_gan(real, config)[2] == pytest.approx(minutes, abs=0.05)      # read, not trained again


def test_half_of_a_dataset_has_half_the_classes_at_half_the_resolution():
    real = data.load("toy")                                        # four classes, 16 by 16
    train_images, train_labels, test_images, test_labels, classes = chapter.half(real)
    mine = data.ImageSet.from_arrays(train_images, train_labels, test_images, test_labels, classes=classes, name="mine")
    assert mine.shape == (1, 8, 8) and mine.classes == real.classes[:2] and set(mine.train.labels.tolist()) == {0, 1}
    chosen = real.test.images[real.test.labels < 2]
    assert torch.equal(test_images[0, 0, 0, 0], chosen[0, 0, :2, :2].float().mean().byte())
    assert len(chapter.half(real, 3)[4]) == 3 and len(chapter.half(real, 99)[4]) == 4


def test_an_answer_is_printed_in_short_lines_and_loses_no_word(capsys):
    text = "Yes: " + "a word and another one, " * 9
    chapter.answer(text)
    printed = capsys.readouterr().out
    assert printed.split() == text.split() and max(map(len, printed.splitlines())) <= 46
