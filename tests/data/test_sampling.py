import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterprune import data
from clusterprune.errors import ArgumentError


def numbered(counts):
    """Split with ``counts[i]`` images of class i, whose pixels hold their position."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return data.Split.from_tensors(images, labels, [str(i) for i in range(len(counts))])


def positions(split):
    return split.images().flatten().tolist()


COUNTS = st.lists(st.integers(0, 25), min_size=1, max_size=8).filter(lambda c: 2 <= sum(c) <= 200)


@settings(max_examples=examples(60), deadline=None)
@given(COUNTS, st.floats(0.05, 0.95), st.integers(0, 99))
def test_holdout_parts_the_split_and_keeps_shares(counts, fraction, seed):
    split = numbered(counts)
    try:
        train, validation = data.holdout(split, fraction, seed)
    except ArgumentError:
        assert round(fraction * len(split)) == 0 or max(counts) * fraction < 2
        return
    assert sorted(positions(train) + positions(validation)) == list(range(len(split)))
    assert positions(train) == sorted(positions(train))
    held = validation.load()[1].bincount(minlength=len(counts)).tolist()
    for count, part in zip(counts, held, strict=True):
        assert abs(part - fraction * count) < 1 + 1e-6
        assert part < count or count == 0
    assert len(validation) <= round(fraction * len(split))


def test_holdout_has_the_size_asked_for():
    train, validation = data.holdout(data.load("digits").train, 0.1)
    assert len(validation) == 144
    assert len(train) == 1438 - 144


def test_holdout_depends_on_the_seed_alone():
    split = numbered([20, 20])
    assert positions(data.holdout(split, 0.2, 3)[1]) == positions(data.holdout(split, 0.2, 3)[1])
    assert positions(data.holdout(split, 0.2, 3)[1]) != positions(data.holdout(split, 0.2, 4)[1])


def test_holdout_without_labels():
    split = data.Split.from_tensors(torch.zeros(10, 1, 2, 2, dtype=torch.uint8))
    train, validation = data.holdout(split, 0.3)
    assert (len(train), len(validation)) == (7, 3)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_holdout_fraction_out_of_range(fraction):
    with pytest.raises(ArgumentError, match="fraction"):
        data.holdout(numbered([5]), fraction)


def test_holdout_that_would_be_empty():
    with pytest.raises(ArgumentError, match="one part empty"):
        data.holdout(numbered([1, 1]), 0.5)


@settings(max_examples=examples(60), deadline=None)
@given(COUNTS, st.data(), st.integers(0, 99))
def test_sample_is_even(counts, draw, seed):
    split = numbered(counts)
    n = draw.draw(st.integers(1, len(split)))
    chosen = data.sample(split, n, seed)
    assert len(chosen) == len(set(positions(chosen))) == n
    drawn = chosen.load()[1].bincount(minlength=len(counts)).tolist()
    most = max(drawn)
    for count, part in zip(counts, drawn, strict=True):
        assert part == count or part >= most - 1


def test_sample_depends_on_the_seed_alone():
    split = numbered([30, 30])
    assert positions(data.sample(split, 9, 1)) == positions(data.sample(split, 9, 1))
    assert positions(data.sample(split, 9, 1)) != positions(data.sample(split, 9, 2))


def test_sample_is_in_random_order():
    labels = data.sample(numbered([50, 50]), 60, 0).load()[1]
    assert not torch.equal(labels, labels.sort().values)


def test_sample_favours_no_class_by_its_number():
    first = [int(data.sample(numbered([4] * 5), 1, seed).load()[1][0]) for seed in range(60)]
    assert len(set(first)) == 5


def test_sample_without_labels():
    split = data.Split.from_tensors(torch.zeros(10, 1, 2, 2, dtype=torch.uint8))
    assert len(data.sample(split, 4, 0)) == 4


@pytest.mark.parametrize(("n", "words"), [(0, "at least 1"), (6, "n=6 .* has 5")])
def test_sample_of_an_impossible_number(n, words):
    with pytest.raises(ArgumentError, match=words):
        data.sample(numbered([5]), n, 0)
