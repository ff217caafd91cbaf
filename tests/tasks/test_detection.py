import pytest
import torch
from squares import DEFAULTS, SIZE, STATISTICS, Detector, squares, task
from torch import Tensor
from torch.nn import functional
from torchmetrics.detection import MeanAveragePrecision

from clusterprune import data, evaluate
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.tasks import Detection
from clusterprune.tasks.average_precision import coco_precision, voc_precision
from clusterprune.tasks.multibox import MultiBox


def row(
    image: int, label: int, score: float, box: tuple[float, float, float, float], difficult: int = 0
) -> list[float]:
    return [image, label, score, difficult, *box]


FIRST, SECOND, ELSEWHERE = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0), (50.0, 50.0, 60.0, 60.0)


def test_average_precision_by_hand() -> None:
    """Right, a second box on the same object, right: precisions 1, 1/2, 2/3 at recalls of 1/2, 1/2, 1."""
    rows = torch.tensor(
        [
            row(0, 1, -1, FIRST), row(0, 1, -1, SECOND),
            row(0, 1, 0.9, FIRST), row(0, 1, 0.8, (0, 0, 10, 9)), row(0, 1, 0.7, SECOND),
        ]
    )  # fmt: skip
    assert voc_precision(rows) == pytest.approx(100 * (1 / 2 * 1 + 1 / 2 * 2 / 3))
    assert voc_precision(rows, eleven_points=True) == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)
    assert voc_precision(rows.flip(0)) == voc_precision(rows)


def test_difficult_objects_count_neither_way() -> None:
    rows = [row(0, 1, -1, FIRST), row(0, 1, -1, SECOND, 1), row(0, 1, 0.9, SECOND), row(0, 1, 0.8, SECOND)]
    rows.append(row(0, 1, 0.7, FIRST))
    assert voc_precision(torch.tensor(rows)) == pytest.approx(100)
    rows.append(row(0, 1, 0.95, ELSEWHERE))
    assert voc_precision(torch.tensor(rows)) == pytest.approx(50)
    only = [row(0, 1, -1, FIRST, 1), row(0, 1, 0.9, FIRST)]
    assert voc_precision(torch.tensor(only)) is None


def test_classes_count_alike_and_those_of_no_object_not_at_all() -> None:
    rows = [row(0, 1, -1, FIRST), row(0, 1, 0.9, FIRST), row(0, 2, -1, SECOND), row(1, 3, 0.9, FIRST)]
    assert voc_precision(torch.tensor(rows)) == pytest.approx(50)
    assert voc_precision(torch.tensor([row(1, 3, 0.9, FIRST)])) is None
    assert coco_precision(torch.tensor([row(1, 3, 0.9, FIRST)])) is None


def found_at_random(seed: int) -> Tensor:
    """Objects on a grid, and detections that lie off by up to a third of their size, or find nothing."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[float]] = []
    for image in range(6):
        for cell in range(9):
            left, top = 30.0 * (cell % 3), 30.0 * (cell // 3)
            label = int(torch.randint(1, 4, (), generator=generator))
            box = torch.tensor([left, top, left + 20, top + 20])
            rows.append(row(image, label, -1, tuple(box.tolist())))  # pyright: ignore[reportArgumentType]
            for _ in range(int(torch.randint(0, 3, (), generator=generator))):
                off = 14 * torch.rand(4, generator=generator) - 7
                score = float(torch.rand((), generator=generator))
                rows.append(row(image, label, score, tuple((box + off).tolist())))  # pyright: ignore[reportArgumentType]
    return torch.tensor(rows)


@pytest.mark.parametrize("seed", range(3))
def test_average_precisions_are_those_of_torchmetrics(seed: int) -> None:
    """Where no detection lies between two objects, VOC's rule and COCO's match alike."""
    rows = found_at_random(seed)

    def theirs(**options: object) -> float:
        metric = MeanAveragePrecision(backend="faster_coco_eval", **options)  # pyright: ignore[reportArgumentType]
        for image in range(6):
            here = rows[rows[:, 0] == image]
            got, wanted = here[here[:, 2] >= 0], here[here[:, 2] < 0]
            metric.update(
                [{"boxes": got[:, 4:], "scores": got[:, 2], "labels": got[:, 1].long()}],
                [{"boxes": wanted[:, 4:], "labels": wanted[:, 1].long()}],
            )
        return 100 * float(metric.compute()["map"])

    eleven = theirs(iou_thresholds=[0.5], rec_thresholds=[point / 10 for point in range(11)])
    assert voc_precision(rows, eleven_points=True) == pytest.approx(eleven, abs=1e-3)
    fine = theirs(iou_thresholds=[0.5], rec_thresholds=torch.linspace(0, 1, 1001).tolist())
    assert voc_precision(rows) == pytest.approx(fine, abs=0.1)
    assert coco_precision(rows) == pytest.approx(theirs(), abs=1e-4)
    assert 10 < eleven < 95


def ideal(head: MultiBox, targets: list[dict[str, Tensor]], classes: int = 3) -> tuple[Tensor, Tensor]:
    """Outputs that say of every default box what it is to say."""
    goals = [head._match(target["boxes"] / SIZE, target["labels"]) for target in targets]
    scores = torch.stack([functional.one_hot(labels, classes).float() * 30 for _, labels in goals])
    return torch.stack([offsets for offsets, _ in goals]), scores


def test_ideal_outputs_find_every_object_and_cost_nothing() -> None:
    made = task()
    images, targets = made.normalize(made.train.images()), made.targets(made.train)(torch.arange(len(made.train)))
    outputs = ideal(MultiBox(DEFAULTS), targets)
    assert made.loss(outputs, images, targets).item() < 1e-6
    found = made.summarise(made.observe(outputs, images, targets))
    assert found == pytest.approx({"map50": 100, "map50_11point": 100, "map": 100}, abs=1e-3)
    nothing = (outputs[0], torch.tensor([30.0, 0, 0]).expand_as(outputs[1]))
    assert made.summarise(made.observe(nothing, images, targets)) == {"map50": 0, "map50_11point": 0, "map": 0}


def test_the_loss_counts_three_of_the_worst_backgrounds_for_each_match() -> None:
    """Two boxes lie on the object; of 62 others, the six that score a class the most count beside them."""
    corner = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(2, 1)
    others = torch.rand(62, 2).mul(0.2).repeat(1, 2) + 0.001
    head = MultiBox(torch.cat([corner, others]))
    logits = torch.zeros(1, 64, 3)
    logits[0, 10:16, 1] = 2.0
    target = {"boxes": torch.tensor([[8.0, 8.0, 12.0, 12.0]]), "labels": torch.tensor([1])}
    loss = head.loss((torch.zeros(1, 64, 4), logits), torch.zeros(1, 3, 20, 20), [target], 0.0)
    right = torch.log(torch.tensor(3.0))
    wrong = torch.logsumexp(torch.tensor([0.0, 2.0, 0.0]), 0)
    assert loss.item() == pytest.approx(float((2 * right + 6 * wrong) / 2), rel=1e-5)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = head.loss((torch.zeros(1, 64, 4), logits), torch.zeros(1, 3, 20, 20), [empty], 0.0)
    assert loss.item() == pytest.approx(float(3 * wrong), rel=1e-5)


@pytest.mark.parametrize("kind", ["crop_flip", "crop", "resized_crop_flip"])
def test_boxes_move_with_what_they_show(kind: str) -> None:
    made = task()
    pixels, targets = made.train.images(), made.targets(made.train)(torch.arange(len(made.train)))
    before = torch.random.get_rng_state()
    images, moved = made.augment(pixels, targets, kind, torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
    assert torch.equal(before, torch.random.get_rng_state())
    assert images.shape == pixels.shape
    changed, darker = 0, []
    for image, old, new in zip(images, targets, moved, strict=True):
        assert type(new["boxes"]) is Tensor
        assert len(new["boxes"]) == len(new["labels"]) == len(new["difficult"]) <= len(old["boxes"])
        changed += not torch.equal(old["boxes"], new["boxes"])
        for left, top, right, bottom in new["boxes"].tolist():
            inside = image[:, round(top) : round(bottom), round(left) : round(right)].float()
            darker.append(float(inside.amax(0).mean() - inside.amin(0).mean() > 100))
    assert changed > 60
    assert sum(darker) / len(darker) > 0.95  # all but those that the colours were taken from


def test_an_image_that_is_not_augmented_stays() -> None:
    made = task()
    pixels, targets = made.train.images([0]), made.targets(made.train)(torch.tensor([0]))
    same = made.augment(pixels, targets, "none", torch.Generator())
    assert same[0] is pixels
    assert same[1] is targets


def test_models_and_data_that_do_not_fit_are_named() -> None:
    made = task()
    images = made.normalize(made.train.images([0]))
    with pytest.raises(ArgumentError, match=r"the data have 2 classes, but the model scores 4.*num_classes=3"):
        made.check(Detector(5)(images), images)
    with pytest.raises(ModelError, match=r"must return locations \(images, boxes, 4\).*returned \(1, 8, 16, 16\)"):
        made.check(Detector()[0](images)[:, :, :16, :16], images)
    with pytest.raises(ArgumentError, match="brought to 16 x 16 pixels, but their boxes to 32 x 32"):
        made.check(Detector()(images), images[:, :, :16, :16])
    few = Detection(squares(4), head=MultiBox(DEFAULTS[:10]), **STATISTICS)
    with pytest.raises(ModelError, match="returns 256 boxes for images of 32 x 32 pixels but has 10 default boxes"):
        few.check(Detector()(images), images)
    plain = data.Split.from_tensors(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="train has no boxes"):
        Detection(plain, head=MultiBox(DEFAULTS), **STATISTICS)
    with pytest.raises(ArgumentError, match=r"default_boxes must be of shape \(boxes, 4\)"):
        MultiBox(torch.zeros(4))


def test_distillation_listens_to_boxes_that_somebody_takes_for_objects() -> None:
    head = MultiBox(DEFAULTS[:2])
    teacher = torch.tensor([[[12.0, 0.0, 0.0], [0.0, 12.0, 0.0]]])
    nowhere = teacher.clone()
    nowhere[0, 0, 0] = 10.0
    there = teacher.clone()
    there[0, 1, 1] = 10.0
    off = torch.zeros(1, 2, 4)
    same = (off, teacher)
    assert head.distillation((off, nowhere), same, 4.0) < 0.01 * head.distillation((off, there), same, 4.0)
    moved = off.clone()
    moved[0, 0] = 3.0
    assert head.distillation((moved, teacher), same, 4.0) < 0.01
    assert head.distillation((moved.flip(1), teacher), same, 4.0) == pytest.approx(4 * 2.5, rel=0.01)


def test_a_detector_is_measured_batch_by_batch() -> None:
    made = task()
    whole, parts = (evaluate.metrics(Detector(), made, made.train, batch_size=size) for size in (120, 7))
    assert whole.values == pytest.approx(parts.values)
    assert tuple(whole.values) == Detection.metrics
