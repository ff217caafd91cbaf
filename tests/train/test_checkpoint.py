import contextlib
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clusterprune.errors import WeightsError
from clusterprune.train import checkpoint
from clusterprune.train.checkpoint import Header, Tally

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.empty(0, 3),
    "rng": torch.arange(20, dtype=torch.uint8),
}
HEADER = Header(
    epoch=2,
    step=3,
    history=[{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 1 / 3}],
    tally=Tally(loss=1e-17, correct=5, images=9, seconds=0.5),
    config={"lr": 0.1, "name": "Müller"},
    data={},
    environment={},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint.FILE_NAME
    checkpoint.write(path, TENSORS, HEADER)
    return path


def test_it_returns_what_was_written(path: Path) -> None:
    tensors, header = checkpoint.read(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_every_truncation_is_found(path: Path) -> None:
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(20, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"cannot be read .*; delete it to start over"):
            checkpoint.read(path)


def test_every_flipped_byte_is_found(path: Path) -> None:
    content = path.read_bytes()
    found = len(range(0, len(content), 11))
    for at in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with contextlib.suppress(WeightsError):
            tensors, header = checkpoint.read(path)
            # Only in the file's layout can a byte change and nothing be lost.
            assert header == HEADER
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
            found -= 1
    assert found > 0.9 * len(range(0, len(content), 11))


def _rewrite(path: Path, tensors: dict[str, Tensor], **fields: object) -> None:
    text = json.dumps({**HEADER.model_dump(), **fields})
    save_file(tensors, path, {"clusterprune": text, "sha256": checkpoint._digest(text, tensors)})


def test_other_files_and_versions_are_told_apart(path: Path) -> None:
    save_file(TENSORS, path)
    with pytest.raises(WeightsError, match="no training checkpoint"):
        checkpoint.read(path)
    _rewrite(path, TENSORS, format=99)
    with pytest.raises(WeightsError, match=r"format 99, .*update clusterprune"):
        checkpoint.read(path)
    _rewrite(path, TENSORS, epoch="many")
    with pytest.raises(WeightsError, match="makes no sense"):
        checkpoint.read(path)
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoint.read(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(path, {}, HEADER)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_new_file_is_on_disk_before_it_takes_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("fsync")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    checkpoint.write(path, TENSORS, HEADER)
    assert calls[:2] == ["fsync", "replace"]
