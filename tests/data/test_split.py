import itertools
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from clusterprune import data
from clusterprune.data import store
from clusterprune.errors import ArgumentError, DataError


@pytest.fixture
def digits():
    return data.load("digits").train


def memory_split(count=10, classes=2):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return data.Split.from_tensors(images.contiguous(), torch.arange(count) % classes)


def spoil(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_from_tensors_keeps_pixels_labels_and_names():
    split = memory_split()
    assert len(split) == 10
    assert split.classes == ("0", "1")
    image, label = split[3]
    assert image.unique().tolist() == [3]
    assert label == 1
    assert split[-1][0].unique().tolist() == [9]
    assert split.shape == (3, 4, 4)


def test_iterating_a_split_ends():
    assert [label for _, label in memory_split()] == [0, 1] * 5


@pytest.mark.parametrize(
    ("images", "labels", "classes", "words"),
    [
        (torch.zeros(2, 3, 4, 4), None, None, "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), None, None, "shape"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), None, "labels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), None, "int64"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), ["a", "b"], r"0\.\.1"),
    ],
)
def test_from_tensors_refuses_what_does_not_fit(images, labels, classes, words):
    with pytest.raises(ArgumentError, match=words):
        data.Split.from_tensors(images, labels, classes)


def test_subset_of_a_subset_counts_in_the_subset():
    part = memory_split().subset([8, 2, 4]).subset(torch.tensor([2, 0]))
    assert part.images()[:, 0, 0, 0].tolist() == [4, 8]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 0]


def test_a_mask_selects():
    mask = torch.arange(10) > 7
    assert memory_split().subset(mask).images()[:, 0, 0, 0].tolist() == [8, 9]


@pytest.mark.parametrize("indices", [[10], [-1], [0.5], [[0, 1]], [True, False]])
def test_bad_indices_are_refused(indices):
    with pytest.raises(ArgumentError):
        memory_split().images(indices)


def test_no_indices_give_no_images():
    assert memory_split().images([]).shape == (0, 3, 4, 4)


def test_images_are_a_copy():
    split = memory_split()
    split.images().zero_()
    assert split.images().sum() > 0


def test_batches_cover_every_image_once_in_order():
    batches = list(memory_split().batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.cat([images[:, 0, 0, 0] for images, _ in batches]).tolist() == list(range(10))


def test_drop_last_drops_only_a_partial_batch():
    assert [len(y) for _, y in memory_split().batches(4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in memory_split().batches(5, drop_last=True)] == [5, 5]


def test_shuffling_depends_on_the_seed_alone(digits):
    def order(seed):
        return torch.cat([y for _, y in digits.batches(100, shuffle=True, seed=seed)])

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))
    assert torch.equal(order(1).sort().values, digits.labels.sort().values)


def test_shuffled_labels_belong_to_their_images():
    for images, labels in memory_split().batches(3, shuffle=True, seed=5):
        assert torch.equal(images[:, 0, 0, 0].long() % 2, labels)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 2, "size": 0}])
def test_bad_batches_are_refused_before_the_first(arguments):
    with pytest.raises(ArgumentError):
        memory_split().batches(**arguments)


@pytest.mark.parametrize("files", [False, True])
def test_batches_of_windows(tree, files):
    split = data.load(f"folder:{tree({'train': {'a': 5, 'b': 4}})}").train
    if not files:
        split = data.Split.from_tensors(split.images(), split.labels)
    assert split.in_files == files
    draws = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([8, 1, 5])
    batches = list(split.subset(order).batches(2, crops=draws[order]))
    assert [images.shape for images, _ in batches] == [(2, 3, 12, 12), (1, 3, 12, 12)]
    whole = torch.cat([images for images, _ in split.batches(9, crops=draws)])
    assert torch.equal(torch.cat([images for images, _ in batches]), whole[order])
    with pytest.raises(ArgumentError, match=r"crops must have shape \(9, 5\)"):
        split.batches(2, crops=draws[:3])


def test_memory_images_are_resized(digits):
    assert digits.images([0, 1], size=16).shape == (2, 1, 16, 16)
    assert digits.images([0], size=4).shape == (1, 1, 4, 4)


def test_files_are_read_in_batches_and_kept(tree):
    root = tree({"train": {"a": 5, "b": 4}})
    split = data.load(f"folder:{root}").train
    batches = list(split.batches(2))
    assert torch.cat([images[:, 0, 0, 0] for images, _ in batches]).tolist() == list(range(9))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 5 + [1] * 4
    for path in root.rglob("*.png"):
        path.unlink()
    assert torch.equal(split.images(), torch.cat([images for images, _ in batches]))


def test_files_too_many_to_keep_are_decoded_again(tree, monkeypatch):
    root = tree({"train": {"a": 5, "b": 4}})
    kept = data.load(f"folder:{root}").train.images()
    monkeypatch.setattr(store, "CACHE_BYTES", 9 * 3 * 12 * 12 - 1)
    split = data.load(f"folder:{root}").train
    assert torch.equal(split.images([3, 3, 1]), kept[[3, 3, 1]])
    assert torch.equal(split.images(), kept)
    assert split.images(size=6).shape == (9, 3, 6, 6)
    for path in root.rglob("*.png"):
        path.unlink()
    assert split.images(size=6).shape == (9, 3, 6, 6)
    with pytest.raises(DataError):
        split.images()


def test_leaving_a_loop_early_is_fine(tree):
    split = data.load(f"folder:{tree({'train': {'a': 9}})}").train
    assert len(list(itertools.islice(split.batches(2), 2))) == 2


def test_progress_reaches_the_total(tree):
    split = data.load(f"folder:{tree({'train': {'a': 40, 'b': 30}})}").train
    seen = []
    split.images(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (70, 70)
    assert len(seen) > 1


def test_mixed_sizes_need_a_size(tree):
    root = tree({"train": {"a": 3}})
    Image.new("RGB", (20, 30)).save(root / "train/a/other.png")
    split = data.load(f"folder:{root}").train
    with pytest.raises(DataError, match=r"other\.png is 30x20.*image_size"):
        split.images()
    assert split.images(size=10).shape == (4, 3, 10, 10)


class TestCorrupt:
    @pytest.fixture
    def damaged(self, tree):
        root = tree({"train": {"a": 4, "b": 4}})
        spoil(root / "train/b/001.png")
        return data.load(f"folder:{root}").train

    def test_batches_leave_it_out_and_say_so_once(self, damaged):
        with pytest.warns(data.CorruptImageWarning, match=r"b/001\.png") as record:
            batches = list(damaged.batches(3))
        assert len(record) == 1
        assert torch.cat([y for _, y in batches]).tolist() == [0] * 4 + [1] * 3
        assert torch.cat([x[:, 0, 0, 0] for x, _ in batches]).tolist() == [0, 1, 2, 3, 4, 6, 7]
        assert [(Path(path).name, reason) for path, reason in damaged.skipped] == [
            ("001.png", "image file is truncated")
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(list(damaged.batches(3))) == 3

    def test_others_keep_their_windows(self, damaged):
        draws = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
        with pytest.warns(data.CorruptImageWarning, match=r"b/001\.png"):
            images = torch.cat([x for x, _ in damaged.batches(3, crops=draws)])
        rows = torch.tensor([0, 1, 2, 3, 4, 6, 7])
        ((alone, _),) = damaged.subset(rows).batches(8, crops=draws[rows])
        assert torch.equal(images, alone)

    def test_images_stay_in_step_with_labels(self, damaged):
        with pytest.warns(data.CorruptImageWarning):
            images = damaged.images()
        assert len(images) == len(damaged) == len(damaged.labels) == 8
        assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 6, 6, 7]
        assert damaged[5][0][0, 0, 0] == 6

    def test_load_gives_matching_images_and_labels(self, damaged):
        with pytest.warns(data.CorruptImageWarning):
            images, labels = damaged.load([5, 6])
        assert images[:, 0, 0, 0].tolist() == [6]
        assert labels.tolist() == [1]

    def test_a_subset_finds_its_stand_in_outside(self, damaged):
        with pytest.warns(data.CorruptImageWarning):
            image, label = damaged.subset([0, 5])[1]
        assert image[0, 0, 0] == 4
        assert label == 1

    def test_a_batch_of_nothing_is_not_given_out(self, damaged):
        with pytest.warns(data.CorruptImageWarning):
            assert len(list(damaged.batches(1))) == 7

    def test_other_splits_are_not_blamed(self, damaged):
        first, second = damaged.subset([0, 1, 2]), damaged.subset([4, 5, 6])
        with pytest.warns(data.CorruptImageWarning):
            second.images()
        assert first.skipped == []
        assert len(second.skipped) == 1

    def test_many_are_named_in_short(self, tree):
        root = tree({"train": {"a": 20}})
        for i in range(8):
            spoil(root / f"train/a/{i:03}.png")
        split = data.load(f"folder:{root}").train
        with pytest.warns(data.CorruptImageWarning, match="skipped 8 .*and 3 more"):
            split.images()
        assert len(split.skipped) == 8

    def test_without_labels_any_image_stands_in(self, tree):
        root = tree({"train": {"a": 3}})
        spoil(root / "train/a/002.png")
        split = data.unlabelled(root)
        with pytest.warns(data.CorruptImageWarning):
            assert split.images()[:, 0, 0, 0].tolist() == [0, 1, 0]

    @pytest.mark.parametrize("count", [3, 4])
    def test_more_than_half_is_an_error(self, tree, count):
        root = tree({"train": {"a": 2, "b": 2}})
        for path in sorted(root.rglob("*.png"))[:count]:
            spoil(path)
        with pytest.raises(DataError, match=f"{count} of 4 images cannot be read"):
            data.load(f"folder:{root}").train.images(size=8)

    def test_all_without_a_size_is_the_same_error(self, tree):
        root = tree({"train": {"a": 2}})
        for path in root.rglob("*.png"):
            spoil(path)
        with pytest.raises(DataError, match="2 of 2 images"):
            data.load(f"folder:{root}").train.images()

    def test_half_is_not(self, tree):
        root = tree({"train": {"a": 2, "b": 2}})
        for name in "ab":
            spoil(root / f"train/{name}/000.png")
        with pytest.warns(data.CorruptImageWarning):
            assert len(data.load(f"folder:{root}").train.load()[0]) == 2

    def test_a_class_without_any_readable_image_is_an_error_for_aligned_rows_only(self, tree):
        root = tree({"train": {"a": 3, "b": 1}})
        spoil(root / "train/b/000.png")
        split = data.load(f"folder:{root}").train
        with pytest.warns(data.CorruptImageWarning):
            assert len(split.load()[0]) == 3
        with pytest.raises(DataError, match="class 'b' has no readable image"):
            split.images()

    def test_files_that_vanish_count_as_corrupt(self, tree):
        root = tree({"train": {"a": 3}})
        split = data.load(f"folder:{root}").train
        (root / "train/a/001.png").unlink()
        with pytest.warns(data.CorruptImageWarning, match="does not exist"):
            assert len(split.load()[0]) == 2


def test_a_dataset_says_what_it_lacks(tree):
    dataset = data.load(f"folder:{tree({'train': {'a': 2}})}")
    assert len(dataset.train) == 2
    with pytest.raises(DataError, match=r"no test images.*test/ or val/"):
        _ = dataset.test
