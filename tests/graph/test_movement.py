"""Movements are executed on labels, and what comes out is always a rectangle after any cut."""

import itertools

import pytest
import torch

from clusterprune.graph.labels import LabelSpace, spread, varying_dims
from clusterprune.graph.movement import enforce_grid, move, pad

aten = torch.ops.aten


def labels_of(space: LabelSpace, channels: int = 6, size: int = 4) -> torch.Tensor:
    return spread(space.new(channels), 1, (1, channels, size, size))


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (aten.permute.default, ([0, 2, 3, 1],), [0, 1, 2, 3, 4, 5]),
        (aten.flip.default, ([1],), [5, 4, 3, 2, 1, 0]),
        (aten.slice.Tensor, (1, 2, 5), [2, 3, 4]),
        (aten.repeat.default, ([1, 2, 1, 1],), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
        (aten.narrow.default, (1, 3, 2), [3, 4]),
        (aten.roll.default, ([1], [2]), [0, 1, 2, 3, 4, 5]),
        (aten.roll.default, ([6], [1]), [0, 1, 2, 3, 4, 5]),
        (aten.repeat_interleave.self_int, (2, 1), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (aten.index_select.default, (2, torch.tensor([3, 0])), [0, 1, 2, 3, 4, 5]),
        (aten.index.Tensor, ([None, None, torch.tensor([2, 0]), torch.tensor([1, 1])],), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_order_of_channels_follows(target, args, expected) -> None:
    space = LabelSpace()
    result = move(space, target, (labels_of(space), *args), {})
    dim = varying_dims(result)
    assert len(dim) == 1
    assert result.movedim(dim[0], 0).flatten(1)[:, 0].tolist() == expected


def test_concatenation_takes_no_memory_in_space() -> None:
    space = LabelSpace()
    parts = [labels_of(space, 3, 512), labels_of(space, 2, 512)]
    joined = move(space, aten.cat.default, (parts, 1), {})
    assert joined[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert joined.untyped_storage().nbytes() == 5 * 8


def test_a_view_that_an_expanded_tensor_cannot_take_is_a_reshape() -> None:
    space = LabelSpace()
    flat = move(space, aten.view.default, (labels_of(space, 3, 2), [1, 12]), {})
    assert flat[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_shuffled_channels_go_in_pairs() -> None:
    space = LabelSpace()
    x = labels_of(space, 6)
    x = move(space, aten.view.default, (x, [1, 2, 3, 4, 4]), {})
    x = move(space, aten.transpose.int, (x, 1, 2), {})
    x = move(space, aten.reshape.default, (x, [1, 6, 4, 4]), {})
    assert space.roots(x[0, :, 0, 0]).tolist() == [0, 0, 1, 1, 2, 2]
    whole = LabelSpace()
    y = move(whole, aten.channel_shuffle.default, (labels_of(whole, 6), 2), {})
    assert whole.roots(y[0, :, 0, 0]).tolist() == [0, 0, 1, 1, 2, 2]


def test_pixel_shuffle_cuts_whole_maps() -> None:
    space = LabelSpace()
    x = labels_of(space, 8, 16)
    y = move(space, aten.pixel_shuffle.default, (x, 2), {})
    assert varying_dims(y) == [1]
    assert space.roots(x[0, :, 0, 0]).tolist() == [0, 0, 0, 0, 4, 4, 4, 4]


def test_a_vector_that_becomes_maps_keeps_channels_rather_than_rows() -> None:
    space = LabelSpace()
    maps = move(space, aten.view.default, (space.new(4 * 64).view(1, -1), [1, 4, 8, 8]), {})
    assert varying_dims(maps) == [1]
    assert len(set(space.roots(maps).ravel().tolist())) == 4


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.roll.default, ([1], [1])),
        (aten.slice.Tensor, (1, 0, 6, 2)),
        (aten.select.int, (1, 3)),
        (aten.index_select.default, (1, torch.tensor([3, 1, 2, 0, 5, 4]))),
        (aten.roll.default, ([96],)),
    ],
)
def test_what_names_channels_by_number_is_not_followed(target, args) -> None:
    space = LabelSpace()
    with pytest.raises(NotImplementedError):
        move(space, target, (labels_of(space), *args), {})


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 2, 2), (3, 3), (1, 4, 6)])
def test_any_cut_of_a_grid_leaves_a_rectangle(shape: tuple[int, ...]) -> None:
    space = LabelSpace()
    count = int(torch.tensor(shape).prod())
    grid = space.root_tensor(enforce_grid(space, space.new(count).view(shape)))
    channels = grid.unique().tolist()
    for size in range(len(channels)):
        for removed in itertools.combinations(channels, size):
            alive = ~torch.isin(grid, torch.tensor(removed, dtype=grid.dtype))
            sides = [
                alive.movedim(d, 0).flatten(1).any(1).sum() if grid.ndim > 1 else alive.sum() for d in range(grid.ndim)
            ]
            assert int(alive.sum()) == int(torch.stack(sides).prod())


def test_constant_padding_of_channels_makes_new_ones() -> None:
    space = LabelSpace()
    padded = pad(space, labels_of(space, 3), [1, 1, 0, 0, 2, 1], constant=True)
    assert padded.shape == (1, 6, 4, 6)
    assert padded[0, 2:5, 0, 0].tolist() == [0, 1, 2]
    assert len(set(padded[0, :, 0, 0].tolist())) == 6
    cropped = pad(space, labels_of(space, 3), [0, 0, 0, 0, -1, 0], constant=True)
    assert cropped.shape == (1, 2, 4, 4)


def test_padding_in_space_belongs_to_the_channel() -> None:
    space = LabelSpace()
    padded = pad(space, labels_of(space, 3), [1, 2, 0, 1], constant=True)
    assert padded.shape == (1, 3, 5, 7)
    assert varying_dims(padded) == [1]
