"""Where a sweep is kept: a folder that all workers see, which they work in, or an fsspec address ("s3://bucket/sweep").

An address is worked on in scratch folders: what is there is fetched first, what has changed is sent at intervals and at the
end, so that a run goes on elsewhere when its machine is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SEND_SECONDS = 30.0                                              # between two sendings of what a run has written so far
READ_BACK_SECONDS = 1.0                                          # after which of two that came at once only one is in an address
# folders of that name, and of a process of this machine, hold what lies far away
SCRATCH = f"ddlib-sweep-{re.sub(r'[^A-Za-z0-9]', '', socket.gethostname())}-"
State = tuple[int, int]


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def state(path: Path) -> State:
    """Time of change and size of a file."""
    return path.stat().st_mtime_ns, path.stat().st_size


class Store:
    """address: a folder or an fsspec address. shared: the folder of expert buffers and GANs (of an address: a scratch one)."""

    def __init__(self, address: str, shared: str = ""):
        self.remote = "://" in address
        self.address = address.rstrip("/") if self.remote else str(Path(address).expanduser().resolve())
        self.shared = Path(shared or self.address).expanduser().resolve() / ("" if shared else "shared")
        if self.remote and shared:
            raise ValueError(f"shared is for sweeps in a folder; at {self.address} experts and GANs lie with their tasks: leave it out")
        if self.remote:
            self.fs                                              # noqa: B018 - an unknown protocol is an error now

    @property
    def fs(self) -> Any:
        """The file system of an address, which remembers no listing: others write there."""
        import fsspec

        return fsspec.core.url_to_fs(self.address, use_listings_cache=False)[0]

    def path(self, *parts: str) -> str:
        """The full path or address of a file of the sweep."""
        return "/".join([self.address, *parts])

    def folders(self) -> list[str]:
        """Names of what lies in the sweep."""
        try:
            if not self.remote:
                return os.listdir(self.address)
            return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.address, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:                               # the first contact, and storage has errors of its own
            raise OSError(f"{self.address} cannot be reached ({first_line(error)}): mend that, or choose another --out") from None

    def read(self, *parts: str) -> bytes | None:
        """A small file, None where there is none."""
        try:
            if not self.remote:
                return Path(self.path(*parts)).read_bytes()
            return self.fs.cat_file(self.path(*parts))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, *parts: str) -> str:
        """SHA-256 of a file, "" where there is none."""
        try:
            with self.fs.open(self.path(*parts), "rb") if self.remote else open(self.path(*parts), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return ""

    @contextmanager
    def open(self, name: str, needs: Sequence[str] = ()) -> Iterator[tuple[Path, Path]]:
        """Work in the folder `name` of the sweep: (it, the folder that DDLIB_RUNS should name), both on this machine.

        needs: the folders of tasks whose buffers and GANs are used.
        """
        if not self.remote:
            folder = Path(self.path(name))
            folder.mkdir(parents=True, exist_ok=True)
            yield folder, self.shared
            return
        clear_scratch()
        with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
            folder = Path(scratch, name)
            home = Path(scratch, "home") if needs else folder / "home"      # what a run trains for itself is kept with it
            sent, ended = self.fetch(name, folder), threading.Event()
            for need in needs:
                self.fetch(f"{need}/home", home)
            sender = threading.Thread(target=self.send_at_intervals, args=(folder, name, sent, ended), daemon=True)
            sender.start()
            try:
                yield folder, home
            finally:
                ended.set()
                sender.join()
                self.send(folder, name, sent)

    def fetch(self, name: str, folder: Path) -> dict[Path, State]:
        """Copy a folder of the sweep, as far as there is one, to this machine; returns what was copied."""
        folder.mkdir(parents=True, exist_ok=True)
        fetched: dict[Path, State] = {}
        root = self.fs._strip_protocol(self.path(name))
        for path in self.fs.find(root) if self.fs.exists(root) else []:
            target = folder / path[len(root):].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(path, str(target))
            fetched[target] = state(target)
        return fetched

    def send_at_intervals(self, folder: Path, name: str, sent: dict[Path, State], ended: threading.Event) -> None:
        while not ended.wait(SEND_SECONDS):
            try:
                self.send(folder, name, sent)
            except Exception as error:                           # the last sending, which must succeed, says so again
                print(f"sweep: {self.path(name)} could not be written ({first_line(error)})", flush=True)

    def send(self, folder: Path, name: str, sent: dict[Path, State]) -> None:
        """Bring the sweep's copy up to date with `folder`, of which `sent` is known to be there; a record goes last."""
        target = lambda path: self.path(name, path.relative_to(folder).as_posix())
        # a checkpoint goes with metrics that reach at least as far (more are cut): it is copied before them and sent after them
        order = sorted((path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")),
                       key=lambda path: (path.name == "record.json", path.suffix == ".safetensors"))
        with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as still:
            copies: dict[Path, tuple[Path, State]] = {}
            for path in reversed(order):
                with suppress(FileNotFoundError):                # a checkpoint that has just given way to the finished set
                    if sent.get(path) != (now := state(path)):
                        copies[path] = Path(shutil.copy(path, Path(still, str(len(copies))))), now
            for path in filter(copies.__contains__, order):
                self.put_whole(copies[path][0], target(path))
                sent[path] = copies[path][1]
        if not folder.is_dir():
            raise OSError(f"{folder} has gone while a run worked in it: was the folder for temporary files cleared?")
        for path in [path for path in sent if not path.is_file()]:       # last: a checkpoint's successor is there by now
            with suppress(FileNotFoundError):
                self.fs.rm_file(target(path))
            del sent[path]

    def put(self, path: Path, *parts: str) -> None:
        """Copy one file into the sweep, unless it is there by itself."""
        if self.remote:
            self.put_whole(path, self.path(*parts))

    def put_whole(self, path: Path, target: str) -> None:
        """Copy a file to an address, whole or not at all: object stores do it so, a disk needs a rename."""
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if "file" in self.fs.protocol:
            self.fs.put_file(str(path), f"{target}.part")
            self.fs.mv(f"{target}.part", target)
        else:
            self.fs.put_file(str(path), target)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold an address as long as this process lives: a note there, renewed every SEND_SECONDS; ValueError if another holds it.

        Who finds a note waits for it to be renewed, so that no two clocks have to agree; that of a process of this machine which
        has ended counts for nothing. Of two that come at once the one whose note stays goes on.
        """
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "sweep": uuid.uuid4().hex}
        note, ended = self.path("driver.json"), threading.Event()

        def say(count: int) -> None:
            with tempfile.NamedTemporaryFile("w", prefix="ddlib-note-") as file:
                file.write(json.dumps(mine | {"count": count}))
                file.flush()
                self.put_whole(Path(file.name), note)

        def there() -> dict[str, Any]:
            try:
                found = json.loads(self.read("driver.json") or b"{}")
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}

        def refuse(other: Mapping[str, Any]) -> None:
            raise ValueError(f"another process, {other.get('pid')} on {other.get('host')}, is working in {self.address}: "
                             "wait for it or choose another --out")

        def renew() -> None:
            count = 1
            while not ended.wait(SEND_SECONDS):
                with suppress(Exception):                        # far away: the next one may arrive
                    if there().get("sweep", mine["sweep"]) == mine["sweep"]:
                        say(count := count + 1)

        try:
            found = there()
            if found and not (found.get("host") == mine["host"] and not lives(found.get("pid"))):
                print(f"{note} is of a sweep on {found.get('host')}: looking whether it is still running", flush=True)
                time.sleep(1.5 * SEND_SECONDS)
                if (now := there()) not in ({}, found):
                    refuse(now)
            say(0)
            time.sleep(READ_BACK_SECONDS)
            if (now := there()).get("sweep", mine["sweep"]) != mine["sweep"]:
                refuse(now)
        except (OSError, ValueError):
            raise
        except Exception as error:                               # storage has errors of its own
            raise OSError(f"{note} cannot be written ({first_line(error)}): mend that, or choose another --out") from None
        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with suppress(Exception):
                if there().get("sweep") == mine["sweep"]:
                    self.fs.rm_file(note)


def lives(pid: Any) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def clear_scratch() -> None:
    """Remove what killed workers of this machine have left in the folder for temporary files."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        if (owner := left.name.removeprefix(SCRATCH).split("-")[0]).isdigit() and not lives(owner):
            shutil.rmtree(left, ignore_errors=True)
