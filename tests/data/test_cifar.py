import pickle
from pathlib import Path

import numpy as np
import pytest

from clusterprune import data
from clusterprune.errors import DataError


def records(count, classes, label_bytes, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    rows[:, :label_bytes] = 0
    rows[:, label_bytes - 1] = np.arange(count) % classes
    return rows


@pytest.fixture
def cifar10(tmp_path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 6):
        records(10, 10, 1, i).tofile(folder / f"data_batch_{i}.bin")
    records(7, 10, 1, 9).tofile(folder / "test_batch.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"c{i}" for i in range(10)) + "\n\n")
    return folder


@pytest.fixture
def cifar100(tmp_path) -> Path:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    records(120, 100, 2, 0).tofile(folder / "train.bin")
    records(5, 100, 2, 1).tofile(folder / "test.bin")
    return folder


class TestCifarBinary:
    @pytest.mark.parametrize("parent", [False, True])
    def test_cifar10(self, cifar10, parent):
        dataset = data.load(f"cifar10:{cifar10.parent if parent else cifar10}")
        assert (len(dataset.train), len(dataset.test)) == (50, 7)
        assert dataset.classes[3] == "c3"
        expected = records(10, 10, 1, 2)
        image, label = dataset.train[12]
        assert label == 2
        assert image.shape == (3, 32, 32)
        assert image[1, 0, 5] == expected[2, 1 + 1024 + 5]

    def test_cifar100_reads_fine_labels(self, cifar100):
        dataset = data.load(f"cifar100:{cifar100}")
        assert dataset.train.load()[1][99:102].tolist() == [99, 0, 1]
        assert dataset.classes[42] == "42"
        assert dataset.train[3][0][0, 0, 0] == records(120, 100, 2, 0)[3, 2]

    def test_image_size(self, cifar10):
        assert data.load(f"cifar10:{cifar10}", image_size=16).test.images().shape[-1] == 16

    def test_missing_batch(self, cifar10):
        (cifar10 / "data_batch_3.bin").unlink()
        with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
            data.load(f"cifar10:{cifar10}")

    @pytest.mark.parametrize("content", [b"", bytes(3072)])
    def test_truncated(self, cifar10, content):
        (cifar10 / "test_batch.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"test_batch\.bin' is damaged"):
            data.load(f"cifar10:{cifar10}")

    def test_impossible_label(self, cifar10):
        (cifar10 / "test_batch.bin").write_bytes(b"\x0a" + bytes(3072))
        with pytest.raises(DataError, match="label 10"):
            data.load(f"cifar10:{cifar10}")

    def test_wrong_names(self, cifar10):
        (cifar10 / "batches.meta.txt").write_text("one two")
        with pytest.raises(DataError, match="names 2 classes instead of 10"):
            data.load(f"cifar10:{cifar10}")


class TestCifarPickled:
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    @pytest.mark.parametrize(
        ("name", "folder", "file", "binary"),
        [
            ("cifar10", "cifar-10-batches-py", "data_batch_1", "cifar-10-batches-bin"),
            ("cifar100", "cifar-100-python", "meta", "cifar-100-binary"),
        ],
    )
    def test_never_opened(self, tmp_path, name, folder, file, binary):
        place = tmp_path / folder
        place.mkdir()
        (place / file).write_bytes(pickle.dumps(self.Bomb()))
        with pytest.raises(DataError, match=rf"python version.*{binary}.*folder of images"):
            data.load(f"{name}:{place}")
        with pytest.raises(DataError, match="python version"):
            data.load(f"{name}:{tmp_path}")


class TestCifarFolder:
    def test_ten_classes(self, tree):
        classes = {f"c{i}": 1 for i in range(10)}
        dataset = data.load(f"cifar10:{tree({'train': classes, 'test': classes})}")
        assert len(dataset.classes) == 10
        assert len(dataset.test) == 10

    def test_other_classes(self, tree):
        with pytest.raises(DataError, match=r"2 class folders, but cifar10 has 10.*folder:"):
            data.load(f"cifar10:{tree({'train': {'a': 1, 'b': 1}})}")

    def test_nothing(self, tmp_path):
        with pytest.raises(DataError, match="holds neither"):
            data.load(f"cifar10:{tmp_path}")
