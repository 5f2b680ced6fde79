"""Execute the chapters and store them: `python notebooks/write.py [NAME ...]`, or `make notebooks`.

A chapter is a pair: NAME.py in percent format, which people edit, and NAME.ipynb with its outputs, which is published. The .py
is the source of truth, whatever the times of the files say. Nothing random is stored (cell ids by position, no timings, no
widget state), so an unchanged chapter stays byte-identical. `--check` compares the pairs without executing anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from ddlib.chapter import KERNEL_ENVIRONMENT

FOLDER = Path(__file__).resolve().parent
MAX_BYTES = 300_000
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent", "notebook_metadata_filter": "-all"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MODEL_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}")


def chapters(names: Iterable[str] = (), folder: Path = FOLDER) -> list[Path]:
    """The .py halves of the named chapters, by full name or prefix; of all of them if no name is given."""
    known = sorted(path for path in folder.glob("[0-9]*.py"))
    chosen: list[Path] = []
    for name in names:
        stem = Path(name).name.removesuffix(".py").removesuffix(".ipynb")
        matches = [path for path in known if path.stem == stem] or [path for path in known if path.stem.startswith(stem)]
        if len(matches) != 1:
            raise ValueError(f"no single chapter is named {name!r}; choose from {', '.join(path.stem for path in known)}")
        chosen += matches
    return chosen or known


def read_source(path: Path) -> nbformat.NotebookNode:
    """The .py half as a notebook without outputs: ids by position, metadata reduced to what a kernel and jupytext need."""
    source = jupytext.read(path, fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=json.loads(json.dumps(METADATA)))
    notebook.nbformat_minor = 5
    for position, cell in enumerate(source.cells):
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell, "raw": nbformat.v4.new_raw_cell}
        notebook.cells.append(make[cell.cell_type](cell.source, id=f"cell-{position:02d}", metadata=cell.metadata))
    return notebook


def differences(path: Path) -> list[str]:
    """What keeps a pair from being equal, in sentences; [] if the two halves hold the same cells."""
    stored_path = path.with_suffix(".ipynb")
    if not path.exists() or not stored_path.exists():
        missing = path if not path.exists() else stored_path
        return [f"{path.stem}: {missing.name} is missing"]
    source, stored = read_source(path).cells, nbformat.read(stored_path, as_version=4).cells
    found = []
    if len(source) != len(stored):
        found.append(f"{path.stem}: {len(source)} cells in the .py, {len(stored)} in the .ipynb")
    for position, (ours, theirs) in enumerate(zip(source, stored, strict=False), start=1):
        for part in ("cell_type", "source", "metadata"):
            if ours[part] != theirs[part]:
                found.append(f"{path.stem}: cell {position} differs in its {part.replace('cell_', '')}")
    return found


def execute(notebook: nbformat.NotebookNode, folder: Path, runs: Path, timeout: int = 1800) -> None:
    """Run all cells in place, in `folder`, with `runs` as a fresh place for results: no checkpoint of another run is read."""
    os.environ.update(KERNEL_ENVIRONMENT, DDLIB_RUNS=str(runs))
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove from an executed notebook what would differ in the next execution, and what needs a kernel to be seen."""
    numbers: dict[str, str] = {}

    def renumber(value: Any) -> Any:
        if isinstance(value, str):
            return MODEL_ID.sub(lambda match: numbers.setdefault(match[0], f"{len(numbers) + 1:032d}"), value)
        if isinstance(value, dict):
            return type(value)({key: renumber(entry) for key, entry in value.items()})
        return [renumber(entry) for entry in value] if isinstance(value, list) else value

    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            live = "live" in cell.metadata.get("tags", [])
            cell.outputs = [] if live else renumber(cell.outputs)
    notebook.metadata = nbformat.from_dict(json.loads(json.dumps(METADATA)))


def complaints(notebook: nbformat.NotebookNode, private: Iterable[Path | str]) -> list[str]:
    """Reasons not to store an executed notebook: private paths, memory addresses, too many bytes."""
    found = []
    places = sorted({str(path) for path in private if str(path) not in ("", "/")})
    for position, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts = [output.get("text", ""), *(value for kind, value in data.items() if not kind.startswith("image/p"))]
            text = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in texts)
            if place := next((place for place in places if place in text), None):
                found.append(f"the output of cell {position} contains the path {place}; print names relative to the folder")
            if address := ADDRESS.search(text):
                found.append(f"the output of cell {position} contains a memory address ({address[0]}); print something else")
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_BYTES:
        largest = max(notebook.cells, key=lambda cell: len(json.dumps(cell.get("outputs", []))))
        found.append(
            f"{size / 1000:.0f} kB is more than the {MAX_BYTES / 1000:.0f} kB of a chapter; "
            f"cell {notebook.cells.index(largest) + 1} has the largest output"
        )
    return found


def store(path: Path) -> bool:
    """Execute one chapter and write its .ipynb; True if the file changed. Nothing is written if anything is wrong."""
    notebook = read_source(path)
    with tempfile.TemporaryDirectory() as runs:
        execute(notebook, path.parent, Path(runs))
        tidy(notebook)
        private: list[Path | str] = [path.parent.resolve().parent, Path.home(), Path(sys.prefix), runs]
    if found := complaints(notebook, private):
        raise ValueError("; ".join(found))
    text = nbformat.writes(notebook) + "\n"
    target = path.with_suffix(".ipynb")
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return False
    aside = target.with_name(f".{target.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(target)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="notebooks/write.py", description="Execute chapters and store them as .ipynb.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters by name or number (default: all)")
    parser.add_argument("--check", action="store_true", help="only compare the .py and .ipynb halves, execute nothing")
    options = parser.parse_args(arguments)
    try:
        paths = chapters(options.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        orphans = [path.with_suffix(".py") for path in FOLDER.glob("[0-9]*.ipynb") if not path.with_suffix(".py").exists()]
        found = [sentence for path in paths + ([] if options.names else orphans) for sentence in differences(path)]
        print("\n".join(found) or f"{len(paths)} pairs are equal")
        return bool(found)
    status = 0
    for path in paths:
        started = time.monotonic()
        print(f"{path.stem} ...", flush=True)
        try:
            changed = store(path)
        except (CellExecutionError, DeadKernelError, ValueError) as error:
            print(f"{path.stem} was not stored: {error}", file=sys.stderr)
            status = 1
            continue
        size = path.with_suffix(".ipynb").stat().st_size
        claim = "stored" if changed else "unchanged"
        print(f"{path.stem}: {claim}, {size / 1000:.0f} kB, {time.monotonic() - started:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
