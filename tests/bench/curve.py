"""Accuracy on validation images along a run: `python tests/bench/curve.py RUN_FOLDER... --results book/results/curves.csv`.

A folder is one that `python -m ddlib.methods.NAME --snapshots N --out FOLDER` has left. Networks are trained on every set that
it kept; no test image is looked at, so a run may be judged, and stopped, by its curve.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import statistics
import sys
from pathlib import Path

from ddlib import data, distilled, evaluate, files, runs, train

COLUMNS = ("dataset", "method", "ipc", "width", "step", "updates", "accuracy_mean", "accuracy_std", "n", "protocol", "preprocess",
           "command")
KEY = ("dataset", "method", "ipc", "width", "protocol", "preprocess")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--protocol", default="strict-cpu", choices=sorted(evaluate.PROTOCOLS))
    parser.add_argument("--repeats", type=int, default=2, help="networks on each set (default 2)")
    parser.add_argument("--results", type=Path, required=True, help=f"CSV file; lines of the same {', '.join(KEY)} are replaced")
    arguments = parser.parse_args()
    train.keep_freed_memory()
    command, lines = shlex.join(["python", "tests/bench/curve.py", *sys.argv[1:]]), []
    for folder in arguments.folders:
        claim = json.loads((folder / "config.json").read_text())
        real = data.load(claim["dataset"], preprocess=claim["preprocess"]).to(runs.pick_device())
        if "network" not in claim:
            parser.error(f"{folder} holds a generator, which has no network of its own: give folders of other methods")
        recipe = evaluate.with_options(arguments.protocol, network=claim["network"], width=claim["width"])
        for path in sorted((folder / "snapshots").glob("step-*.safetensors")):
            syn, step = distilled.load(path), int(path.stem.removeprefix("step-"))
            nets = (evaluate.train_network(syn, real, recipe, claim["seed"], repeat).net for repeat in range(arguments.repeats))
            found = [100 * train.accuracy(net, real.validation, real.preprocess) for net in nets]
            spread = statistics.stdev(found) if len(found) > 1 else float("nan")
            updates = step * (claim["syn_steps"] if claim["method"] == "ESP" else 1)          # ESP counts segments
            lines.append(dict(zip(COLUMNS, (claim["dataset"], claim["method"], claim["ipc"], claim["width"], step, updates,
                                            f"{statistics.mean(found):.2f}", f"{spread:.2f}", len(found), recipe.name,
                                            claim["preprocess"], command), strict=True)))
            print(f"{claim['method']} step {step}: {statistics.mean(found):.1f} % of the validation images", flush=True)
    made = {tuple(str(line[name]) for name in KEY) for line in lines}
    if arguments.results.is_file():
        with open(arguments.results, newline="", encoding="utf-8") as file:
            lines = [row for row in csv.DictReader(file) if tuple(row[name] for name in KEY) not in made] + lines
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.write_text(arguments.results, text.getvalue())


if __name__ == "__main__":
    main()
