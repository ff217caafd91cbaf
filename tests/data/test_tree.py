import pytest
from PIL import Image

from clusterprune import data
from clusterprune.errors import ArgumentError, DataError


class TestFolder:
    @pytest.mark.parametrize("name", ["test", "val"])
    def test_contents(self, tree, name):
        root = tree({"train": {"cat": 3, "ant": 2}, name: {"ant": 1, "cat": 1}})
        dataset = data.load(f"folder:{root}")
        assert dataset.classes == ("ant", "cat")
        assert dataset.train.load()[1].tolist() == [0, 0, 1, 1, 1]
        assert dataset.train.images()[:, 0, 0, 0].tolist() == [3, 4, 0, 1, 2]
        assert dataset.test.load()[1].tolist() == [0, 1]
        assert str(root) in dataset.name

    def test_test_comes_before_val(self, tree):
        root = tree({"train": {"a": 1}, "val": {"a": 2}, "test": {"a": 3}})
        assert len(data.load(f"folder:{root}").test) == 3

    def test_only_test(self, tree):
        dataset = data.load(f"folder:{tree({'test': {'a': 2}})}")
        assert len(dataset.test) == 2
        with pytest.raises(DataError, match="no train images"):
            _ = dataset.train

    def test_neither(self, tree):
        with pytest.raises(DataError, match=r"no folder train/.*test/ or val/"):
            data.load(f"folder:{tree({'other': {'a': 2}})}")

    def test_no_classes(self, tmp_path):
        (tmp_path / "train").mkdir()
        with pytest.raises(DataError, match="has no class folders"):
            data.load(f"folder:{tmp_path}")

    def test_loose_images_are_not_classes(self, tmp_path):
        (tmp_path / "train").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "train/a.png")
        with pytest.raises(DataError, match="only 1 loose images"):
            data.load(f"folder:{tmp_path}")

    def test_class_empty_everywhere_is_skipped_and_named(self, tree):
        root = tree({"train": {"a": 2, "b": 0}})
        with pytest.warns(data.EmptyClassWarning, match=r"'.*b' has no images"):
            dataset = data.load(f"folder:{root}")
        assert dataset.classes == ("a",)

    def test_class_empty_in_test_keeps_its_label(self, tree):
        root = tree({"train": {"a": 1, "b": 2}, "test": {"a": 0, "b": 1}})
        with pytest.warns(data.EmptyClassWarning):
            dataset = data.load(f"folder:{root}")
        assert dataset.classes == ("a", "b")
        assert dataset.test.load()[1].tolist() == [1]

    def test_class_empty_in_train_only(self, tree):
        root = tree({"train": {"a": 0, "b": 2}, "test": {"a": 1, "b": 1}})
        with (
            pytest.warns(data.EmptyClassWarning),
            pytest.raises(DataError, match="no images of class 'a'"),
        ):
            data.load(f"folder:{root}")

    def test_all_classes_empty(self, tree):
        with pytest.raises(DataError, match=r"no class folder of .* has an image"):
            data.load(f"folder:{tree({'train': {'a': 0}})}")

    @pytest.mark.parametrize(
        ("train", "test", "words"),
        [
            ({"a": 1, "b": 1, "c": 1}, {"a": 1}, r"test' lacks the class folder\(s\) 'b', 'c'"),
            ({"a": 1}, {"a": 1, "b": 1}, r"train' lacks the class folder\(s\) 'b'"),
        ],
    )
    def test_class_mismatch_names_the_missing(self, tree, train, test, words):
        with pytest.raises(DataError, match=words):
            data.load(f"folder:{tree({'train': train, 'test': test})}")

    def test_hidden_and_foreign_files_are_passed_over(self, tree):
        root = tree({"train": {"a": 2}})
        (root / "train/a/notes.txt").touch()
        (root / "train/a/._000.png").touch()
        (root / "train/.cache").mkdir()
        assert len(data.load(f"folder:{root}").train) == 2

    def test_nested_folders_belong_to_their_class(self, tree):
        root = tree({"train": {"a": 2}})
        (root / "train/a/more").mkdir()
        Image.new("RGB", (12, 12)).save(root / "train/a/more/x.png")
        assert data.load(f"folder:{root}").train.load()[1].tolist() == [0, 0, 0]

    def test_image_size_applies_to_all(self, tree):
        dataset = data.load(f"folder:{tree({'train': {'a': 2}})}", image_size=20)
        assert dataset.train.images().shape == (2, 3, 20, 20)
        assert next(dataset.train.batches(1))[0].shape == (1, 3, 20, 20)


class TestUnlabelled:
    def test_flat_and_nested(self, tree):
        root = tree({"train": {"a": 2}})
        Image.new("RGB", (5, 9)).save(root / "x.jpg")
        split = data.unlabelled(root, 8)
        assert len(split) == 3
        assert split.labels is None
        assert split.images().shape == (3, 3, 8, 8)
        assert split[0][1] == -1
        assert next(split.batches(4))[1].tolist() == [-1, -1, -1]

    def test_no_images(self, tmp_path):
        with pytest.raises(DataError, match="has no image"):
            data.unlabelled(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            data.unlabelled(tmp_path / "x")

    def test_size(self, tmp_path):
        with pytest.raises(ArgumentError, match="size"):
            data.unlabelled(tmp_path, 0)


class TestImageNet:
    def test_contents(self, tree):
        root = tree({"train": {"n02": 1, "n01": 1}, "val": {"n01": 1, "n02": 1}})
        dataset = data.load(f"imagenet:{root}")
        assert dataset.classes == ("n01", "n02")
        assert dataset.test.images().shape == (2, 3, 224, 224)
        assert data.load(f"imagenet:{root}", image_size=32).train.shape == (3, 32, 32)

    def test_test_folder_does_not_count(self, tree):
        dataset = data.load(f"imagenet:{tree({'train': {'n01': 1}, 'test': {'n01': 1}})}")
        with pytest.raises(DataError):
            _ = dataset.test
