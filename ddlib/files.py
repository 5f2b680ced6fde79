"""Files that are whole or absent: atomic writes, and tensors with a JSON header that nobody has to trust.

A tensor file is safetensors. Its metadata holds one JSON header and the SHA-256 of header and tensors, so a truncated,
foreign, altered or newer file is recognised before any of it is used. Nothing here pickles or unpickles.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1    # raised when a reader of the old layout would misunderstand the new one
PIECE = 2**20                                                    # bytes that `verify` reads at a time


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yield a sibling path to write to; it becomes `path` in one rename if the block succeeds, and vanishes if it fails.

    The sibling's name is fixed (`.NAME.part`), so what a killed process left behind is overwritten by the next try.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)                                 # it may be a link to somewhere else
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def lock(path: Path | str, seconds: float = 0.0, waiting: str = "") -> IO[str]:
    """The lock file `path`, locked until it is closed or the process ends; BlockingIOError if another holds it after so long.

    waiting: what to print once, on stderr, when there is something to wait for.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as failed:
        file = failed.enter_context(open(path, "w"))
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            if waiting:
                print(waiting, file=sys.stderr)
                waiting = ""
            time.sleep(0.1)
        failed.pop_all()
    return file


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header's JSON and every tensor's name, type, shape and bytes."""
    flat = {name: tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
    return _digest(header, tensors, lambda name: [flat[name]])


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor], pieces: Callable[[str], Iterable[Any]]) -> str:
    """`digest`, where `pieces` gives the bytes of a named tensor one after the other."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        for piece in pieces(name):
            sha.update(piece)
    return sha.hexdigest()


def write_tensors(path: Path | str, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors and a JSON-able header to `path` (safetensors), whole or not at all."""
    header = {"format": FORMAT, "kind": kind, **header}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one key only: safetensors keeps several in random order, and the same content should give the same bytes
    metadata = {"ddlib": json.dumps({"header": header, "sha256": digest(header, stored)}, sort_keys=True)}
    with whole(path) as part:
        save_file(stored, part, metadata)


def read_tensors(path: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote: (header, tensors on the CPU).

    Raises FileNotFoundError when there is no such file and ValueError, in one sentence, when the file is truncated,
    not ours, of another kind, from a newer version or altered.
    """
    with _opened(path, kind) as (header, checksum, file):
        tensors = {name: file.get_tensor(name) for name in file.keys()}    # noqa: SIM118 - safe_open is no mapping
        _compare(path, digest(header, tensors), checksum)
    return header, tensors


def read_header(path: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(header, shapes of the tensors) of what `write_tensors` wrote, at once however large it is.

    Raises what `read_tensors` raises, except that altered bytes are not noticed (a wrong size is).
    """
    with _opened(path, kind) as (header, _, file):
        return header, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}    # noqa: SIM118


def verify(path: Path | str, kind: str) -> None:
    """Raise what `read_tensors` would raise, for files larger than memory."""
    with _opened(path, kind) as (header, checksum, file), open(path, "rb") as raw:
        start = 8 + int.from_bytes(raw.read(8), "little")        # safetensors: a length, so much JSON, the tensors' bytes
        layout = json.loads(raw.read(start - 8))

        def pieces(name: str) -> Iterator[bytes]:                # read, not mapped: mapped pages would count as our memory
            first, last = layout[name]["data_offsets"]
            raw.seek(start + first)
            for left in range(last - first, 0, -PIECE):
                yield raw.read(min(PIECE, left))

        tensors = {name: file.get_tensor(name) for name in layout if name != "__metadata__"}    # mapped, and never looked into
        _compare(path, _digest(header, tensors, pieces), checksum)


@contextmanager
def _opened(path: Path | str, kind: str) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(header, checksum, the open file), once they are known to be ours; every way to be damaged becomes one ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: give the path of a file that ddlib has saved")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "ddlib" not in metadata:
                raise ValueError(f"{path} was not written by ddlib (its header is missing): save the set with ddlib first")
            stored = _parsed(metadata["ddlib"])
            header, checksum = stored["header"], stored["sha256"]
            if header.get("format", 0) > FORMAT:
                raise ValueError(f"{path} has format {header['format']} and this ddlib reads up to {FORMAT}: update ddlib")
            if header.get("kind", "").split("/")[0] != kind:
                raise ValueError(f"{path} holds {header.get('kind')!r} where {kind!r} is wanted")
            yield header, checksum, file
    except (SafetensorError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): restore it or make it again") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:                                  # no JSON, or a number of more digits than Python reads
        raise TypeError(error) from None


def _compare(path: Path | str, found: str, checksum: str) -> None:
    if found != checksum:
        raise ValueError(f"{path} was altered after it was saved (its checksum differs): restore it or make it again")


def flatten_tree(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Replace every tensor of nested dicts, lists and tuples by a reference and collect it in `tensors`."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"$tensor": name}
    if isinstance(tree, Mapping):
        return {"$dict": [[key, flatten_tree(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [flatten_tree(value, tensors, f"{name}.{index}") for index, value in enumerate(tree)]
    return tree


def read_tree(path: Path | str, kind: str) -> tuple[dict[str, Any], Any]:
    """(header, tree) of a file whose header has, as "tree", what `flatten_tree` made of the tree and collected as its tensors.

    Raises what `read_tensors` raises, and ValueError where header and tensors do not make a tree.
    """
    header, tensors = read_tensors(path, kind)
    try:
        return header, unflatten_tree(header["tree"], tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is incomplete ({error!r}): restore it or make it again") from None


def unflatten_tree(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `flatten_tree` (tuples come back as lists)."""
    if isinstance(tree, dict) and "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if isinstance(tree, dict):
        return {key: unflatten_tree(value, tensors) for key, value in tree["$dict"]}
    if isinstance(tree, list):
        return [unflatten_tree(value, tensors) for value in tree]
    return tree
