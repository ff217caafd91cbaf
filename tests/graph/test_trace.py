"""Tracing: what it accepts, what it refuses and in which words, and what a graph says about itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import clusterprune as cp
from clusterprune.errors import ArgumentError, ModelError, TraceError


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


class Forward(nn.Module):
    """A few layers, used by whatever function is given."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.function(self, *args, **kwargs)


EXAMPLE = torch.zeros(1, 3, 8, 8)


def test_a_graph_lists_its_groups_in_the_order_of_their_layers() -> None:
    graph = cp.trace(small_net(), EXAMPLE)
    assert [(g.name, g.width, g.frozen) for g in graph.groups] == [
        ("0", 8, None),
        ("3", 4, None),
        ("5", 2, "it reaches the network's output"),
    ]
    assert [g.name for g in graph.prunable] == ["0", "3"]
    assert graph.by_name["3"].width == 4
    assert [call.layer for call in graph.calls] == ["0", "3", "5"]
    assert graph.unknown == {}
    assert graph.unused == ()


def test_printing_names_groups_reasons_and_gaps() -> None:
    model = Forward(lambda m, x: m.third(torch.renorm(m.second(m.first(x)), 2, 1, 1.0)))
    model.spare = nn.Linear(2, 2)
    text = str(cp.trace(model, EXAMPLE))
    assert "Forward: 3 groups, 1 may be cut (4 of 10 channels)" in text
    assert "first" in text
    assert "made by first through first, read by second" in text
    assert "third" in text
    assert "it reaches the network's output" in text
    assert "aten.renorm: at renorm" in text
    assert "parameters that evaluation never touches: spare.weight, spare.bias" in text


@pytest.mark.parametrize("example", [EXAMPLE, (EXAMPLE,), {"input": EXAMPLE}, [EXAMPLE]])
def test_examples_may_be_positional_or_keywords(example) -> None:
    graph = cp.trace(small_net(), example)
    assert len(graph.prunable) == 2


def test_any_dtype_and_batch_size_will_do() -> None:
    model = small_net().to(torch.bfloat16)
    assert len(cp.trace(model, torch.zeros(4, 3, 8, 8, dtype=torch.bfloat16)).prunable) == 2


def test_modes_are_left_as_they_were() -> None:
    model = small_net().train()
    model[1].eval()
    cp.trace(model, EXAMPLE)
    assert [layer.training for layer in model] == [True, False, True, True, True, True]
    with pytest.raises(TraceError):
        cp.trace(model, torch.zeros(1, 5, 8, 8))
    assert [layer.training for layer in model] == [True, False, True, True, True, True]


def test_ignored_groups_are_frozen_with_the_reason() -> None:
    graph = cp.trace(small_net(), EXAMPLE, ignore=["3"])
    assert [g.name for g in graph.prunable] == ["0"]
    assert graph.by_name["3"].frozen == "left alone on request"
    again = graph.freeze(["[0-9]"], "a test")
    assert again.prunable == ()
    assert again.by_name["0"].frozen == "a test"
    assert graph.by_name["0"].frozen is None, "freezing returns a new graph"


def test_a_layer_anywhere_in_a_group_can_be_ignored_by_name() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.first(x)
        return m.third(x + m.second(x))

    graph = cp.trace(Forward(forward), EXAMPLE, ignore=["sec*"])
    assert graph.by_name["first"].frozen == "left alone on request"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((small_net(), 3), ArgumentError, "example=int is not an input; give a tensor"),
        ((small_net(), torch.zeros(1, 5, 8, 8)), TraceError, r"does not run on an example of shape \(1, 5, 8, 8\)"),
        ((small_net(), (EXAMPLE, EXAMPLE)), TraceError, "does not run on an example"),
        (("resnet18", EXAMPLE), ModelError, "must be a torch.nn.Module, but got str"),
        ((Forward(lambda m, x: m.first(x) if x.sum() > 0 else x), EXAMPLE), TraceError, "cannot export Forward"),
    ],
)
def test_errors_say_what_is_wrong(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        cp.trace(*arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unsound_weights_are_refused_by_name(bad: float) -> None:
    model = small_net()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = bad
    with pytest.raises(ModelError, match=r"the weight '3\.weight' holds NaN or infinity"):
        cp.trace(model, EXAMPLE)


def test_a_glob_that_matches_nothing_is_an_error_that_shows_names() -> None:
    with pytest.raises(
        ArgumentError, match=r"ignore='layer9\.\*' matches no group or layer; groups are named like 0, 3"
    ):
        cp.trace(small_net(), EXAMPLE, ignore=["layer9.*"])


@pytest.mark.parametrize("persistent", [False, True])
def test_buffers_may_hold_infinity_but_for_the_statistics_of_norms(persistent: bool) -> None:
    model = Forward(lambda m, x: m.third((m.first(x) * 2).clamp(m.least, m.most)))
    model.register_buffer("least", torch.tensor(-float("inf")), persistent=persistent)
    model.register_buffer("most", torch.tensor(float("inf")), persistent=persistent)
    assert [g.name for g in cp.trace(model, EXAMPLE).prunable] == ["first"]
    model.register_buffer("running_var", torch.tensor([1.0, float("inf")]), persistent=persistent)
    with pytest.raises(ModelError, match="the weight 'running_var' holds NaN or infinity"):
        cp.trace(model, EXAMPLE)


def test_tied_parameters_count_once() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.second(m.first(x)).relu()
        return m.third(m.twin(x))

    model = Forward(forward)
    model.twin = nn.Conv2d(4, 4, 1)
    model.twin.weight = model.second.weight
    graph = cp.trace(model, EXAMPLE)
    assert graph.unused == ()
    assert [call.weight for call in graph.calls] == ["first.weight", "second.weight", "second.weight", "third.weight"]
    assert {use.path for use in graph.by_name["first"].uses} >= {"second.weight", "first.weight", "twin.bias"}


def with_hook(function: Callable[[nn.Module], object]) -> nn.Module:
    model = small_net()
    function(model[3])
    model(EXAMPLE)  # what a hook computes has a history, which no copy can take along
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 1))


def scripted() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.trace(nn.ReLU(), torch.zeros(1)), nn.Conv2d(4, 2, 1))


@pytest.mark.filterwarnings("ignore:.*(deprecated|jit|WeightNorm|weight_norm).*")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: with_hook(torch.nn.utils.weight_norm),
            r"'3' sets its weight .*weight_norm; call .*remove_weight_norm",
        ),
        (
            lambda: with_hook(torch.nn.utils.spectral_norm),
            r"'3' sets its weight .*spectral_norm; .*remove_spectral_norm",
        ),
        (lambda: with_hook(lambda m: prune.l1_unstructured(m, "weight", 0.5)), r"'3' sets .*prune; .*prune\.remove\("),
        (lambda: with_hook(lambda m: prune.random_structured(m, "weight", 0.5, dim=0)), r"'3' sets .*prune\.remove\("),
        (lazy, "the module '1' is lazy and has no weights yet; run the model once"),
        (
            lambda: small_net().to("meta"),
            r"the module '0' holds no numbers: its weight is on the meta device.*to_empty",
        ),
        (scripted, "the module '1' is a TorchScript module, which hides its layers"),
    ],
)
def test_modules_that_cannot_be_followed_are_refused_with_the_remedy(build, message) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        cp.trace(build(), EXAMPLE)
    assert "control flow" not in str(caught.value)


def test_only_control_flow_is_blamed_on_control_flow() -> None:
    with pytest.raises(TraceError, match="control flow depends on the numbers"):
        cp.trace(Forward(lambda m, x: m.first(x) if x.sum() > 0 else x), EXAMPLE)

    def to_numpy(m: Forward, x: Tensor) -> Tensor:
        return m.first(torch.as_tensor(x.detach().numpy()))

    with pytest.raises(TraceError, match=r"cannot export Forward.*Trace the part") as caught:
        cp.trace(Forward(to_numpy), EXAMPLE)
    assert "control flow" not in str(caught.value)


def test_a_failed_export_says_nothing_but_our_error(capfd: pytest.CaptureFixture[str], caplog) -> None:
    def forward(m: Forward, x: Tensor, mask: dict[str, list[Tensor]]) -> Tensor:
        return m.first(x)[mask["keep"][0].sum().item() :] if x.mean() > 0 else x

    numbers = {"keep": [torch.arange(5000.0)]}
    with pytest.raises(TraceError) as caught:
        cp.trace(Forward(forward), (EXAMPLE, numbers))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("torch")]
    message = str(caught.value)
    assert "(1, 3, 8, 8), {keep: [(5000,)]}" in message
    assert "tensor(" not in message.replace("tensor(…)", "")
    assert len(message) < 700


@pytest.mark.parametrize("read", [lambda y: y.argmax(1), lambda y: (y > 0, y.topk(2, 1).indices), lambda y: y.long()])
def test_a_network_of_whole_numbers_is_cut_by_what_they_are_read_off(read: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Forward(lambda m, x: read(m.third(m.second(m.first(x)).relu()))).eval()
    images = torch.randn(16, 3, 8, 8)
    graph = cp.trace(model, images[:1])
    plan = cp.oneshot(graph, images, keep_macs=0.6)
    assert plan.merges
    cp.apply(model, plan, graph=graph)(images)


def test_an_output_that_no_layer_reaches_with_gradients_is_said() -> None:
    model = Forward(lambda m, x: m.third(m.second(m.first(x))).detach()).eval()
    graph = cp.trace(model, EXAMPLE)
    with pytest.raises(ModelError, match="no output with gradients"):
        cp.oneshot(graph, torch.randn(16, 3, 8, 8), keep_macs=0.6)
