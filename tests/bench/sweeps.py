"""The example grid on this machine, on a simulated cluster of two nodes, and on one that loses a node in the middle.

    python tests/bench/sweeps.py [here] [cluster] [killed] [--grid FILE] [--out FOLDER] [--results FILE]

Each of the three is a sweep of its own with two runs at a time. Appends a line for each to book/results/sweeps.csv: wall
minutes, minutes of the runs added up, how many rows are equal to those of the first (in all but device, minutes, peak_mb), and
the machine's load: more than two tell that the cores were shared, and that wall minutes say little.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_worker_niceness", "0")                # Ray's workers would otherwise give way to everything else
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ddlib import evaluate, runs
from ddlib.sweep import driver

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("sweep", "runs", "failed", "workers", "wall_minutes", "run_minutes", "rows", "equal_rows", "retries", "commit", "cores",
           "load", "command")


def rows_of(path: Path) -> set[tuple[str, ...]]:
    return {tuple(row[name] for name in evaluate.COLUMNS if name not in driver.COSTS) for row in evaluate.read_rows(path)}


def on_cluster(grid: str, out: Path, kill: bool) -> driver.Report:
    """Two nodes of one CPU each; kill: the second is lost when half of the rows are there."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20})
    second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            if len(rows_of(out / "measured.csv")) >= 15:
                print("--- the second node is killed now ---", flush=True)
                cluster.remove_node(second, allow_graceful=False)
                return

    if kill:
        threading.Thread(target=watch, daemon=True).start()
    try:
        return driver.run(grid, ray=cluster.address, yes=True, out=str(out))
    finally:
        ended.set()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=["here", "cluster", "killed"])
    parser.add_argument("--grid", default=str(ROOT / "book" / "sweeps" / "five-methods.yaml"))
    parser.add_argument("--out", type=Path, default=runs.folder("sweeps"))
    parser.add_argument("--results", type=Path, default=ROOT / "book" / "results" / "sweeps.csv")
    given = parser.parse_args()
    for which in given.which:
        out, started = given.out / f"bench-{which}", time.monotonic()
        if out.exists():
            sys.exit(f"{out} is there: a sweep that is taken up again says nothing of its time; delete it")
        report = (driver.run(given.grid, yes=True, out=str(out), workers=2) if which == "here"
                  else on_cluster(given.grid, out, kill=which == "killed"))
        wall = (time.monotonic() - started) / 60
        print(report.text, flush=True)
        rows, first = rows_of(out / "measured.csv"), rows_of(given.out / "bench-here" / "measured.csv")
        line = {"sweep": which, "runs": len(report.grid.runs), "failed": len(report.failed), "workers": 2, "wall_minutes": f"{wall:.2f}",
                "run_minutes": f"{sum(record['minutes'] for record in report.records.values()):.2f}", "rows": len(rows),
                "equal_rows": len(rows & first) if first else "",
                "retries": sum(max(0, len(record["attempts"]) - 1) for record in report.records.values()),
                "commit": runs.provenance()["commit"], "cores": os.cpu_count(), "load": f"{os.getloadavg()[2]:.0f}",
                "command": shlex.join(["python", "tests/bench/sweeps.py", which])}
        new = not given.results.is_file()
        with open(given.results, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(line)


if __name__ == "__main__":
    main()
