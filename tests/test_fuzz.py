"""Whatever lies in a file or is typed ends in a valid object or in one clear sentence: no crash, no hang, no flood of memory.

Valid files are damaged as disks and editors damage them (bytes flipped, cut off, doubled, put elsewhere; something else in the place
of the file) and forged (JSON and tensors changed under a checksum that is right). DDLIB_FUZZ=2000 tries so many random examples of
each instead of the same few.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ddlib import augment, chapter, data, distilled, evaluate, experts, files, methods, papers, poco, poster, runs
from ddlib.data import ImageSet, Preprocess
from ddlib.methods import cgan, ddpp, dim, dm, esp, gld, kfs, mtt, podd, rat_bptt, skd

METHODS = (cgan, ddpp, dim, dm, esp, gld, kfs, mtt, podd, rat_bptt, skd)
MORE = int(os.environ.get("DDLIB_FUZZ", "0"))
SECONDS = 20                                                     # for one example
ROOM = 2 * 2**30                                                 # bytes that a reader may ask for beyond what the process has
CLEAR = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, OSError)         # these, and no subclasses


def fuzz(examples: int) -> settings:
    phases = [Phase.explicit, Phase.generate, *[Phase.shrink] * bool(MORE)]      # shrinking may take minutes
    return settings(max_examples=MORE or examples, derandomize=not MORE, deadline=None, database=None, phases=phases,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example])


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """A header that claims terabytes must not get them."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def answered(work: Callable[[], Any], *named: Any) -> Any:
    """What `work` returns, or None after an error of a type that readers document, in one sentence that has all of `named`."""
    def late(*_: Any) -> None:
        raise AssertionError(f"not ready after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return work()
    except CLEAR as error:
        text = str(error)
        assert type(error) in CLEAR, f"{type(error).__name__}: {text}"
        assert text.strip() and "\n" not in text and "Traceback" not in text, text
        assert all(str(name) in text for name in named), f"{text!r} does not say {named}"
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -------------------------------------------------------------------------------------------------------------- damage

@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole`, hurt one to three times; or bytes that have nothing to do with it."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        # most of what readers look at is at the beginning of a file
        place = place % 64 if draw(st.booleans()) else place
        end = min(len(content), place + draw(st.integers(1, 16)))
        match draw(st.sampled_from(["flip", "cut", "grow", "insert", "remove", "repeat", "number", "anything"])):
            case "flip" if place < len(content):
                content[place] ^= draw(st.integers(1, 255))
            case "cut":
                del content[place:]
            case "grow":
                content += draw(st.binary(max_size=40))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=40))
            case "remove":
                del content[place:end]
            case "repeat":
                content[place:place] = content[place:end] * draw(st.integers(1, 50))
            case "number":                                       # a length, a size, a count
                content[place:end] = draw(st.sampled_from([b"\xff", b"\x7f", b"\x00", b"9", b"-", b"\x80"])) * (end - place)
            case "anything":
                content[:] = draw(st.binary(max_size=200))
    return bytes(content)


JUNK = st.sampled_from([None, True, False, 0, -1, 3, 10**9, 10**20, 2**63, 0.5, -0.0, 1e300, float("nan"), float("inf"), "", "x", "\ud800",
                        "1", "../..", "a" * 3000, [], [[]], {}, [None], ["a", "b"], {"a": 1}, {"$tensor": "nothing"}, {"$dict": [[[], 1]]}])


@st.composite
def swapped(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON tree in which one to three values became something else, vanished or moved to another name."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        here, steps = tree, 0
        while isinstance(here, dict | list) and here:
            key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
            steps += 1
            if not isinstance(here[key], dict | list) or not here[key] or draw(st.integers(0, 2)) == 0:
                match draw(st.sampled_from(["junk", "junk", "junk", "gone", "renamed"])):
                    case "junk":
                        here[key] = copy.deepcopy(draw(JUNK))
                    case "gone":
                        del here[key]
                    case "renamed" if isinstance(here, dict):
                        here[draw(st.sampled_from(["", "x", "kind", "\ud800"]))] = here.pop(key)
                break
            here = here[key]
        if not steps:
            return copy.deepcopy(draw(JUNK))
    return tree


@st.composite
def json_damage(draw: st.DrawFn, tree: Any) -> bytes:
    """The bytes of a JSON file: values swapped, text damaged, or numbers and depths that parsers stumble over."""
    text = json.dumps(tree)
    match draw(st.sampled_from(["swap", "swap", "bytes", "digits", "deep"])):
        case "swap":
            return json.dumps(draw(swapped(tree))).encode()
        case "bytes":
            return draw(damaged(text.encode()))
        case "digits":
            return text.replace(":", ": " + "9" * 5000 + ",", 1).encode() if draw(st.booleans()) else b"9" * 5000
        case _:
            return b"[" * 200_000


class Tensors(dict):
    """Named tensors that a failing example shows in a line."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(", ".join(f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in self.items()))


@st.composite
def forged_tensors(draw: st.DrawFn, tensors: Tensors) -> Tensors:
    """Some tensors lost, renamed, of another shape, type or content."""
    tensors = Tensors(tensors)
    for _ in range(draw(st.integers(0, 2))):
        if not tensors:
            break
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        match draw(st.sampled_from(["lost", "renamed", "flat", "scalar", "empty", "more", "type", "numbers", "first"])):
            case "renamed":
                tensors[name + "x"] = tensor
            case "flat":
                tensors[name] = tensor.reshape(-1)
            case "scalar":
                tensors[name] = torch.tensor(draw(st.sampled_from([0.0, 1.0, -1.0, float("nan")])))
            case "empty":
                tensors[name] = tensor.new_empty((0, *tensor.shape[1:]))
            case "more":
                tensors[name] = tensor[None].repeat(2, *[1] * tensor.ndim)
            case "type":
                tensors[name] = tensor.to(draw(st.sampled_from([torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.complex64,
                                                                torch.uint8])))
            case "numbers":
                value = draw(st.sampled_from([-1, 0, 2, 7, 10**6, 2**40, 2**62]))
                changed = tensor.clone().reshape(-1)
                if len(changed) and changed.dtype != torch.bool:
                    place = draw(st.integers(0, len(changed) - 1))
                    changed[place] = torch.tensor(float(value)).to(tensor.dtype) if tensor.is_floating_point() else value % 256 if (
                        tensor.dtype == torch.uint8) else value
                tensors[name] = changed.reshape(tensor.shape)
            case "first":
                tensors[name] = tensor[:1] if tensor.ndim else tensor
    return tensors


STRANGE = st.sampled_from(["folder", "lost link", "circle", "pipe", "empty", "device"])


def put(path: Path, what: str) -> None:
    """Something else than a file with content at `path`."""
    remove(path)
    match what:
        case "folder":
            path.mkdir()
        case "lost link":
            path.symlink_to(path.parent / "nowhere")
        case "circle":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "device":
            path.symlink_to("/dev/zero")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fill(path: Path, content: bytes | str) -> None:
    """Bytes, or one of STRANGE."""
    if isinstance(content, str):
        put(path, content)
    else:
        remove(path)
        path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------- tensor files

@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


class Few(ImageSet):
    """An image set that a failing example shows in a word."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)


class Contents(dict):
    """Bytes of files by name, likewise."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(", ".join(self))


@pytest.fixture(scope="module")
def toy() -> ImageSet:
    """A quarter of the toy set's pixels, of some of its images."""
    real = data.load("toy")
    few = [data.Split(split.images[:24, :, :8, :8], split.labels[:24]) for split in (real.train, real.validation, real.test)]
    return Few(real.name, real.classes, few[0], few[1], few[2], real.preprocess)


def make_sets(real: ImageSet) -> dict[str, distilled.DistilledSet]:
    rng = torch.Generator().manual_seed(0)
    layout = poster.Layout(12, 10, 8, 8, 3, 2)
    order = torch.arange(4).view(2, 2)
    white = replace(real, preprocess=Preprocess.fit(real.train.images, "zca_a"))
    return {
        "pixels": distilled.PixelSet.from_noise(white, 1, rng, soft=True),
        "learned": distilled.PixelSet(torch.rand(4, 1, 8, 8), torch.arange(4), classes=real.classes, preprocess=real.preprocess,
                                      alpha=torch.tensor(0.02)),
        "poster": distilled.PosterSet.start(real, order, layout, rng, learn_labels=True),
        "factored": distilled.FactoredSet.from_noise(real, 3, 2, rng, num_codes=1),
        "generator": cgan.Game(real, replace(cgan.PRESETS["tiny"], gan_width=2)).distilled(real),
    }


KINDS = ("pixels", "learned", "poster", "factored", "generator")


@pytest.fixture(scope="module")
def stored(home: Path, toy: ImageSet) -> dict[str, bytes]:
    """A file of every kind of set."""
    return Contents({name: syn.save(home / f"{name}.safetensors").read_bytes() for name, syn in make_sets(toy).items()})


@fuzz(250)
@given(choice=st.data())
def test_a_damaged_tensor_file_is_read_as_it_was_or_refused_by_all_readers_alike(stored, home, choice):
    whole, path = stored["learned"], home / "damaged.safetensors"
    fill(path, whole)
    wanted = files.read_tensors(path, "distilled")
    fill(path, choice.draw(damaged(whole) | STRANGE))
    found = answered(lambda: files.read_tensors(path, "distilled"), path)
    verified = answered(lambda: files.verify(path, "distilled") or True, path)
    assert (found is None) == (verified is None)
    header = answered(lambda: files.read_header(path, "distilled"), path)
    if found is not None:
        assert header is not None and found[0] == wanted[0] == header[0]
        assert all(torch.equal(found[1][name], tensor) for name, tensor in wanted[1].items()) and len(found[1]) == len(wanted[1])


@fuzz(120)
@given(text=json_damage({"header": {"format": 1, "kind": "distilled/pixels"}, "sha256": "0" * 64}) | st.just(b"[" * 200_000))
def test_any_header_of_a_tensor_file_is_answered(home, text):
    """Metadata that safetensors accepts and ours is not."""
    from safetensors.torch import save_file

    path = home / "header.safetensors"
    save_file({"a": torch.ones(2)}, path, {"ddlib": text.decode("utf-8", "replace")})
    for read in (files.read_tensors, files.read_header, files.verify):
        answered(lambda read=read: read(path, "distilled"), path)


def forge(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """A file with this header and a checksum that is right."""
    from safetensors.torch import save_file

    stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, path, {"ddlib": json.dumps({"header": header, "sha256": files.digest(header, stored)})})


@pytest.mark.parametrize("name", KINDS)
@fuzz(70)
@given(choice=st.data())
def test_a_forged_set_can_be_used_or_is_refused(stored, home, name, choice):
    path = home / "forged.safetensors"
    fill(path, stored[name])
    header, tensors = files.read_tensors(path, "distilled")
    kind = header.pop("kind")
    header = choice.draw(st.just(header) | swapped(header)) if choice.draw(st.booleans()) else header
    header = {"kind": kind, **header} if isinstance(header, dict) else {"kind": kind}
    forge(path, header, choice.draw(forged_tensors(Tensors(tensors))))
    syn = answered(lambda: distilled.load(path), path)
    if syn is not None:
        images, labels = syn.draw(2, torch.Generator().manual_seed(0))
        assert images.shape == (2, *syn.shape) and labels.shape == (2, syn.num_classes)
        assert images.is_floating_point() and syn.preprocess.inverse(images.detach()).shape == images.shape


@fuzz(150)
@given(choice=st.data())
def test_a_stored_tree_is_read_or_refused(home, choice):
    path, tensors = home / "tree.safetensors", {}
    whole = {"index": 3, "rng": torch.ones(2), "optimizer": {"state": {0: {"m": torch.ones(2)}}, "groups": [1, 2]}}
    tree = files.flatten_tree(whole, tensors)
    forge(path, {"format": 1, "kind": "checkpoint", "tree": choice.draw(swapped(tree))}, choice.draw(forged_tensors(Tensors(tensors))))
    answered(lambda: files.read_tree(path, "checkpoint"), path)


@fuzz(100)
@given(choice=st.data())
def test_stored_preprocessing_fits_together_or_is_refused(toy, choice):
    kind = choice.draw(st.sampled_from(data.KINDS))
    tensors, facts = Preprocess.fit(toy.train.images[:, :, :3, :3], kind).state()
    facts = choice.draw(st.just(facts) | swapped(facts).filter(lambda each: isinstance(each, dict)))
    preprocess = None
    with contextlib.suppress(TypeError):                         # a zca_eps of another type; `distilled.load` tells the file
        preprocess = answered(lambda: Preprocess.from_state(choice.draw(forged_tensors(Tensors(tensors))), facts))
    if preprocess is not None:
        channels = preprocess.mean.numel() if preprocess.kind == "standardize" else 1
        side = 3 if preprocess.matrix is None else round((len(preprocess.matrix) / channels) ** 0.5)
        images = torch.zeros(2, channels, side, side, dtype=torch.uint8)
        if answered(lambda: preprocess.check(tuple(images.shape[1:])) or True):
            assert preprocess(images).shape == images.shape


def test_a_part_that_is_a_link_does_not_lead_a_writer_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / ".file.txt.part").symlink_to(elsewhere)
    files.write_text(tmp_path / "file.txt", "new")
    assert elsewhere.read_text() == "precious" and not (tmp_path / "file.txt").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "file.txt"]


# ------------------------------------------------------------------------------------------------------- data sets' files

PLAIN = {"mnist": 4, "fashion_mnist": 4, "svhn": 2, "cifar10": 7, "cifar100": 3}    # files of each


class Bomb:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_the_bomb_goes_off_where_something_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went off")))
    assert (tmp_path / "went off").exists()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no network in tests")

    for place in ("torchvision.datasets.utils.urllib.request.urlopen", "urllib.request.urlopen"):
        monkeypatch.setattr(place, fail)


def write_bombs(root: Path, canary: Path) -> dict[str, list[Path]]:
    """A bomb in the place of every file that torchvision's readers look for, packed ones and those of older versions included."""
    bomb, places = pickle.dumps(Bomb(canary)), {}
    for name in data.TORCHVISION:
        more = {"mnist": ["MNIST/processed/training.pt", "MNIST/processed/test.pt"], "cifar10": ["cifar-10-python.tar.gz"],
                "fashion_mnist": ["FashionMNIST/processed/training.pt"], "cifar100": ["cifar-100-python.tar.gz"], "svhn": []}[name]
        places[name] = [root / file for file in (*data.torchvision_files(name), *more)]
        for path in places[name]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bomb)
    return places


def test_a_pickle_bomb_in_the_place_of_any_data_file_is_never_touched_off(no_network, tmp_path):
    """Also with files missing, which makes torchvision's own download code look at what is there."""
    canary = tmp_path / "went off"
    for missing in (False, True):
        places = write_bombs(tmp_path / "data", canary)
        for name, paths in places.items():
            if missing:
                paths[0].unlink()
            assert answered(lambda name=name: data.load(name, tmp_path / "data"), tmp_path / "data") is None
    assert not canary.exists()
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert not any(name.startswith(".") for name in left), "the folder of a failed download was left"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_unpickled_only_after_every_file_was_compared_with_its_md5(monkeypatch, tmp_path, name):
    """Every file is right but one, whichever that is: nothing is unpickled, neither that one nor the others."""
    canary, reader = tmp_path / "went off", data.TORCHVISION[name]
    bomb = pickle.dumps(Bomb(canary))
    names = list(data.torchvision_files(name))
    monkeypatch.setattr(data, "torchvision_files", lambda _: dict.fromkeys(names, hashlib.md5(bomb).hexdigest()))
    for wrong in (*names, None):
        for file in names:
            fill(tmp_path / file, b"") if (tmp_path / file).exists() else (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            fill(tmp_path / file, bomb + b"x" * (file == wrong))
        if wrong:
            with pytest.raises(ValueError, match=f"{tmp_path / wrong} is damaged or truncated"):
                data.load(name, tmp_path)
            assert not canary.exists()
    with pytest.raises((AttributeError, TypeError)):             # all have the expected MD5: now, and only now, torchvision reads
        data.load(name, tmp_path)
    assert canary.exists() and reader is data.TORCHVISION[name]


def test_a_pickle_bomb_in_the_place_of_any_file_of_ours_is_never_touched_off(toy, tmp_path, monkeypatch):
    canary = tmp_path / "went off"
    bomb = pickle.dumps(Bomb(canary))
    monkeypatch.setattr(data, "ASSETS", tmp_path)
    packed = io.BytesIO()
    np.savez(packed, train=np.array([Bomb(canary)], dtype=object), test=np.array([Bomb(canary)], dtype=object))
    zipped = io.BytesIO()
    torch.save(Bomb(canary), zipped)
    for content in (bomb, packed.getvalue(), zipped.getvalue()):
        names = ("fashion_mini.npz", "run/checkpoint.safetensors", "run/distilled.safetensors", "run/config.json", "run/time.json",
                 "run/metrics.csv", "run/final.safetensors", "buffer/config.json", "buffer/expert-00000.safetensors", "rows.csv",
                 "pets/train/a/a.png", "pets/test/a/a.png")
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        for read in (lambda: data.load("fashion_mini"), lambda: distilled.load(tmp_path / "run/distilled.safetensors"),
                     lambda: runs.read_checkpoint(tmp_path / "run"), lambda: runs.run(dm, dm.PRESETS["tiny"], tmp_path / "run", real=toy),
                     lambda: experts.open_buffer(tmp_path / "buffer"), lambda: evaluate.read_rows(tmp_path / "rows.csv"),
                     lambda: ImageSet.from_folder(tmp_path / "pets")):
            with contextlib.suppress(ValueError, OSError):
                read()
        monkeypatch.setattr(data, "FASHION_MINI_SHA256", hashlib.sha256(content).hexdigest())      # even if the checksum were right
        with pytest.raises(Exception):      # noqa: B017 - any
            data.load("fashion_mini")
    assert not canary.exists()


def test_no_line_of_the_library_unpickles_or_runs_what_it_reads():
    found = []
    for path in sorted((ROOT / "ddlib").rglob("*.py")):
        found += [f"{path.relative_to(ROOT)}:{line} {what}" for line, what in unsafe_calls(path.read_text())]
    assert found == []


UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
UNSAFE_CALLS = {"torch.load", "torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url", "yaml.load", "yaml.load_all",
                "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "pandas.read_pickle", "eval", "exec"}


def unsafe_calls(source: str) -> list[tuple[int, str]]:
    """(line, name) of everything in the source that could run what it reads."""
    found, known = [], {}
    for node in ast.walk(ast.parse(source)):                     # what a name at hand stands for: np -> numpy
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
                      for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(node.lineno, module) for module in modules if module.partition(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.Call):
            first, *rest = reversed(dotted(node.func))
            name = ".".join([known.get(first, first), *rest])
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            loads = name in ("numpy.load", "numpy.lib.npyio.NpzFile", "numpy.lib.format.read_array")
            allowed = options.get("allow_pickle")
            if name in UNSAFE_CALLS or (loads and not (isinstance(allowed, ast.Constant) and allowed.value is False)):
                found.append((node.lineno, name))
    return found


def dotted(node: ast.expr) -> list[str]:
    """a.b.c -> ["c", "b", "a"]; ["?"] ends what has no name."""
    if isinstance(node, ast.Attribute):
        return [node.attr, *dotted(node.value)]
    return [node.id if isinstance(node, ast.Name) else "?"]


@pytest.mark.parametrize("source", [
    "import pickle", "import pickle as p\np.load(f)", "from pickle import loads", "import torch\ntorch.load(f, weights_only=True)",
    "from torch import load as read\nread(f)", "import numpy as np\nnp.load(f)", "import numpy\nnumpy.load(f, allow_pickle=True)",
    "from numpy import load\nload(f)", "import yaml\nyaml.load(f, Loader)", "import yaml as y\ny.full_load(f)", "eval(text)",
    "import joblib.memory", "def f():\n    from dill import load",
])
def test_the_search_for_unsafe_lines_sees(source):
    assert unsafe_calls(source)
    assert not unsafe_calls("import numpy as np\nimport yaml\nnp.load(f, allow_pickle=False)\nyaml.safe_load(f)\nnet.eval()\njson.load(f)")


@fuzz(40)
@given(choice=st.data())
def test_a_damaged_file_of_a_known_set_is_named_before_torchvision_sees_it(home, choice):
    name = choice.draw(st.sampled_from(sorted(PLAIN)))
    whole = {file: f"{file} as it should be".encode() * 3 for file in data.torchvision_files(name)}
    assert len(whole) == PLAIN[name]
    root = home / f"known-{name}"
    hurt = choice.draw(st.sampled_from(sorted(whole)))
    content = choice.draw(damaged(whole[hurt]) | STRANGE)
    for file, bytes_ in whole.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        fill(root / file, content if file == hurt else bytes_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "torchvision_files", lambda _: {file: hashlib.md5(bytes_).hexdigest() for file, bytes_ in whole.items()})
        opened: list[str] = []

        def reader(_: Any, where: Path, part: str, download: bool = False) -> Any:
            if download:
                raise OSError("no network in tests")
            opened.append(part)
            return SimpleNamespace(data=np.arange(200, dtype=np.uint8).reshape(8, 5, 5), targets=[0, 1] * 4, labels=[0, 1] * 4,
                                   classes=["a", "b"])

        patch.setattr(data, "_open", reader)
        patch.setitem(data.CONSTANTS, name, ((0.5,), (0.5,)))
        real = answered(lambda: data.load(name, root), root)
        assert (real is not None) == (content == whole[hurt]) == bool(opened)
    assert not list(root.glob(f".{name}-*"))
    remove(root)


@fuzz(30)
@given(choice=st.data())
def test_a_damaged_fashion_mini_is_refused(home, choice):
    whole = (ROOT / "ddlib" / "assets" / "fashion_mini.npz").read_bytes()
    fill(home / "fashion_mini.npz", choice.draw(damaged(whole).filter(lambda each: each != whole) | STRANGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "ASSETS", home)
        assert answered(lambda: data.load("fashion_mini"), home / "fashion_mini.npz") is None


# ------------------------------------------------------------------------------------------------------- people's own data

ANY_ARRAY = st.one_of(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=3, max_dims=4, max_side=6)),
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)),
    st.sampled_from([None, "text", [[1], [1, 2]], [None], [], 3, {}, object(), torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
                     np.zeros((3, 4, 4), np.uint8)[:, ::-1], np.array([b"a"]), np.zeros((3, 0, 4), np.uint8)]))
ANY_LABELS = st.one_of(
    arrays.arrays(np.int64, st.integers(0, 6), elements=st.integers(-1, 4)),
    arrays.arrays(arrays.integer_dtypes() | arrays.unsigned_integer_dtypes(), st.integers(0, 6)), ANY_ARRAY,
    st.lists(st.integers(-1, 2**62), max_size=6), st.lists(st.integers(0, 2), min_size=3, max_size=6))


@fuzz(400)
@given(x=ANY_ARRAY, y=ANY_LABELS, test=st.none() | st.tuples(ANY_ARRAY, ANY_LABELS),
       classes=st.none() | st.sampled_from([["a", "b"], ["a"], [], "abc", [1, 2], ["a", None], ("a", "b", "c", "d", "e")]),
       layout=st.sampled_from([None, None, "NCHW", "NHWC", "HWC", 3]), preprocess=st.sampled_from([None, "none", "zca_b", "zca"]))
def test_any_arrays_make_an_image_set_or_are_refused(x, y, test, classes, layout, preprocess):
    x_test, y_test = test or (x, y)
    real = answered(lambda: ImageSet.from_arrays(x, y, x_test, y_test, classes, layout=layout, preprocess=preprocess))
    if real is not None:
        assert real.train.images.dtype == torch.uint8 and len(real.train) + len(real.validation) == len(y) and len(real.test) == len(y_test)
        assert real.num_classes <= len(y) and min(real.shape) >= 1 and real.shape[0] in (1, 3)
        assert real.preprocess(real.test.images).isfinite().all() and len(real.fingerprint) == 16


def picture(format: str, mode: str = "L", size: tuple[int, int] = (9, 7)) -> bytes:
    written = io.BytesIO()
    noise = random.Random(0).randbytes(size[0] * size[1] * len(mode))
    Image.frombytes(mode, size, noise).save(written, format)
    return written.getvalue()


PICTURES = {("png", "L"): picture("PNG"), ("png", "RGB"): picture("PNG", "RGB"), ("jpg", "L"): picture("JPEG"),
            ("jpg", "RGB"): picture("JPEG", "RGB")}
HUGE = picture("PNG")[:16] + (30_000).to_bytes(4, "big") * 2 + picture("PNG")[24:]                  # a header that claims 0.9 gigapixels
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\nshowpage\n%%EOF\n"          # Pillow would start Ghostscript


@fuzz(100)
@given(choice=st.data())
def test_a_damaged_picture_is_read_or_named(home, choice):
    (ending, _), whole = choice.draw(st.sampled_from(sorted(PICTURES.items())))
    others = st.sampled_from([picture("GIF"), picture("BMP"), picture("TIFF"), picture("PPM"), HUGE, EPS, pickle.dumps(3), b"PK\x03\x04"])
    content = choice.draw(st.one_of(damaged(whole), damaged(whole), others, STRANGE))
    root = home / "pets"
    remove(root)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            (root / part / label / f"0.{ending}").write_bytes(whole)
    hurt = root / choice.draw(st.sampled_from(["train", "test"])) / "b" / choice.draw(st.sampled_from([f"0.{ending}", f"1.{ending}"]))
    fill(hurt, content)
    size = choice.draw(st.sampled_from([None, (5, 6)]))
    real = answered(lambda: ImageSet.from_folder(root, size=size, mode=choice.draw(st.sampled_from([None, "L", "RGB"]))), hurt)
    if real is not None:
        assert real.shape[1:] == (size or (7, 9)) and content not in (HUGE, EPS)


@pytest.mark.parametrize("name", sorted(data.PLACED))
def test_a_placed_set_names_what_is_no_picture(tmp_path, name):
    for part in ("train", "test"):
        (tmp_path / name / part / "a").mkdir(parents=True)
        (tmp_path / name / part / "a" / "0.png").write_bytes(picture("PNG"))
    assert data.load(name, tmp_path).num_classes == 1
    for content in (HUGE, EPS, picture("GIF"), b"", picture("PNG")[:-40], "pipe", "folder", "lost link", "device"):
        fill(tmp_path / name / "train" / "a" / "1.png", content)
        assert answered(lambda: data.load(name, tmp_path), tmp_path / name / "train" / "a" / "1.png") is None
    remove(tmp_path / name / "train")
    for strange in ("empty", "pipe", "circle"):
        put(tmp_path / name / "train", strange)
        assert answered(lambda: data.load(name, tmp_path), tmp_path / name) is None


# ---------------------------------------------------------------------------------------------------------- shipped tables

@fuzz(120)
@given(choice=st.data())
def test_damaged_distances_of_classes_are_named(home, choice):
    whole = json.loads(poco.TABLES.read_text())
    del whole["tables"]["cifar100"]                              # the small ones will do
    path = home / "class_distances.json"
    fill(path, choice.draw(json_damage(whole) | STRANGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poco, "TABLES", path)
        poco._tables.cache_clear()
        tables = answered(poco._tables, path)
        for table in (tables or {}).values():
            delta = answered(lambda table=table: poco.by_table(table["classes"]))
            assert delta is None or (delta.isfinite().all() and (delta >= 0).all())
    poco._tables.cache_clear()


@fuzz(200)
@given(delta=arrays.arrays(np.float64, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
       .map(torch.from_numpy) | st.sampled_from([None, 3, [[0.0]], torch.ones(3, 3, dtype=torch.bool), 1 - torch.eye(4)]),
       grid=st.tuples(st.integers(-1, 5), st.integers(-1, 5)))
def test_any_distances_give_an_order_or_are_refused(delta, grid):
    order = answered(lambda: poco.order(delta, *grid))
    if order is not None:
        assert sorted(order.flatten().tolist()) == list(range(len(delta)))
        assert poco.score(order, delta) > 0


@fuzz(150)
@given(choice=st.data())
def test_damaged_tables_of_the_papers_are_named(home, choice):
    lines = papers.TABLES.read_bytes().splitlines(keepends=True)
    path = home / "paper_tables.csv"
    fill(path, choice.draw(damaged(b"".join(lines[:6])) | STRANGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papers, "TABLES", path)
        papers.cells.cache_clear()
        cells = answered(papers.cells, path)
        for cell in cells or ():
            assert 0 <= cell.accuracy_mean <= 100 and cell.paper in papers.PAPERS
    papers.cells.cache_clear()


# -------------------------------------------------------------------------------------------- runs, experts, rows, networks

TINY = replace(dm.PRESETS["tiny"], width=2, steps=3, real_batch=2)


def run_tiny(folder: Path, real: ImageSet, minutes: float = float("inf")) -> runs.Result:
    return runs.run(dm, TINY, folder, real=real, minutes=minutes, keep_checkpoint=True)


@pytest.fixture(scope="module")
def begun(home: Path, toy: ImageSet) -> dict[str, bytes]:
    """The files of a run that was left after its second step."""
    for _ in range(2):
        run_tiny(home / "begun", toy, minutes=1e-9)
    return Contents({path.name: path.read_bytes() for path in (home / "begun").iterdir()})


@pytest.fixture(scope="module")
def ended(home: Path, toy: ImageSet) -> dict[str, bytes]:
    run_tiny(home / "ended", toy)
    return Contents({path.name: path.read_bytes() for path in (home / "ended").iterdir()})


def lay(folder: Path, contents: dict[str, bytes | str]) -> Path:
    remove(folder)
    folder.mkdir()
    for name, content in contents.items():
        fill(folder / name, content)
    return folder


@fuzz(150)
@given(choice=st.data())
def test_a_run_with_a_damaged_file_ends_as_it_should_or_names_the_file(begun, ended, home, toy, choice):
    name = choice.draw(st.sampled_from(["config.json", "time.json", "metrics.csv", "checkpoint.safetensors"]))
    content = choice.draw(damaged(begun[name]) | STRANGE | (json_damage(json.loads(begun[name])) if name.endswith("json") else STRANGE))
    folder = lay(home / "hurt", {**begun, name: content})
    # a folder that holds another run's settings is refused by its own name
    result = answered(lambda: run_tiny(folder, toy), folder if name == "config.json" else folder / name)
    if result is not None:
        assert (folder / "distilled.safetensors").read_bytes() == ended["distilled.safetensors"]
        assert result.metrics()["step"] == [1, 2, 3] and 0 <= result.minutes < 1e9
        assert name == "metrics.csv" or (folder / "metrics.csv").read_bytes() == ended["metrics.csv"]
    assert not list(folder.glob(".*.part"))


def test_a_checkpoint_of_another_version_is_named(begun, home, toy):
    """Its checksum is right, and something is not there, has another shape or stands where something else should."""
    path = home / "other" / "checkpoint.safetensors"

    def refused(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
        lay(path.parent, begun)
        header, tensors = files.read_tree(path, "checkpoint")[0], files.read_tensors(path, "checkpoint")[1]
        change(header, tensors)
        forge(path, header, tensors)
        assert answered(lambda: run_tiny(path.parent, toy), path) is None
        assert (path.parent / "metrics.csv").read_bytes() == begun["metrics.csv"]

    parts = files.read_tree(home / "begun" / "checkpoint.safetensors", "checkpoint")[0]["tree"]["$dict"]
    for number, value in [(number, value) for number in range(len(parts)) for value in (None, [], {"$dict": []}, "x", 10**20)]:
        refused(lambda header, _, number=number: header["tree"]["$dict"].pop(number))
        refused(lambda header, _, number=number, value=value: header["tree"]["$dict"][number].__setitem__(1, value))
    for name in (".syn.images", ".syn.labels", ".rng"):
        refused(lambda _, tensors, name=name: tensors.pop(name))
        refused(lambda _, tensors, name=name: tensors.update({name: tensors[name].reshape(-1)[:1]}))
    refused(lambda header, _: header.pop("tree"))
    for index in (0, -1, 3, 2.0, True):
        refused(lambda header, _, index=index: header["tree"]["$dict"][0].__setitem__(1, index))


@fuzz(80)
@given(choice=st.data())
def test_a_finished_run_with_a_damaged_file_is_read_or_names_it(ended, home, toy, choice):
    name = choice.draw(st.sampled_from(["config.json", "time.json", "distilled.safetensors", "final.safetensors"]))
    content = choice.draw(damaged(ended[name]) | STRANGE | (json_damage(json.loads(ended[name])) if name.endswith("json") else STRANGE))
    folder = lay(home / "over", {**ended, name: content})
    result = answered(lambda: run_tiny(folder, toy), folder)
    state = answered(lambda: runs.read_checkpoint(folder), folder / "final.safetensors")
    assert state is None or state["index"] == 3
    assert result is None or torch.equal(result.syn.images, distilled.load(home / "ended" / "distilled.safetensors").images)


@pytest.fixture(scope="module")
def buffer(home: Path, toy: ImageSet) -> dict[str, bytes]:
    config = experts.ExpertConfig(dataset="toy", width=2, num_experts=1, epochs=2, batch_size=24)
    experts.train(toy, config, home / "buffer")
    return Contents({path.name: path.read_bytes() for path in (home / "buffer").iterdir()})


@fuzz(120)
@given(choice=st.data())
def test_a_damaged_buffer_of_experts_is_read_or_refused(buffer, home, choice):
    name = choice.draw(st.sampled_from(["config.json", "expert-00000.safetensors"]))
    content = choice.draw(json_damage(json.loads(buffer[name])) if name.endswith("json") else damaged(buffer[name]) | STRANGE)
    folder = lay(home / "experts", {**buffer, name: content})
    found = answered(lambda: experts.open_buffer(folder), folder)
    theta = answered(lambda: found and found.snapshots(0, 0, found.num_epochs), folder)
    if theta is not None:
        whole = experts.ExpertBuffer(home / "buffer", found.claim, [home / "buffer" / "expert-00000.safetensors"]).snapshots(0, 0, 2)
        assert torch.equal(theta, whole)


@fuzz(50)
@given(choice=st.data())
def test_a_forged_expert_is_refused(buffer, home, choice):
    folder = lay(home / "experts", buffer)
    path = folder / "expert-00000.safetensors"
    header, tensors = files.read_tensors(path, "expert")
    kind = header.pop("kind")
    forged = choice.draw(swapped(header))
    forge(path, {"kind": kind, **(forged if isinstance(forged, dict) else {})}, choice.draw(forged_tensors(Tensors(tensors))))
    answered(lambda: experts.open_buffer(folder).snapshots(0, 0, 2), path)


ROW = dict.fromkeys(evaluate.COLUMNS, "1") | {"dataset": "toy", "variant": "tau 8.0, width 4", "command": "python -m ddlib.methods.dm"}


@fuzz(150)
@given(choice=st.data())
def test_a_damaged_file_of_rows_gives_whole_rows_and_takes_new_ones_or_is_named(home, choice):
    path = home / "rows.csv"
    remove(path)
    for seed in range(3):
        evaluate.append_row(path, {**ROW, "seed": str(seed)})
    fill(path, choice.draw(damaged(path.read_bytes()) | STRANGE.filter(lambda each: each not in ("pipe", "device"))))
    rows = answered(lambda: evaluate.read_rows(path, evaluate.COLUMNS), path)
    assert all(set(row) == set(evaluate.COLUMNS) and None not in row.values() for row in rows or ())
    before = path.read_bytes() if path.is_file() else None
    if answered(lambda: evaluate.append_row(path, ROW | {"seed": "new"}) or True, path):
        again = answered(lambda: evaluate.read_rows(path, evaluate.COLUMNS), path)
        if again is not None:
            assert again[:-1] == (rows or []) and again[-1] == ROW | {"seed": "new"}
    else:
        assert before is None or path.read_bytes() == before


def test_a_row_cut_anywhere_does_not_swallow_the_next_one(home):
    """A disk that is full takes part of a line."""
    path = home / "cut.csv"
    remove(path)
    evaluate.append_row(path, ROW)
    first = len(path.read_bytes())
    evaluate.append_row(path, ROW | {"seed": "2"})
    whole = path.read_bytes()
    for length in range(first, len(whole), 3):
        path.write_bytes(whole[:length])
        evaluate.append_row(path, ROW | {"seed": "3"})
        rows = evaluate.read_rows(path)
        assert rows[0] == ROW and rows[-1] == ROW | {"seed": "3"}, length
        assert len(rows) == 2 or (len(rows) == 3 and length >= len(whole) - len(ROW["command"]) - 1), length


PROTOCOL = evaluate.with_options("strict-cpu", steps=1, repeats=1, width=2)


@fuzz(60)
@given(choice=st.data())
def test_a_damaged_network_of_an_evaluation_is_read_or_named(ended, home, toy, choice):
    folder = home / "networks"
    syn = distilled.load(home / "ended" / "distilled.safetensors")
    remove(folder)
    folder.mkdir()
    first = evaluate.train_network(syn, toy, PROTOCOL, 0, 0, folder)
    (path,) = folder.glob("network-*")
    if choice.draw(st.booleans()):
        fill(path, choice.draw(damaged(path.read_bytes()) | STRANGE))
    else:
        header, tensors = files.read_tensors(path, "network")
        kind = header.pop("kind")
        forged = choice.draw(swapped(header))
        forge(path, {"kind": kind, **(forged if isinstance(forged, dict) else {})}, choice.draw(forged_tensors(Tensors(tensors))))
    again = answered(lambda: evaluate.train_network(syn, toy, PROTOCOL, 0, 0, folder), path)
    if again is not None:
        assert again.net.state_dict().keys() == first.net.state_dict().keys() and again.seconds >= 0 and again.steps >= 1


# ------------------------------------------------------------------------------------------------------------ what is typed

WORDS = st.text(max_size=12) | st.sampled_from(["", "nan", "inf", "-1", "0", "1e400", "9" * 5000, "²", "٣", "1_0", "true", "None", "../x",
                                                "convnet3:²", "convnet3:0", "convnet3:9999999999999", "resnet18:", ":", "\x00", "\ud800"])
KNOWN = {"ipc": {"name": "ipc", "inferred_type_name": "int", "default": "1", "help": ""},
         "rate": {"name": "rate", "inferred_type_name": "float", "default": "0.5", "help": "# a rate"},
         "quick": {"name": "quick", "inferred_type_name": "bool", "default": "True", "help": ""},
         "preset": {"name": "preset", "inferred_type_name": "str", "default": '"tiny"', "help": ""},
         "odd": {"name": "odd", "inferred_type_name": "list", "default": "[]", "help": ""}}


@fuzz(200)
@given(given_=st.lists(st.tuples(st.sampled_from(sorted(KNOWN)) | WORDS, WORDS), max_size=3), name=WORDS)
def test_any_parameters_of_a_chapter_become_values_or_are_named(given_, name):
    with contextlib.suppress(ValueError):                        # an unknown name is answered with the list of all, a line each
        values = chapter.check_parameters("03_chapter", given_, KNOWN)
        types = {"ipc": int, "rate": float, "quick": bool, "preset": str}
        assert all(type(value) is types[name] for name, value in values.items())
    assert "/" not in chapter.settings(given_) and "\x00" not in chapter.settings(given_)
    answered(lambda: chapter.find(name, ROOT / "notebooks"))


@fuzz(200)
@given(text=WORDS | st.text(alphabet="flipcropsca_le,:x/0123456789", max_size=20))
def test_any_text_of_an_option_is_read_or_refused(toy, text):
    network = answered(lambda: methods.parse_network(text))
    assert network is None or network[1] is None or network[1] >= 1
    answered(lambda: augment.parse(text))
    answered(lambda: evaluate.with_options(text))
    answered(lambda: papers.parse_ipc(text))
    answered(lambda: papers.published(text))
    answered(lambda: data.load(text) if text not in data.DATASETS else None)
    answered(lambda: evaluate.with_options("strict", augment=text))


VALUES = {bool: st.booleans(), int: st.sampled_from([-1, 0, 1, 2, 3, 10**9, 10**30]),
          float: st.sampled_from([-1.0, 0.0, 1e-300, 0.5, 1.0, 1e300, float("nan"), float("inf"), -float("inf")]), str: WORDS}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.NAME)
@fuzz(40)
@given(choice=st.data())
def test_any_settings_of_a_method_make_a_config_or_are_refused(method, choice):
    tiny = method.PRESETS["tiny"]
    changes = choice.draw(st.dictionaries(st.sampled_from([field.name for field in fields(tiny)]), st.none(), min_size=1, max_size=3))
    changes = {name: choice.draw(VALUES[type(getattr(tiny, name))]) for name in changes}
    answered(lambda: replace(tiny, **changes))


@fuzz(60)
@given(text=st.from_regex(r"\A[0-9]{1,12}x[0-9]{1,3}/[0-9]{1,9}x[0-9]{1,2}\Z") | WORDS)
def test_any_poster_that_is_described_is_made_or_refused(toy, text):
    real = replace(toy, name="custom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poco, "distances", partial(lambda size, real: 1 - torch.eye(size), 4))
        answered(lambda: distilled.PosterSet.from_text(real, text, torch.Generator().manual_seed(0)))
