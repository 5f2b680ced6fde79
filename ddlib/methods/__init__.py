"""Distillation methods, one file each. A method is a module with NAME, a Config dataclass, PRESETS and `distill`.

`distill(real, config, resume=None)` yields a `Step` after every outer update; the caller decides what to evaluate, plot
or keep. `resume` is what `Step.state()` gave at an earlier step: the method then goes on as if it had never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from ddlib.distilled import DistilledSet
    from ddlib.evaluate import Protocol as EvaluationProtocol


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
        try:
            for name, part in self.parts.items():
                (part.set_state if isinstance(part, torch.Generator) else part.load_state_dict)(resume[name])
            return resume["index"]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise Unfit(f"{type(error).__name__}: {error}".splitlines()[0]) from None


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
    # a method with experts also has prepare(real, config, minutes), which `runs.run` calls first (see experts.prepare)


class Unfit(ValueError):
    """A saved state that is not one of the run that is to go on from it."""


class Diverged(FloatingPointError):
    """A run that cannot go on: a term stopped being finite, or too little is left to match."""


def check_finite(index: int, **terms: torch.Tensor) -> dict[str, float]:
    """The terms as floats; raises Diverged naming the first that is not finite. Called before the update is made."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"the term {name!r} became {value} at step {index}: lower the learning rate and start again")
    return values


def versions(config: Any, **complete: Any) -> str:
    """What a row's "variant" says: the named settings that are not those of the complete method, as "tau 8.0, span points"."""
    return ", ".join(f"{name} {getattr(config, name)}" for name, value in complete.items() if getattr(config, name) != value)


def preset(method: Method, name: str) -> Any:
    """The named config of a method; ValueError lists the names there are."""
    if name not in method.PRESETS:
        raise ValueError(f"{method.NAME} has no preset {name!r}; choose from {', '.join(sorted(method.PRESETS))}")
    return method.PRESETS[name]


def main(method: Method) -> int:
    """The command line of a method: `python -m ddlib.methods.NAME --preset P --out DIR --minutes M`."""
    from ddlib import evaluate

    parser = argparse.ArgumentParser(
        prog=f"python -m ddlib.methods.{method.NAME.lower().replace('-', '_')}",
        description=f"Distil with {method.NAME}. Called again with the same --out, it goes on where it stopped.")
    parser.add_argument("--preset", default="tiny", help=f"one of {', '.join(sorted(method.PRESETS))} (default tiny)")
    parser.add_argument("--out", help="folder for the run (default runs/METHOD/PRESET-SEED; of a GAN, the one that others start from)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly after about this many minutes")
    parser.add_argument("--snapshots", type=int, default=0, metavar="N", help="also keep N sets from along the way, in --out/snapshots")
    parser.add_argument("--data", help="folder with the datasets (default $DDLIB_DATA)")
    parser.add_argument("--evaluate", metavar="PROTOCOL", choices=sorted(evaluate.PROTOCOLS), nargs="+", default=[],
                        help=f"then evaluate, with some of {', '.join(sorted(evaluate.PROTOCOLS))}")
    parser.add_argument("--networks", metavar="NAME[:WIDTH]", nargs="+", default=[],
                        help="networks to evaluate with, for example resnet18:16 (default: the one that distils)")
    parser.add_argument("--results", help="CSV file that gets the evaluations' rows, once for the same command")
    settings = parser.add_argument_group("settings of the preset that can be changed")
    known = dataclasses.fields(next(iter(method.PRESETS.values())))
    if any(field.name == "gan_width" for field in known):        # a generator makes as many images as are asked for
        parser.add_argument("--ipcs", metavar="N", type=int, nargs="+", help="evaluate the generator at each of these images per class "
                            "(default: the preset's ipc)")
    for field in known:
        kind = parse_bool if isinstance(field.default, bool) else type(field.default)
        settings.add_argument(f"--{field.name.replace('_', '-')}", dest=f"set_{field.name}", metavar="VALUE", type=kind)
    arguments = parser.parse_args()
    changes = {name.removeprefix("set_"): value for name, value in vars(arguments).items()
               if name.startswith("set_") and value is not None}
    return answered(lambda: distil_and_evaluate(method, arguments, changes, shlex.join([*parser.prog.split(), *sys.argv[1:]])))


def distil_and_evaluate(method: Method, arguments: argparse.Namespace, changes: dict[str, Any], command: str) -> None:
    from ddlib import distilled, evaluate, models, runs, train

    started = time.monotonic()
    train.keep_freed_memory()
    config = dataclasses.replace(preset(method, arguments.preset), **changes)
    wanted = evaluations(method, config, arguments.evaluate, arguments.networks, getattr(arguments, "ipcs", None) or ())
    rows = evaluate.read_rows(arguments.results, evaluate.COLUMNS) if arguments.results else []
    rows = [row for row in rows if row["command"] == command]
    done = {(row["protocol"], row["eval_arch"], row["variant"], ipc) for row in rows for ipc in (row["ipc"], "None")}
    variant = getattr(config, "variant", "")                     # which version of the method, for those that have several
    missing = [(protocol, ipc) for protocol, ipc in wanted
               if (protocol.name, protocol.network, evaluate.labelled(variant, protocol), str(ipc)) not in done]
    if wanted and not missing:
        print(f"{arguments.results} has the rows of this command already")
        return
    real = runs.load_data(config, arguments.data).to(runs.pick_device())
    for protocol, _ in missing:                                  # a network that cannot be, before hours of work and not after them
        models.build(protocol.network, shape=real.shape, num_classes=real.num_classes, width=protocol.width, seed=0)
    shared = getattr(method, "folder", None)                     # a GAN lies where the methods that start from it look for one
    out = arguments.out or (shared(real, config) if shared else runs.folder(method.NAME.lower(), f"{arguments.preset}-{config.seed}"))
    result = runs.run(method, config, out, real=real, minutes=arguments.minutes, keep_checkpoint=shared is not None,
                      wait=shared is not None, snapshots=arguments.snapshots or getattr(method, "SNAPSHOTS", 0))
    if result.syn is None:
        print(f"stopped after {result.minutes:.1f} minutes at step {result.steps} of {result.total}; "
              f"the same command goes on from here ({result.folder})")
        return
    print(f"finished {result.steps} steps in {result.minutes:.1f} minutes: {result.folder / 'distilled.safetensors'}")
    for protocol, ipc in missing:
        left = arguments.minutes - (time.monotonic() - started) / 60
        syn = result.syn.at(ipc) if isinstance(result.syn, distilled.GeneratorSet) and ipc else result.syn
        kept = result.folder / f"ipc-{ipc}" if ipc else result.folder
        try:
            evaluation = evaluate.evaluate(syn, real, protocol, seed=config.seed, folder=kept, minutes=left)
        except TimeoutError as error:
            print(f"stopped: {error}; the same command goes on from here")
            return
        row = evaluation.row(method=method.NAME, variant=variant, preset=arguments.preset, distilling=result.minutes, command=command)
        print(f"{method.NAME} at ipc {row['ipc']}, {protocol.name}, {protocol.network}: "
              f"{row['accuracy_mean']} +- {row['accuracy_std']} % (n = {row['n']})")
        if arguments.results:
            evaluate.append_row(arguments.results, row)


def evaluations(method: Method, config: Any, names: Sequence[str], networks: Sequence[str] = (),
                ipcs: Sequence[int] = ()) -> list[tuple[EvaluationProtocol, int | None]]:
    """Every protocol and number of images per class (None: what the set holds) that a run is evaluated with.

    names: protocols. networks: NAME or NAME:WIDTH, by default the one that distils. ValueError for what cannot be.
    """
    from ddlib import evaluate

    usual = (getattr(config, "network", "convnet3"), getattr(config, "width", None))
    if any(ipc < 1 for ipc in ipcs):
        raise ValueError(f"--ipcs must be at least 1, got {list(ipcs)}")
    wanted = [(evaluate.with_options(name, network=network, width=width), ipc) for ipc in ipcs or (None,) for name in names
              for network, width in [parse_network(text) for text in networks] or [usual]]
    if any(protocol.lr == "alpha" for protocol, _ in wanted) and not hasattr(config, "alpha"):
        raise ValueError(f"{method.NAME} learns no step size, which this protocol trains with: evaluate with strict or strict-cpu")
    return wanted


def parse_network(text: str) -> tuple[str, int | None]:
    """"resnet18:16" -> ("resnet18", 16); without a width, the network's own."""
    from ddlib import models

    name, _, width = text.partition(":")
    if name not in models.NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose from {', '.join(models.NETWORKS)}")
    if width and not is_width(width):
        raise ValueError(f"write a network as NAME or NAME:WIDTH, such as resnet18:16, not {text!r}")
    return name, int(width) if width else None


def is_width(text: str) -> bool:
    """Whether a text is a width that a network can have."""
    return text.isdecimal() and len(text) < 6 and int(text) > 0


def parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"write true or false, not {text!r}")
    return text.lower() == "true"


def answered(work: Callable[[], None]) -> int:
    """Do the work of a command; what its user can mend is answered in one sentence. Returns the exit status."""
    try:
        work()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"error: {error}" + "".join(f"; {note}" for note in getattr(error, "__notes__", [])), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
