import copy
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from clusterprune import data, evaluate
from clusterprune.errors import ArgumentError, DataError, ModelError

HALF: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)}


class Scores(nn.Module):
    """Score the class that an image's first pixel names highest, the next ones in falling order."""

    def __init__(self, classes, shift=0):
        super().__init__()
        self.classes = classes
        self.shift = shift

    def forward(self, images):
        named = ((images[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long() + self.shift
        distance = (torch.arange(self.classes) - named[:, None]) % self.classes
        return -distance.float()


def labelled(count=10, classes=10):
    labels = torch.arange(count) % classes
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return data.Split.from_tensors(images, labels, [str(i) for i in range(classes)])


@pytest.mark.parametrize("batch_size", [1, 4, 10, 250])
def test_perfect_whatever_the_batches(batch_size):
    result = evaluate.accuracy(Scores(10), labelled(), batch_size=batch_size, **HALF)
    assert result == evaluate.Accuracy(top1=100.0, top5=100.0, images=10)


def test_large_images_go_a_few_at_a_time_on_a_processor(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    seen: list[int] = []
    split = data.Split.from_tensors(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    for size in (None, 224):
        evaluate.accuracy(Scores(1), split, size=size, progress=lambda done, _: seen.append(done), **HALF)
    assert seen == [20, 5, 10, 15, 20]


def test_partial_batch_weighs_what_it_has():
    split = labelled(7)
    wrong = data.Split.from_tensors(split.images(), torch.tensor([0, 1, 2, 3, 4, 5, 9]), split.classes)
    result = evaluate.accuracy(Scores(10), wrong, batch_size=6, **HALF)
    assert result.top1 == pytest.approx(100 * 6 / 7)
    assert result.images == 7


@pytest.mark.parametrize(("shift", "top1", "top5"), [(0, 100, 100), (-4, 0, 100), (-5, 0, 0)])
def test_top5(shift, top1, top5):
    result = evaluate.accuracy(Scores(10, shift), labelled(), **HALF)
    assert (result.top1, result.top5) == (top1, top5)


def test_top5_needs_five_classes_and_a_request():
    assert evaluate.accuracy(Scores(4), labelled(8, 4), **HALF).top5 is None
    assert evaluate.accuracy(Scores(10), labelled(), topk=(1,), **HALF).top5 is None


def test_progress():
    seen = []
    evaluate.accuracy(Scores(10), labelled(), batch_size=4, progress=lambda *at: seen.append(at), **HALF)
    assert seen == [(4, 10), (8, 10), (10, 10)]


class TestModel:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Dropout(), nn.Linear(8, 10),
        )  # fmt: skip

    @pytest.fixture
    def split(self):
        return data.load("digits").test

    def test_is_left_as_it_was(self, model, split):
        model.train()
        model[1].eval()
        before = copy.deepcopy(model.state_dict())
        evaluate.accuracy(model, split, **HALF)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert [m.training for m in model] == [True, False, True, True, True, True, True]
        assert model.training
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def test_same_in_every_type_and_layout(self, model, split):
        plain = evaluate.accuracy(model, split, **HALF)
        assert evaluate.accuracy(model, split, channels_last=True, **HALF) == plain
        assert evaluate.accuracy(model, split, device="cpu", **HALF) == plain
        double = evaluate.accuracy(copy.deepcopy(model).double(), split, **HALF)
        assert double.top1 == pytest.approx(plain.top1, abs=0.6)
        half = evaluate.accuracy(model, split, dtype=torch.bfloat16, **HALF)
        assert half.top1 == pytest.approx(plain.top1, abs=5)

    def test_autocast_is_used(self, split):
        types = []

        class Spy(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(64, 10)

            def forward(self, images):
                out = self.linear(images.flatten(1))
                types.append(out.dtype)
                return out

        evaluate.accuracy(Spy(), split, dtype=torch.bfloat16, batch_size=400, **HALF)
        assert types == [torch.bfloat16]

    def test_size(self, split):
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        assert evaluate.accuracy(model, split, size=16, **HALF).images == len(split)
        with pytest.raises(ModelError, match=r"batch 0 of shape \(250, 1, 8, 8\)"):
            evaluate.accuracy(model, split, **HALF)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu(self, model, split):
        there = evaluate.accuracy(model, split, device="cuda", **HALF)
        assert there.top1 == pytest.approx(evaluate.accuracy(model, split, **HALF).top1, abs=1)
        assert next(model.parameters()).device.type == "cpu"


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(len(images))


def nan_in_the_second_batch():
    calls = iter(range(9))

    def make(n):
        out = torch.zeros(n, 10)
        out[-1, 3] = float("nan") if next(calls) == 1 else 0
        return out

    return make


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (nan_in_the_second_batch(), ModelError, "NaN on batch 1"),
        (lambda n: torch.zeros(n, 7), DataError, "7 outputs, but the data has 10 classes"),
        (lambda n: (torch.zeros(n, 10),), ModelError, "returned tuple"),
        (lambda n: torch.zeros(n, 10, 1, 1), ModelError, r"returned \(4, 10, 1, 1\)"),
        (lambda n: torch.zeros(n + 1, 10), ModelError, r"returned \(5, 10\)"),
    ],
)
def test_bad_outputs(make, error, words):
    model = Returns(make).train()
    with pytest.raises(error, match=words):
        evaluate.accuracy(model, labelled(), batch_size=4, **HALF)
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"topk": (1, 3)}, "topk"),
        ({"topk": ()}, "topk"),
        ({"dtype": torch.int8}, "dtype"),
        ({"batch_size": 0}, "batch_size"),
        ({"size": 0}, "size"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "mean and std"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        evaluate.accuracy(Scores(10), labelled(), **{**HALF, **arguments})


def test_labels_and_images_are_needed():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="unlabelled"):
        evaluate.accuracy(Scores(10), data.Split.from_tensors(images), **HALF)
    with pytest.raises(DataError, match="empty"):
        evaluate.accuracy(Scores(10), labelled().subset([]), **HALF)


def test_unreadable_images_do_not_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4), (ord(name) - ord("a"),) * 3).save(tmp_path / f"test/{name}/{i}.png")
    (tmp_path / "test/b/1.png").write_bytes(b"no image")
    split = data.load(f"folder:{tmp_path}").test
    with pytest.warns(data.CorruptImageWarning):
        result = evaluate.accuracy(Scores(2), split, mean=(0.5,) * 3, std=(0.5,) * 3, batch_size=2)
    assert result == evaluate.Accuracy(100.0, None, 5)
