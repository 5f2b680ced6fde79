"""The two commands, the lists of dependencies and the lock agree with each other, and the core needs nothing but itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "constraints.txt").read_text().splitlines()
REQUIRED = {"torch", "torchvision", "jupyterlab", "jupytext", "matplotlib", "ipywidgets", "nbval", "papermill"}


def by_name(lines: list[str]) -> dict[str, str]:
    """Canonical name to specifier."""
    return {canonicalize_name(Requirement(line).name): str(Requirement(line).specifier) for line in lines}


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def pip_list() -> list[str]:
    listed = next(entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict))
    return [line for line in listed if not line.startswith("-")]


def test_environment_file_repeats_the_dependencies_and_the_extras_book_and_test():
    assert by_name(pip_list()) == by_name(PROJECT["dependencies"] + EXTRAS["book"] + EXTRAS["test"])


def test_environment_file_has_the_required_packages_and_the_oldest_python():
    assert by_name(pip_list()).keys() >= REQUIRED
    assert environment()["channels"] == ["conda-forge"]
    assert "python=" + PROJECT["requires-python"].removeprefix(">=") in environment()["dependencies"]
    assert "--editable ." in next(entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict))


@pytest.mark.parametrize("extra", ["dependencies", *EXTRAS])
def test_lock_pins_every_requirement_to_a_version_that_it_allows(extra):
    pinned: dict[str, list[str]] = {}
    for line in LOCK:
        requirement = Requirement(line)
        pinned.setdefault(canonicalize_name(requirement.name), []).append(next(iter(requirement.specifier)).version)
    for line in PROJECT["dependencies"] if extra == "dependencies" else EXTRAS[extra]:
        requirement = Requirement(line)
        versions = pinned.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not in constraints.txt; run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), f"{line} excludes the locked {versions}"


def test_lock_holds_exact_versions_only_and_says_nothing_of_where_it_was_made():
    for line in LOCK:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .+)?", line), line


def test_core_imports_with_nothing_but_torch_torchvision_numpy_and_safetensors():
    """Everything else is an extra, imported where it is used; plots, widgets, chapter and sweep are extras as a whole."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "ddlib").rglob("*.py"))
        if path.stem not in {"plots", "widgets", "chapter", "sweep", "__main__"}
    ]
    extras = {canonicalize_name(Requirement(line).name).replace("-", "_") for lines in EXTRAS.values() for line in lines}
    program = f"""
import importlib, sys
import torch, torchvision, torchvision.datasets, torchvision.models, numpy, safetensors.torch
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(extras | {"IPython", "tqdm", "pandas", "scipy", "sklearn", "yaml", "requests"})!r}:
            raise ImportError("the core must not import " + name)
for name in {sorted(extras | {"IPython"})!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Block())
for name in {modules!r}:
    importlib.import_module(name)
print("imported", len({modules!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"imported {len(modules)}" in done.stdout


def make(*arguments: str, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=variables)


def fake_python(folder: Path, script: str) -> Path:
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_make_without_a_target_explains_itself_and_installs_nothing(tmp_path):
    done = make(f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 0
    for target in ("run", "test", "lab", "notebooks", "book", "bench", "clean"):
        assert f"make {target}" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_make_names_the_python_that_it_needs_if_this_one_is_too_old(tmp_path):
    old = fake_python(tmp_path, 'if [ "$1" = --version ]; then echo Python 3.8.10; else exit 1; fi')
    done = make("run", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "3.11 or newer" in done.stderr and "3.8.10" in done.stderr and "PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_says_so_if_there_is_no_python_at_all(tmp_path):
    done = make("run", f"PYTHON={tmp_path / 'missing'}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "3.11 or newer" in done.stderr


def test_make_names_the_missing_venv_module(tmp_path):
    bare = fake_python(tmp_path, 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    done = make("run", f"PYTHON={bare}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr


def test_make_passes_the_chapter_and_its_arguments_on(tmp_path):
    done = make("--dry-run", "run", "CHAPTER=03_distribution_matching", "ARGS=-p ipc 10", f"VENV={tmp_path / 'venv'}")
    assert "-m ddlib.chapter 03_distribution_matching -p ipc 10" in done.stdout
    assert "--constraint constraints.txt" in done.stdout


def test_the_check_that_a_server_runs_is_make_test_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1].endswith("exec make test")


def test_citation_file_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
