"""The command line: `python -m ddlib.sweep grid.yaml [--ray local|ADDRESS] [--workers N] [--yes] [--dry-run]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ddlib.sweep import driver


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 all runs succeeded, 1 some failed, 2 the sweep cannot begin, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m ddlib.sweep", description="Run a grid of methods and chapters. Called again, it "
                                     "recognises what is finished and goes on with the rest.")
    parser.add_argument("grid", help="a YAML file, see book/sweeps")
    parser.add_argument("--ray", default="", metavar="local|ADDRESS", help="run on Ray: started here, or a cluster that runs")
    parser.add_argument("--workers", type=int, help="runs at a time on this machine (default: what its cores, memory and GPUs allow)")
    parser.add_argument("--out", help="folder or fsspec address for everything (default: the grid's, or runs/sweeps/NAME)")
    parser.add_argument("--results", help="CSV file that gets the rows (default: the grid's, or measured.csv in --out)")
    parser.add_argument("--yes", action="store_true", help="go on where an estimate exceeds a limit of the grid")
    parser.add_argument("--dry-run", action="store_true", help="check the grid, tell what it would take, and stop")
    given = parser.parse_args(arguments)
    changes = {name: value for name in ("workers", "out", "results") if (value := getattr(given, name)) is not None}
    try:
        report = driver.run(given.grid, ray=given.ray, yes=given.yes, dry_run=given.dry_run, ask=on_terminal, **changes)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{report.text}")
    return 0 if given.dry_run else report.status


def on_terminal(question: str) -> bool:
    """Ask on a terminal; elsewhere nobody can answer."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"the sweep would take {question}. Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


if __name__ == "__main__":
    sys.exit(main())
