"""Distillation methods, one file each. A method is a module with NAME, a Config dataclass, PRESETS and `distill`.

`distill(real, config, resume=None)` yields a `Step` after every outer update; the caller decides what to evaluate, plot
or keep. `resume` is what `Step.state()` gave at an earlier step: the method then goes on as if it had never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from ddlib.distilled import DistilledSet


class State:
    """The objects whose content a run depends on: sets and optimizers (state_dict) and torch.Generators, by name."""

    def __init__(self, **parts: Any):
        self.parts = parts

    def __call__(self) -> dict[str, Any]:
        return {name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
                for name, part in self.parts.items()}

    def restore(self, resume: Mapping[str, Any] | None) -> int:
        """Put back what was saved and return the number of steps done, 0 when there is nothing to resume."""
        if resume is None:
            return 0
        for name, part in self.parts.items():
            (part.set_state if isinstance(part, torch.Generator) else part.load_state_dict)(resume[name])
        return resume["index"]


@dataclass(frozen=True)
class Step:
    """What happened in an outer update: its number (1 for the first), its loss terms, the set after it, and the state."""

    index: int
    losses: dict[str, float]
    syn: DistilledSet
    state: State


class Method(Protocol):
    """What a module of this package offers. (Read-only members, so that modules satisfy it.)"""

    @property
    def NAME(self) -> str: ...
    @property
    def PRESETS(self) -> Mapping[str, Any]: ...
    @property
    def distill(self) -> Any: ...


class Diverged(FloatingPointError):
    """A loss term stopped being finite."""


def check_finite(index: int, **terms: torch.Tensor) -> dict[str, float]:
    """The terms as floats; raises Diverged naming the first that is not finite. Called before the update is made."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"the term {name!r} became {value} at step {index}: lower the learning rate and start again")
    return values


def main(method: Method) -> int:
    """The command line of a method: `python -m ddlib.methods.NAME --preset P --out DIR --minutes M`."""
    from ddlib import data, evaluate, runs

    parser = argparse.ArgumentParser(
        prog=f"python -m ddlib.methods.{method.NAME.lower().replace('-', '_')}",
        description=f"Distil with {method.NAME}. Called again with the same --out, it goes on where it stopped.")
    parser.add_argument("--preset", default="tiny", choices=sorted(method.PRESETS), metavar="PRESET",
                        help=f"one of {', '.join(sorted(method.PRESETS))} (default tiny)")
    parser.add_argument("--out", help="folder for the run (default runs/METHOD/PRESET-SEED)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly after this many minutes")
    parser.add_argument("--data", help="folder with the datasets (default $DDLIB_DATA)")
    parser.add_argument("--evaluate", metavar="PROTOCOL", choices=sorted(evaluate.PROTOCOLS),
                        help=f"then evaluate, with one of {', '.join(sorted(evaluate.PROTOCOLS))}")
    parser.add_argument("--results", help="CSV file that the evaluation's row is appended to")
    fields = dataclasses.fields(next(iter(method.PRESETS.values())))
    for field in fields:
        parser.add_argument(f"--{field.name.replace('_', '-')}", dest=f"set_{field.name}", metavar="VALUE",
                            type=type(field.default), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    changes = {field.name: value for field in fields if (value := getattr(arguments, f"set_{field.name}")) is not None}
    try:
        config = dataclasses.replace(method.PRESETS[arguments.preset], **changes)
        out = arguments.out or runs.folder(method.NAME.lower(), f"{arguments.preset}-{config.seed}")
        real = data.load(config.dataset, arguments.data).to(runs.pick_device())
        result = runs.run(method, config, out, real=real, minutes=arguments.minutes)
        if result.syn is None:
            print(f"stopped after {result.minutes:.1f} minutes at step {result.steps} of {result.total}; "
                  f"the same command goes on from here ({result.folder})")
            return 0
        print(f"finished {result.steps} steps in {result.minutes:.1f} minutes: {result.folder / 'distilled.safetensors'}")
        if arguments.evaluate:
            protocol = evaluate.with_options(arguments.evaluate, network=config.network, width=config.width)
            evaluation = evaluate.evaluate(result.syn, real, protocol, seed=config.seed, folder=result.folder)
            row = evaluation.row(method=method.NAME, preset=arguments.preset, distilling=result.minutes,
                                 command=" ".join([parser.prog, *sys.argv[1:]]))
            print(f"{method.NAME} at ipc {row['ipc']}: {row['accuracy_mean']} +- {row['accuracy_std']} % (n = {row['n']})")
            if arguments.results:
                evaluate.append_row(arguments.results, row)
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError) as error:
        print(f"error: {error}" + "".join(f"; {note}" for note in getattr(error, "__notes__", [])), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


