"""Labels are united, frozen, and cost no memory where they do not vary."""

import numpy as np

from clusterprune.graph.labels import LabelSpace, collapse, spread, varying_dims


def test_united_labels_have_one_root() -> None:
    space = LabelSpace()
    first, second = space.new(4), space.new(4)
    space.unite(first, second)
    space.unite(first[:1], second[3:])
    assert space.roots(second).tolist() == [0, 1, 2, 0]
    assert space.roots(first).tolist() == [0, 1, 2, 0]
    assert len(space) == 8


def test_many_labels_do_not_outgrow_the_space() -> None:
    space = LabelSpace()
    labels = space.new(5000)
    space.unite(labels[:-1], labels[1:])
    assert set(space.roots(labels).tolist()) == {0}


def test_a_reason_to_freeze_survives_uniting_in_either_order() -> None:
    space = LabelSpace()
    labels = space.new(4)
    space.freeze(labels[3:], "because")
    space.unite(labels[:1], labels[3:])
    assert space.why_frozen(0) == space.why_frozen(3) == "because"
    space.unite(labels[1:2], labels[:1])
    space.freeze(labels[1:2], "too late")
    assert space.why_frozen(1) == "because"
    assert space.why_frozen(2) is None


def test_opaque_labels_freeze_and_are_never_united() -> None:
    space = LabelSpace()
    labels, image = space.new(3), space.opaque((1, 3), "the network's input")
    space.unite(labels.view(1, 3), image)
    assert len(set(space.roots(labels).tolist())) == 3
    assert [space.why_frozen(i) for i in range(3)] == ["the network's input"] * 3
    assert space.all_opaque(image)
    assert not space.all_opaque(labels)
    assert space.opaque((), "a number").ndim == 0


def test_spread_labels_take_no_memory() -> None:
    space = LabelSpace()
    labels = spread(space.new(6), 1, (128, 6, 512, 512))
    assert labels.shape == (128, 6, 512, 512)
    assert labels.untyped_storage().nbytes() == 6 * 8
    assert collapse(labels).shape == (1, 6, 1, 1)
    assert varying_dims(labels) == [1]
    assert space.root_tensor(labels).stride()[2:] == (0, 0)


def test_roots_of_a_single_label() -> None:
    space = LabelSpace()
    label = space.new(1).squeeze()
    assert int(space.root_tensor(label)) == 0
    assert np.asarray(space.roots(label)).shape == ()


def test_unite_along_a_dimension() -> None:
    space = LabelSpace()
    labels = space.new(6).view(2, 3)
    narrowed = space.unite_along(labels, 0)
    assert narrowed.shape == (1, 3)
    assert space.roots(labels).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert varying_dims(space.root_tensor(labels)) == [1]
