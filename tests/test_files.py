import os
from pathlib import Path

import pytest

from clusterprune.errors import OutputError
from clusterprune.files.writing import atomic_folder


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_everything_arrives_together(tmp_path: Path):
    target = tmp_path / "deep" / "er" / "out"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_bytes(b"2")
        assert not target.exists()
    assert listing(target) == ["a", "sub", "sub/b"]
    assert listing(target.parent) == ["out", "out/a", "out/sub", "out/sub/b"]
    assert (target / "a").read_text() == "1"


def test_an_empty_folder_may_be_there(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("1")
    assert listing(tmp_path) == ["out", "out/a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_inside_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    def fail() -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("1")
            raise error("inside")

    with pytest.raises(OutputError if error is OSError else error, match="inside"):
        fail()
    assert listing(tmp_path) == []


def test_an_empty_folder_survives_a_failure(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out"):
        raise RuntimeError
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_is_there_is_never_touched(tmp_path: Path, kind: str):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"exists and is not empty; choose another"), atomic_folder(target):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"out: No space left on device; nothing was left"):  # noqa: SIM117
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("1")
    assert listing(tmp_path) == []


def test_a_disk_that_is_full_while_the_block_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device"):  # noqa: SIM117
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("1")
    assert listing(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_a_parent_that_may_not_be_written(plain_folder: Path):
    plain_folder.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write beside"), atomic_folder(plain_folder / "out"):
        pytest.fail("the block must not run")


def test_someone_else_was_faster(tmp_path: Path):
    target = tmp_path / "out"

    def write() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "a").write_text("mine")
            target.mkdir()
            (target / "a").write_text("theirs")

    with pytest.raises(OutputError, match="cannot write"):
        write()
    assert listing(tmp_path) == ["out", "out/a"]
    assert (target / "a").read_text() == "theirs"
