"""What every stored chapter keeps: equal halves, parameters that are read, checked cells with outputs, one anatomy, small files."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import CHAPTERS, ROOT

from ddlib import chapter

specification = importlib.util.spec_from_file_location("write", ROOT / "notebooks" / "write.py")
assert specification is not None and specification.loader is not None
write = importlib.util.module_from_spec(specification)
specification.loader.exec_module(write)

SOURCES = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py"))
ANATOMY = ["Why", "The equation", "By hand", "The library", "Try it", "A small run", "The paper and us", "Exercises"]
FREE_FORM = {"00", "01"}  # the quickstart and the chapter on the task follow no paper
MAX_CELLS = 40  # a chapter has thirty cells at most; the folded solutions of its exercises come on top
CHEAPEST = "01_dataset_distillation"  # the chapter with the shortest run


def load(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def tree(cell: nbformat.NotebookNode) -> ast.Module:
    """The syntax of a cell without the lines that only IPython understands."""
    return ast.parse("\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))))


def parameter_names(notebook: nbformat.NotebookNode) -> list[str]:
    names = []
    for statement in (node for cell in code_cells(notebook) if "parameters" in tags(cell) for node in tree(cell).body):
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names




# ------------------------------------------------------------------------------------------------------- stored chapters


def test_every_chapter_has_both_halves():
    assert SOURCES == CHAPTERS


@pytest.mark.parametrize("name", SOURCES)
def test_the_two_halves_of_a_chapter_hold_the_same_cells(name):
    assert write.differences(ROOT / "notebooks" / f"{name}.py") == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_jupytext_writes_the_notebook_back_to_the_same_text(name):
    """What JupyterLab does on saving leaves the .py half as it is."""
    source = (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    assert jupytext.writes(load(name), fmt="py:percent") == source


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_stored_notebook_is_valid_and_carries_nothing_random(name):
    notebook = load(name)
    nbformat.validate(notebook)
    assert dict(notebook.metadata) == write.METADATA, "store it with notebooks/write.py"
    assert [cell.id for cell in notebook.cells] == [f"cell-{position:02d}" for position in range(len(notebook.cells))]
    assert all("execution" not in cell.metadata for cell in notebook.cells)


@pytest.mark.parametrize("name", CHAPTERS)
def test_there_is_one_parameters_cell_which_papermill_understands(name):
    import papermill

    notebook = load(name)
    assert sum("parameters" in tags(cell) for cell in code_cells(notebook)) == 1
    known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert sorted(known) == sorted(parameter_names(notebook))
    assert "out" in known, "the folder of the results can be chosen"
    for entry in known.values():
        default = str(ast.literal_eval(entry["default"]))
        chapter.convert(entry["name"], default, entry["inferred_type_name"])  # the annotation is one that a terminal can set


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_parameter_is_read_in_a_later_cell(name):
    notebook = load(name)
    start = next(position for position, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    later = [cell for cell in notebook.cells[start + 1 :] if cell.cell_type == "code"]
    read = {node.id for cell in later for node in ast.walk(tree(cell)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert set(parameter_names(notebook)) <= read


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_cell_was_executed_in_order_and_none_failed(name):
    cells = [cell for cell in code_cells(load(name)) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_checked_cells_have_outputs_and_live_cells_have_none(name):
    cells = code_cells(load(name))
    assert any("nbval-check-output" in tags(cell) for cell in cells), "nothing in this chapter is compared when it runs again"
    for cell in cells:
        if "nbval-check-output" in tags(cell):
            assert cell.outputs, f"a checked cell prints nothing:\n{cell.source}"
        if "live" in tags(cell):
            assert not cell.outputs
        if "interact(" in cell.source or ".live(" in cell.source:
            assert "live" in tags(cell), f"a widget that needs a kernel is not tagged live:\n{cell.source}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_small_and_prints_no_private_path_and_no_address(name):
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < write.MAX_BYTES
    assert len(load(name).cells) <= MAX_CELLS
    assert write.complaints(load(name), [ROOT, Path.home(), "/tmp/", "/home/"]) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_one_title_and_says_its_minutes_and_memory_at_the_top(name):
    notebook = load(name)
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert notebook.cells[0].cell_type == "markdown"
    lines = [line for source in markdown for line in source.splitlines()]
    assert [line for line in lines if line.startswith("# ")] == [lines[0]]
    top = notebook.cells[0].source.lower()
    assert "minute" in top or "second" in top
    assert "gb" in top or "mb" in top or "memory" in top


@pytest.mark.parametrize("name", [name for name in CHAPTERS if name[:2] not in FREE_FORM])
def test_a_chapter_has_the_headings_of_every_chapter_in_their_order(name):
    lines = [line for cell in load(name).cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    headings = [line.removeprefix("## ").strip() for line in lines if line.startswith("## ")]
    assert [heading for heading in headings if heading in ANATOMY] == ANATOMY


@pytest.mark.slow
@pytest.mark.skipif(CHEAPEST not in CHAPTERS, reason=f"{CHEAPEST} is not stored yet")
def test_a_fresh_copy_of_a_chapter_runs_from_a_terminal(tmp_path, capfd):
    """Nothing but the installed package and the notebook itself: no other file of the repository, no earlier results."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / f"{CHEAPEST}.ipynb", folder)
    assert chapter.run(CHEAPEST, folder=folder, out=tmp_path / "out") == 0
    executed = nbformat.read(tmp_path / "out" / f"{CHEAPEST}.ipynb", as_version=4)
    assert all(cell.execution_count for cell in code_cells(executed) if cell.source.strip())
    assert str(tmp_path / "out" / f"{CHEAPEST}.ipynb") in capfd.readouterr().out


# ------------------------------------------------------------------------------------------------------- notebooks/write.py

SMALL = '''# %% [markdown]
# # Small
# $x^2$

# %% tags=["parameters"]
ipc: int = 1  # images per class

# %% tags=["nbval-check-output"]
print("ipc", ipc)

# %% tags=["live"]
import ipywidgets

ipywidgets.interact(lambda value: print(value), value=(0, 3))

# %%
ipywidgets.IntSlider()
'''


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "00_small.py"
    path.write_text(SMALL)
    return path


def test_storing_an_unchanged_chapter_twice_leaves_the_same_bytes(small):
    assert write.store(small) is True
    first = small.with_suffix(".ipynb").read_bytes()
    assert write.store(small) is False
    assert small.with_suffix(".ipynb").read_bytes() == first
    assert small.read_text() == SMALL
    assert jupytext.writes(nbformat.read(small.with_suffix(".ipynb"), as_version=4), fmt="py:percent") == SMALL
    assert not list(small.parent.glob(".*")), "nothing is left beside it"

    notebook = nbformat.read(small.with_suffix(".ipynb"), as_version=4)
    assert [cell.execution_count for cell in code_cells(notebook)] == [1, 2, 3, 4]
    assert code_cells(notebook)[1].outputs[0].text == "ipc 1\n"
    assert code_cells(notebook)[2].outputs == []
    assert "0" * 31 + "1" in str(code_cells(notebook)[3].outputs)
    assert "widgets" not in notebook.metadata


def test_halves_that_differ_are_named(small):
    assert write.differences(small) == ["00_small: 00_small.ipynb is missing"]
    nbformat.write(write.read_source(small), small.with_suffix(".ipynb"))
    assert write.differences(small) == []
    small.write_text(SMALL.replace('"ipc", ipc', '"ipc is", ipc').replace('tags=["live"]', ""))
    assert write.differences(small) == ["00_small: cell 3 differs in its source", "00_small: cell 4 differs in its metadata"]
    small.write_text(SMALL + "\n# %%\n1\n")
    assert write.differences(small) == ["00_small: 6 cells in the .py, 5 in the .ipynb"]


def test_a_chapter_that_fails_is_not_stored(small):
    small.write_text(SMALL.replace('print("ipc", ipc)', "1 / 0"))
    with pytest.raises(write.CellExecutionError, match="ZeroDivisionError"):
        write.store(small)
    assert not small.with_suffix(".ipynb").exists()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("see /home/someone/ddlib/runs", "cell 1 contains the path /home/someone"),
        ("<object at 0x7f3a2b1c4d50>", "memory address"),
        ("x" * 400_000, "is more than the 300 kB"),
    ],
)
def test_what_should_not_be_stored_is_named(text, complaint):
    output = nbformat.v4.new_output("stream", text=text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    assert any(complaint in sentence for sentence in write.complaints(notebook, ["/home/someone", "/"]))


def test_a_harmless_output_is_not_complained_about():
    output = nbformat.v4.new_output("display_data", {"image/png": "L2hvbWUvc29tZW9uZQ==", "text/plain": "accuracy 0.9, 0x10"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    assert write.complaints(notebook, ["/home/someone", "/"]) == []


def test_an_unknown_chapter_name_lists_the_known_ones(small):
    assert write.chapters(["00"], small.parent) == [small]
    with pytest.raises(ValueError, match="choose from 00_small"):
        write.chapters(["07"], small.parent)
