"""Run a chapter from a terminal: `python -m ddlib.chapter 03_distribution_matching -p ipc 10`.

papermill executes a copy of the notebook with the given parameters. Around it this file checks the chapter's name and every
parameter's name and type before a kernel starts (papermill itself only warns), shows what the chapter prints while it runs,
and ends with the chapter's table and the paths of everything it wrote.

A chapter that takes part has a parameters cell of annotated scalars, one of them `out: str = ""`, and writes its
`table.txt`, pictures and distilled sets into that folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ddlib import data, distilled, papers
    from ddlib.methods import cgan, dim

ROOT = Path(__file__).resolve().parent.parent

# Read by glibc and OpenMP when the kernel starts: keep freed activations (training is 1.4 to 1.9 times faster for up to 2 GB
# more at the peak) and let idle threads sleep. The last line silences a debugger's warning at every start of a kernel.
KERNEL_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def record(folder: Path, rows: Sequence[dict[str, Any]], results: str = "", *, pictures: Mapping[str, Figure], dataset: str,
           **options: Any) -> papers.Table:
    """Keep what a chapter measured, and return its table: table.txt and NAME.png into `folder`, rows to the CSV file `results`.

    options: see `papers.beside`. `fashion_mini` stands beside what is printed for Fashion-MNIST. The table that is returned,
    for the page, has no minutes: they would change from run to run.
    """
    # not above: a terminal should not wait for torch to hear of a typo
    from ddlib import evaluate, files, papers, plots

    options = {"published_as": "fashion_mnist" if dataset == "fashion_mini" else None} | options
    kept, shown = (papers.beside(each, dataset=dataset, **options) for each in (rows, [row | {"minutes": ""} for row in rows]))
    files.write_text(folder / "table.txt", kept.text() + "\n")
    for name, figure in pictures.items():
        (folder / f"{name}.png").write_bytes(plots.png(figure))
    for row in rows if results else []:
        evaluate.append_row(results, row)
    return shown


def setting_table(config: Any, names: Sequence[str], caption: str) -> papers.Table:
    """The settings `names` of a config (a dataclass), for the beginning of a chapter."""
    from ddlib import papers

    shorter = lambda value: str(value).replace("_dim", "").replace(",", ", ")
    return papers.Table(("setting", "value"), tuple((name, shorter(getattr(config, name))) for name in names), caption=caption)


def one_gan(real: data.ImageSet, config: dim.MatchConfig) -> tuple[cgan.Game, distilled.GeneratorSet, float]:
    """The GAN that a matching run of this config starts from: its game at the run's rate, what it generates, its minutes.

    Trained if nobody has yet, without a line of print. The minutes belong to the row of CGAN, and to no other.
    """
    from ddlib import runs
    from ddlib.methods import cgan

    folder = cgan.folder(real, config.gan())
    with contextlib.redirect_stdout(io.StringIO()):
        made = runs.run(cgan, config.gan(), folder, real=real, snapshots=cgan.SNAPSHOTS, keep_checkpoint=True, wait=True)
    game = cgan.Game(real, config.game())
    game.load(runs.read_checkpoint(folder), config.lr)
    return game, game.distilled(real, method=cgan.NAME), made.minutes


def half(real: data.ImageSet, least: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Arrays for "bring your data": training images and labels, test images and labels, names of the classes.

    The first half of the classes (at least `least`) at half the resolution, images (N, c, h/2, w/2) uint8.
    """
    from torch.nn.functional import avg_pool2d

    count = min(max(real.num_classes // 2, least), real.num_classes)
    arrays = []
    for split in (real.train, real.test):
        chosen = split.labels < count
        arrays += [avg_pool2d(split.images[chosen].float(), 2).byte().cpu(), split.labels[chosen].cpu()]
    return arrays[0], arrays[1], arrays[2], arrays[3], real.classes[:count]


def answer(text: str) -> None:
    """Print the answer to an exercise in lines that a phone shows whole."""
    print(textwrap.fill(text, 46))


def find(name: str, folder: Path) -> Path:
    """The notebook of a chapter, named in full ("03_distribution_matching") or by a prefix that only it has ("03")."""
    chapters = sorted(path for path in folder.glob("*.ipynb") if not path.name.startswith("."))
    wanted = name.removesuffix(".ipynb").removesuffix(".py")
    matches = [path for path in chapters if path.stem == wanted]
    matches = matches or [path for path in chapters if wanted and path.stem.startswith(wanted)]
    if len(matches) != 1:
        problem = "unknown" if not matches else "ambiguous"
        known = ", ".join(path.stem for path in chapters) or f"none: {folder} holds no .ipynb; run `make notebooks`"
        raise ValueError(f"{problem} chapter {name!r}; choose from {known}")
    return matches[0]


def describe(parameters: dict[str, dict[str, str]]) -> str:
    """One line for each parameter: name, type, default and the comment behind it."""
    if not parameters:
        return "  (no parameters)"
    claims = {name: f"{name}: {entry['inferred_type_name']} = {entry['default']}" for name, entry in parameters.items()}
    width = max(map(len, claims.values()))
    return "\n".join(
        f"  {claims[name]:<{width}}  {'# ' + entry['help'] if entry['help'] else ''}".rstrip()
        for name, entry in parameters.items()
    )


def convert(name: str, text: str, annotation: str) -> Any:
    """The value that `text` spells for a parameter annotated int, float, bool or str."""
    try:
        match annotation:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return BOOLEANS[text.lower()]
            case "str":
                return text
    except (ValueError, KeyError):
        choices = "; write true or false" if annotation == "bool" else ""
        raise ValueError(f"parameter {name} must be of type {annotation}, got {text!r}{choices}") from None
    raise ValueError(
        f"parameter {name} cannot be set from a terminal because its type is {annotation}, "
        f"not int, float, bool or str; edit the parameters cell instead"
    )


def check_parameters(chapter: str, given: Sequence[tuple[str, str]], known: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Values for papermill from pairs of texts; an unknown name or a wrong type is an error that lists the valid ones."""
    values: dict[str, Any] = {}
    for name, text in given:
        if name not in known:
            raise ValueError(f"{chapter} has no parameter {name!r}; it has\n{describe(known)}")
        if name in values:
            raise ValueError(f"parameter {name} is given twice; give it once")
        values[name] = convert(name, text, known[name]["inferred_type_name"])
    return values


class LineStream:
    """A file that prints whole lines; on a terminal above papermill's progress bar instead of into it."""

    def __init__(self, file: TextIO):
        self.file = file
        self.rest = ""

    def write(self, text: str) -> None:
        from tqdm import tqdm

        lines = (self.rest + text.replace("\r\n", "\n")).split("\n")
        self.rest = lines.pop()
        for line in lines:
            line = line.rstrip("\r").rpartition("\r")[2]  # of a bar that redraws itself, the last state
            if sys.stderr.isatty():
                tqdm.write(line, file=self.file)
            else:
                print(line, file=self.file)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        if self.rest:
            self.write("\n")


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time of change and size of every file under a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[path] = (status.st_mtime_ns, status.st_size)
    return found


def settings(given: Sequence[tuple[str, str]]) -> str:
    """A folder's name for these parameters, so that two runs with different ones never share a folder."""
    return ",".join(re.sub(r"[^0-9A-Za-z_.=-]+", "_", f"{name}={value}") for name, value in sorted(given)) or "default"


def pretty(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def run(name: str, given: Sequence[tuple[str, str]] = (), out: Path | None = None, folder: Path | None = None) -> int:
    """Execute one chapter and report; returns the exit status: 0 done, 1 failed, 130 interrupted.

    given: pairs of parameter name and value, both text. out: where everything goes; by default a folder named after the
    chapter and the parameters under DDLIB_RUNS or `runs/`. folder: where the notebooks are. Raises ValueError for a wrong name or value.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    folder = folder or ROOT / "notebooks"
    notebook = find(name, folder)
    chapter = notebook.stem
    known = papermill.inspect_notebook(str(notebook))
    values = check_parameters(chapter, given, known)

    if out is None:
        home = Path(os.environ.get("DDLIB_RUNS") or folder.parent / "runs")
        out = Path(values.get("out") or home / chapter / settings([pair for pair in given if pair[0] != "results"]))
    elif values.get("out"):
        raise ValueError("the folder is given twice; use either --out or -p out")
    out = out.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    if "out" in known:
        values["out"] = str(out)
    out.mkdir(parents=True, exist_ok=True)
    before = snapshot(out)
    executed = out / notebook.name

    for variable, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    print(f"{chapter} -> {pretty(out)}", flush=True)
    started = time.monotonic()
    stdout, stderr = LineStream(sys.stdout), LineStream(sys.stderr)
    problem = ""
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters=values, cwd=str(folder.parent), kernel_name="python3",
            stdout_file=stdout, stderr_file=stderr, extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        problem = f"cell {error.cell_index + 1} raised {error.ename}: {error.evalue}"
    except DeadKernelError:
        problem = "its kernel died, most often for want of memory"
    except KeyboardInterrupt:
        print(f"\n{chapter} was interrupted; the same command again resumes from its last checkpoint", file=sys.stderr)
        return 130
    finally:
        stdout.close()
        stderr.close()
    if problem:
        print(f"\n{chapter} failed: {problem}\nthe notebook as far as it came: {pretty(executed)}", file=sys.stderr)
        return 1

    table = out / "table.txt"
    if table.is_file():
        print("\n" + table.read_text().rstrip())
    print(f"\n{chapter} took {(time.monotonic() - started) / 60:.1f} min and wrote")
    for path in sorted(path for path, state in snapshot(out).items() if before.get(path) != state):
        if not path.name.startswith((".", "network-")):          # locks and trained networks are kept to resume with, not to read
            print(f"  {pretty(path)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a wrong name or value."""
    parser = argparse.ArgumentParser(prog="python -m ddlib.chapter", description="Run a chapter of the book.")
    parser.add_argument("chapter", nargs="?", default="00_quickstart", help="its name or number (default: %(default)s)")
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a value of the parameters cell; may be repeated",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for all results (default: runs/CHAPTER/PARAMETERS)")
    options = parser.parse_args(arguments)
    try:
        return run(options.chapter, [(name, value) for name, value in options.parameter], options.out)
    except (ValueError, OSError, ImportError) as error:
        needs = ' (install the extra: pip install "ddlib[book]")' if isinstance(error, ImportError) else ""
        print(f"error: {error}{needs}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
