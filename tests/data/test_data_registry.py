import pytest

from clusterprune import data
from clusterprune.errors import ArgumentError, DataError


@pytest.mark.parametrize("spec", ["mnist", "", "CIFAR10:x", "/some/folder", None, 3])
def test_unknown_lists_the_accepted(spec):
    with pytest.raises(ArgumentError, match="digits, cifar10:DIR, cifar100:DIR, imagenet:DIR"):
        data.load(spec)


def test_sources_lists_the_accepted():
    assert data.sources()[0] == "digits"
    assert "folder:DIR" in data.sources()


@pytest.mark.parametrize("spec", ["folder", "cifar10:", "imagenet"])
def test_a_folder_is_needed(spec):
    with pytest.raises(ArgumentError, match="names no folder"):
        data.load(spec)


def test_digits_take_none():
    with pytest.raises(ArgumentError, match="takes no folder"):
        data.load("digits:x")


@pytest.mark.parametrize("name", ["folder", "cifar10", "cifar100", "imagenet"])
def test_missing_folder(name, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        data.load(f"{name}:{tmp_path / 'nowhere'}")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(DataError, match="unpack it"):
        data.load(f"folder:{tmp_path / 'a.tar.gz'}")


@pytest.mark.parametrize("size", [0, -3, 1.5, True, "8"])
def test_image_size(size):
    with pytest.raises(ArgumentError, match="image_size"):
        data.load("digits", image_size=size)
