"""A grid, from YAML or Python, and the tasks that it expands to. All that can be wrong is found here, before anything starts.

    name: five-methods
    runs:
      - method: [dm, ddpp]                   # a list stands for one run with each of its values
        preset: cpu
        settings: {ipc: [1, 10], seed: [0, 1, 2], steps: 100}
        evaluate: strict-cpu                 # one protocol or several, all of them for every run
        resources: {cpus: 1}
      - chapter: 05_ddpp
        parameters: {epsilon: [0.1, 0.3]}
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ddlib import chapter, data, evaluate, methods, models, runs
from ddlib.methods import cgan
from ddlib.sweep.store import Store
from ddlib.sweep.work import PACKAGE, Task, code_version, hashed

METHODS = tuple(sorted(path.stem for path in (PACKAGE / "methods").glob("*.py") if path.stem != "__init__"))
KEYS = {"name": str, "out": str, "results": str, "shared": str, "limits": dict, "workers": int, "retries": int,
        "timeout_minutes": (int, float), "resources": dict, "runs": list}
LIMITS = dict.fromkeys(("minutes", "memory_gb", "disk_gb"), (int, float))
RESOURCES = {"cpus": int, "gpus": (int, float), "memory_gb": (int, float)}
ENTRY = {"name": str, "resources": dict, "retries": int, "timeout_minutes": (int, float)}
METHOD = {**ENTRY, "method": (str, list), "preset": (str, list), "settings": dict, "evaluate": (str, list), "networks": (str, list),
          "ipcs": (int, list)}
CHAPTER = {**ENTRY, "chapter": (str, list), "preset": (str, list), "parameters": dict}
KINDS = {str: "text", int: "a whole number", (int, float): "a number", dict: "a mapping", list: "a list", (str, list): "text or a list",
         (int, list): "a whole number or a list"}


@dataclass(frozen=True)
class Run:
    """A run of the grid: what is to be done, and what `ddlib.sweep.estimate` looks for in the rows there are."""

    task: Task
    needs: tuple[str, ...] = ()                                  # names of the tasks of Grid.first that it begins with
    method: str = ""                                             # as rows name it; "" for a chapter
    preset: str = ""
    config: Any = None
    bytes: int = 0                                               # what it leaves on disk, as far as that can be counted


@dataclass(frozen=True)
class Grid:
    """runs: those of the grid. first: the experts and GANs that they begin with, each once, by name."""

    name: str
    store: Store
    results: Path
    limits: Mapping[str, float]
    workers: int
    runs: tuple[Run, ...]
    first: Mapping[str, Run] = field(default_factory=dict)


def read(source: Mapping[str, Any] | Path | str, **changes: Any) -> Grid:
    """The grid in a YAML file or a mapping; `changes` replace keys of it. ValueError, one sentence, for what cannot be run."""
    given = {**(source if isinstance(source, Mapping) else load_yaml(Path(source))), **changes}
    known("the grid", given, KEYS)
    if not given.get("runs"):
        raise ValueError("the grid has no runs: give it a list `runs` of entries such as {method: dm, preset: tiny}")
    default = "sweep" if isinstance(source, Mapping) else Path(source).stem
    name = plain(given.get("name", default))
    known("limits", given.get("limits", {}), LIMITS)
    if least := [key for key in ("workers", "retries", "timeout_minutes") if given.get(key, 0) < 0]:
        raise ValueError(f"{least[0]} must be at least 0, got {given[least[0]]}")
    local = lambda: runs.folder() / "sweeps" / name              # which makes runs/ where there is none
    store = Store(given.get("out") or str(local()), given.get("shared", ""))
    beside = lambda: local() if store.remote else Path(store.address)
    results = Path(given.get("results") or beside() / "measured.csv").expanduser().resolve()
    check_results(results)
    common = {key: given[key] for key in ("retries", "timeout_minutes") if key in given}
    expanded: dict[str, Run] = {}
    first: dict[str, Run] = {}
    for number, entry in enumerate(given["runs"], start=1):
        where = f"entry {number} of runs"
        if not isinstance(entry, Mapping) or ("method" in entry) == ("chapter" in entry):
            raise ValueError(f"{where} must be a mapping with either `method` or `chapter`, got {entry!r}")
        expand = expand_method if "method" in entry else expand_chapter
        try:
            known(where, entry, METHOD if "method" in entry else CHAPTER)
            resources = {**given.get("resources", {}), **entry.get("resources", {})}
            known("resources", resources, RESOURCES)
            limits = common | resources | {key: entry[key] for key in common.keys() | {"retries", "timeout_minutes"} if key in entry}
            if negative := [key for key, value in limits.items() if value < (key == "cpus")]:
                raise ValueError(f"{negative[0]} must be at least {int(negative[0] == 'cpus')}, got {limits[negative[0]]}")
            if (gpus := limits.get("gpus", 0)) > 1 and gpus != int(gpus):
                raise ValueError(f"gpus must be a whole number or below 1, got {gpus}")
            for run in expand(entry, limits, first, results):
                if run.task.name in expanded:
                    raise ValueError(f"two runs are called {run.task.name!r}: leave one out, or give its entry a `name`")
                if same := next((name for name, other in expanded.items() if other.task.identity == run.task.identity), ""):
                    raise ValueError(f"{run.task.name!r} and {same!r} are the same run, one with a preset's own value written out: "
                                     "leave one out")
                expanded[run.task.name] = run
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    # what decides a result may be written in two ways: a run goes on in the folder that it was begun in
    there = store.folders()
    lying = {folder.rpartition("-")[2]: folder for folder in sorted(there)}
    kept = lambda task: "" if task.folder in there else lying.get(task.identity[:8], "")
    begun = lambda run: dataclasses.replace(run, task=dataclasses.replace(run.task, kept=kept(run.task)))
    first, expanded = ({name: begun(run) for name, run in each.items()} for each in (first, expanded))
    # a buffer's folder is known when its tasks are: all runs may have asked for experts of it
    complete = [dataclasses.replace(run, task=dataclasses.replace(run.task, needs=tuple(first[need].task.folder for need in run.needs)))
                for run in expanded.values()]
    return Grid(name, store, results, given.get("limits", {}), given.get("workers", 0), tuple(complete), first)


def plain(name: str) -> str:
    """A name as a part of a path; ValueError for one that would be another folder."""
    name = re.sub(r"[^\w.-]+", "_", name)
    if not name.strip("."):
        raise ValueError(f"a name needs letters or digits, got {name!r}")
    return name


def check_results(path: Path, write: bool = False) -> None:
    """ValueError for a file that rows cannot be appended to; write: find out by opening it."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file: name another for the results")
    evaluate.read_rows(path, evaluate.COLUMNS)
    if write:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab"):
                pass
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error.strerror}): name another for the results") from None


def load_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise ImportError('a grid in a file needs PyYAML: pip install "ddlib[scale]"') from None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a mapping with a list `runs`, and holds {type(found).__name__}")
    return found


def known(where: str, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """ValueError for a key that is not in `kinds` or a value of another type."""
    for key, value in given.items():
        if key not in kinds:
            raise ValueError(f"{where} has no key {key!r}; it has {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key} must be {KINDS[kinds[key]]}, got {value!r}")
        if kinds[key] == (str, list) and (odd := [each for each in listed(value) if not isinstance(each, str)]):
            raise ValueError(f"{key} must be text or a list of texts, got {odd[0]!r} in it")


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def product(choices: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every choice of one value of each list; a value that is no list is always chosen."""
    if empty := [name for name, values in choices.items() if listed(values) == []]:
        raise ValueError(f"{empty[0]} is an empty list, so there is nothing to run: give it a value")
    for values in itertools.product(*map(listed, choices.values())):
        yield dict(zip(choices, values, strict=True))


def identity(**claim: Any) -> str:
    return hashlib.sha256(json.dumps(claim, sort_keys=True, default=str).encode()).hexdigest()


def surroundings(limits: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the bits of a result besides its settings, code and data: threads, the kind of device, which kernels are used."""
    return {"threads": limits.get("cpus", 1), "gpu": bool(limits.get("gpus")), "kernels": environment()["kernels"]}


def environment() -> dict[str, Any]:
    """What children get of this process's environment, wherever they run. They work elsewhere: a folder is told in full."""
    folder = os.environ.get("DDLIB_DATA", "")
    return {"data_folder": str(Path(folder).expanduser().resolve()) if folder else "", "kernels": os.environ.get("DDLIB_KERNELS", "")}


@cache
def checksum(name: str) -> str:
    """Of a dataset with its test images, which a fingerprint leaves out and an evaluation reads."""
    real = dataset(name)
    return identity(train=real.fingerprint, test=[hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
                                                  for tensor in (real.test.labels, real.test.images)])


@cache
def dataset(name: str) -> data.ImageSet:
    """A dataset, read once. Standardized: whitening would take minutes, and shape and fingerprint are the same."""
    return data.load(name, preprocess="standardize")


def title(entry: Mapping[str, Any], what: str, chosen: Mapping[str, Any]) -> str:
    """The name of a run: everything that was chosen, in the order of the alphabet, short enough for a folder."""
    pairs = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in chosen.items()]
    name = ".".join(filter(None, [plain(entry["name"]) if "name" in entry else "", what, chapter.settings(pairs) if pairs else ""]))
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# ------------------------------------------------------------------------------------------------------------- methods

def expand_method(entry: Mapping[str, Any], limits: Mapping[str, Any], first: dict[str, Run], results: Path) -> Iterator[Run]:
    """The runs of an entry with `method`; the experts and GANs that they begin with are added to `first`."""
    choices = {"method": entry["method"], "preset": entry.get("preset", "tiny"), **entry.get("settings", {})}
    if clash := choices.keys() & {"method", "preset"} & entry.get("settings", {}).keys():
        raise ValueError(f"settings has a {clash.pop()!r}: write it beside `settings`, not in it")
    protocols, networks, ipcs = (listed(entry.get(key, [])) for key in ("evaluate", "networks", "ipcs"))
    for chosen in product(choices):
        name, preset = chosen.pop("method"), chosen.pop("preset")
        stem = str(name).lower().replace("-", "_")
        if stem not in METHODS:
            raise ValueError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
        method = importlib.import_module(f"ddlib.methods.{stem}")
        whole = methods.preset(method, preset)
        changes = {key: typed(f"{method.NAME}'s {key}", value, known_setting(method.NAME, whole, key)) for key, value in chosen.items()}
        config = dataclasses.replace(whole, **changes)
        real = dataset(config.dataset)
        if ipcs and not hasattr(config, "gan_width"):
            raise ValueError(f"ipcs are for generators, and {method.NAME} is none: use settings: {{ipc: ...}}")
        wanted = methods.evaluations(method, config, protocols, networks, [typed("ipcs", ipc, 1) for ipc in ipcs])
        for protocol, _ in wanted:
            models.build(protocol.network, shape=real.shape, num_classes=real.num_classes, width=protocol.width, seed=0)
        flag = lambda key, value: [f"--{key.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else str(value)]
        words = ["ddlib.methods." + stem, "--preset", preset, *itertools.chain(*(flag(*pair) for pair in changes.items()))]
        for key, values in (("--ipcs", ipcs), ("--networks", networks), ("--evaluate", protocols)):
            words += [key, *map(str, values)] if values else []
        needs = begin_with(config, real, limits, first)
        lies = f"gan/{cgan.folder_name(real, config)}" if method is cgan else ""
        task = Task(name=title(entry, f"{stem}.{preset}", changes), kind="method", words=tuple(words), rows=len(wanted),
                    code=code_version(), place=lies, data=real.fingerprint, **environment(),
                    identity=identity(method=stem, preset=preset, config=dataclasses.asdict(config), protocols=wanted,
                                      code=code_version(), data=checksum(config.dataset), **surroundings(limits)), **limits)
        yield Run(task, needs, method.NAME, preset, config)


def known_setting(method: str, config: Any, name: str) -> Any:
    """The value that a setting has in a preset."""
    names = [each.name for each in dataclasses.fields(config)]
    if name not in names:
        raise ValueError(f"{method} has no setting {name!r}; it has {', '.join(names)}")
    return getattr(config, name)


def typed(name: str, value: Any, like: Any) -> Any:
    """`value` as a setting whose value is `like`; YAML reads 1e-3 as text."""
    kind = type(like)
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


def begin_with(config: Any, real: data.ImageSet, limits: Mapping[str, Any], first: dict[str, Run]) -> tuple[str, ...]:
    """The names of the tasks whose experts or GAN a run of this config begins with, each added to `first` once.

    With the most that any run asks of them, so that the order of the runs decides nothing. What lies there is used as it is,
    so threads are no part of their identity.
    """
    common = {"code": code_version(), **environment(), **limits}
    flags = lambda settings: [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    made: list[Run] = []
    if hasattr(config, "experts"):
        data.check_ipc(real, config.ipc)
        each = config.experts()
        claim = dataclasses.asdict(each) | {"num_experts": 0}    # no expert depends on how many there are
        key = identity(experts=claim, code=code_version(), data=real.fingerprint)
        net = models.build(each.network, shape=real.shape, num_classes=real.num_classes, seed=0,
                           width=each.width if models.NETWORKS[each.network].width else None)
        for number in range(each.num_experts):
            words = ("ddlib.experts", *flags(claim | {"num_experts": number + 1}), "--only", str(number))
            task = Task(name=f"expert-{number:03d}.{each.dataset}-{each.network}-w{each.width}-{key[:6]}", kind="expert", words=words,
                        identity=identity(key=key, number=number), **common)
            made.append(Run(task, config=each, bytes=4 * models.num_params(net) * (each.epochs + 1)))
    if callable(getattr(config, "gan", None)):
        gan = config.gan()
        place = f"gan/{cgan.folder_name(real, gan)}"
        words = ("ddlib.methods.cgan", *flags(dataclasses.asdict(gan)))
        made.append(Run(Task(name=place.replace("/", "."), kind="gan", words=words, place=place,
                             identity=identity(gan=dataclasses.asdict(gan), code=code_version(), data=real.fingerprint), **common),
                        method=cgan.NAME, config=gan))
    for run in made:
        other = first.get(run.task.name, run).task
        bounds = ("cpus", "gpus", "memory_gb", "retries", "timeout_minutes")
        most = {key: max(getattr(run.task, key), getattr(other, key)) for key in bounds}
        if not (run.task.timeout_minutes and other.timeout_minutes):
            most["timeout_minutes"] = 0.0                        # no limit is the longest
        first[run.task.name] = dataclasses.replace(run, task=dataclasses.replace(run.task, **most))
    return tuple(run.task.name for run in made)


# ------------------------------------------------------------------------------------------------------------ chapters

def expand_chapter(entry: Mapping[str, Any], limits: Mapping[str, Any], first: dict[str, Run], results: Path) -> Iterator[Run]:
    """The runs of an entry with `chapter`; what they begin with they make themselves.

    What the book shows of its own results decides them, but for the file that this sweep adds rows to.
    """
    book = [(path.name, hashed(path)) for path in sorted((PACKAGE.parent / "book" / "results").rglob("*"))
            if path.is_file() and path.resolve() != results and not path.name.startswith(".")]
    parameters = {key: entry[key] for key in ("preset",) if key in entry} | entry.get("parameters", {})
    if "preset" in entry and "preset" in entry.get("parameters", {}):
        raise ValueError("parameters has a 'preset', too: write it once")
    if taken := parameters.keys() & {"chapter", "out", "results"}:
        raise ValueError(f"{taken.pop()!r} is no parameter to give here: a sweep sets it")
    for chosen in product({"chapter": entry["chapter"], **parameters}):
        notebook = chapter.find(str(chosen.pop("chapter")), chapter.ROOT / "notebooks")
        known_here = inspect(notebook)
        pairs = [(key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in chosen.items()]
        values = chapter.check_parameters(notebook.stem, pairs, known_here)
        preset, name = check_preset(notebook.stem, values, known_here)
        name = name or str(values.get("dataset") or known_here.get("dataset", {}).get("default", "").strip("'\""))
        found = checksum(name) if name else ""
        words = ["ddlib.chapter", notebook.stem, *(word for key, value in pairs for word in ("-p", key, value))]
        if values.get("protocol"):
            evaluate.with_options(values["protocol"])
        task = Task(name=title(entry, notebook.stem, dict(pairs)), kind="chapter", words=tuple(words), chapter=notebook.stem,
                    rows=int("results" in known_here), code=code_version(notebook.stem), **environment(),
                    identity=identity(chapter=notebook.stem, parameters=changed(values, known_here), code=code_version(notebook.stem),
                                      data=found, book=book, **surroundings(limits)), **limits)
        yield Run(task, preset=preset)


def changed(values: Mapping[str, Any], parameters: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The values that are not the notebook's own."""
    return {key: value for key, value in values.items() if value != ast.literal_eval(parameters[key]["default"])}


@cache
def inspect(notebook: Path) -> dict[str, dict[str, str]]:
    """The parameters of a notebook, as papermill tells them."""
    try:
        import papermill
    except ImportError:
        raise ImportError('chapters need papermill: pip install "ddlib[book]"') from None
    return papermill.inspect_notebook(str(notebook))


def check_preset(stem: str, values: Mapping[str, Any], parameters: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """(preset, its dataset) of a chapter's run. Which presets there are says the comment behind the parameter."""
    if "preset" not in parameters:
        return "", ""
    preset, help = values.get("preset", parameters["preset"]["default"].strip("'\"")), parameters["preset"]["help"]
    if whose := re.search(r"all of (\w+)\.PRESETS", help):
        return preset, methods.preset(importlib.import_module(f"ddlib.methods.{whose[1]}"), preset).dataset
    choices = re.findall(r'"([\w.-]+)"', help)
    if choices and preset not in choices:
        raise ValueError(f"{stem} has no preset {preset!r}; choose from {', '.join(choices)}")
    return preset, ""
