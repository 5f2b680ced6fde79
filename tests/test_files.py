"""Files are whole or absent, and a damaged one is recognised."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from ddlib import files

HEADER = {"classes": ["a", "b"], "budget": 6}
TENSORS = {"images": torch.arange(6.0).reshape(2, 3), "labels": torch.tensor([0, 1]),
           "empty": torch.empty(0, 3), "scalar": torch.tensor(0.5)}


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "set.safetensors"
    files.write_tensors(path, "distilled/pixels", HEADER, TENSORS)
    return path


def test_what_is_written_is_read_back(stored):
    header, tensors = files.read_tensors(stored, "distilled")
    assert header == {"format": files.FORMAT, "kind": "distilled/pixels", **HEADER}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_the_same_content_gives_the_same_bytes(stored, tmp_path):
    again = tmp_path / "again.safetensors"
    files.write_tensors(again, "distilled/pixels", HEADER, dict(reversed(TENSORS.items())))
    assert again.read_bytes() == stored.read_bytes()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.whole(path) as part:
        part.write_text("half of the n")
        raise RuntimeError("power cut")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_file_is_never_seen_half_written(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda part, target: seen.append(path.read_text()) or replace(part, target))
    files.write_text(path, "new")
    assert seen == ["old"] and path.read_text() == "new"


def test_a_truncated_file_is_refused_at_every_length(stored):
    content = stored.read_bytes()
    for length in range(0, len(content), 7):
        stored.write_bytes(content[:length])
        for read in (files.read_tensors, files.read_header, files.verify):
            with pytest.raises(ValueError, match="damaged|not written by ddlib|altered"):
                read(stored, "distilled")


def test_a_flipped_bit_is_noticed_wherever_it_is(stored):
    content = stored.read_bytes()
    for place in range(8, len(content)):                       # header and data; the first 8 bytes are the header's length
        changed = bytearray(content)
        changed[place] ^= 1
        stored.write_bytes(changed)
        try:
            header, tensors = files.read_tensors(stored, "distilled")
        except ValueError as error:
            assert str(stored) in str(error)
            with pytest.raises(ValueError) as other:
                files.verify(stored, "distilled")
            assert str(other.value) == str(error)
        else:                                                  # white space of the outer JSON may change freely
            assert header["classes"] == HEADER["classes"] and torch.equal(tensors["images"], TENSORS["images"])
            files.verify(stored, "distilled")


@pytest.mark.parametrize("piece", [1, 5, 24, 2**20])
def test_a_file_is_verified_in_pieces_of_any_size(stored, monkeypatch, piece):
    monkeypatch.setattr(files, "PIECE", piece)
    files.verify(stored, "distilled")
    content = stored.read_bytes()
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="its checksum differs"):
        files.verify(stored, "distilled")


def test_a_header_is_read_without_the_tensors(stored):
    content = stored.read_bytes()
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    header, shapes = files.read_header(stored, "distilled")
    assert header == {"format": files.FORMAT, "kind": "distilled/pixels", **HEADER}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def test_the_checksum_of_a_set_is_the_one_that_files_have_had_from_the_start():
    """Files that are on disk, and names that were made of checksums, stay good."""
    tensors = {"a": torch.tensor([[1.0, 2.0]]).T, "b": torch.tensor(True), "c": torch.empty(0, 3)}
    assert files.digest({"x": 1}, tensors) == "6b549fb4de04cb4b6bc30c239b8e468097cb127f83f6e452f06a32485d1859b4"


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="not written by ddlib"):
        files.read_tensors(tmp_path / "net.safetensors", "distilled")


def test_a_newer_format_and_another_kind_are_refused(tmp_path):
    header = {"format": files.FORMAT + 1, "kind": "distilled/pixels"}
    metadata = {"ddlib": json.dumps({"header": header, "sha256": files.digest(header, {})})}
    save_file({}, tmp_path / "new.safetensors", metadata)
    with pytest.raises(ValueError, match="update ddlib"):
        files.read_tensors(tmp_path / "new.safetensors", "distilled")
    files.write_tensors(tmp_path / "net.safetensors", "network", {}, {})
    with pytest.raises(ValueError, match="'network' where 'distilled' is wanted"):
        files.read_tensors(tmp_path / "net.safetensors", "distilled")


def test_a_missing_file_says_so(tmp_path):
    for read in (files.read_tensors, files.read_header, files.verify):
        with pytest.raises(FileNotFoundError, match="is missing"):
            read(tmp_path / "none.safetensors", "distilled")


def test_a_tree_survives_flattening():
    tree = {"index": 3, "optimizer": {"state": {0: {"momentum": torch.ones(2), "step": None}}, "groups": [{"lr": 0.1, "params": [0]}]}}
    tensors = {}
    flat = json.loads(json.dumps(files.flatten_tree(tree, tensors)))
    back = files.unflatten_tree(flat, tensors)
    assert torch.equal(back["optimizer"]["state"][0].pop("momentum"), tree["optimizer"]["state"][0].pop("momentum"))
    assert back == tree
