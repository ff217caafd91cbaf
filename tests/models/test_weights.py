import copy
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, ModelError, WeightsError
from clusterprune.models import load_weights


def network(num_classes: int = 3, width: int = 4) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(3, width, 3),
        norm=nn.BatchNorm2d(width),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(width, num_classes),
    )
    return nn.Sequential(layers)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def tensors(**options: int) -> dict[str, Tensor]:
    torch.manual_seed(7)
    model = network(**options)
    model.get_buffer("norm.num_batches_tracked").fill_(5)
    return model.state_dict()


def refuse(path: Path | str, message: str, model: nn.Module | None = None) -> str:
    """Assert that loading fails with the message, names the file and changes nothing."""
    model = network() if model is None else model
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(model, path)
    assert repr(str(path)) in str(error.value)
    assert same(model.state_dict(), before)
    assert "weights_only" not in str(error.value)
    return str(error.value)


class Harm:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class TestGood:
    def test_safetensors(self, tmp_path):
        save_file(tensors(), tmp_path / "w.safetensors")
        model = network()
        parameter = model.get_parameter("conv.weight")
        assert load_weights(model, str(tmp_path / "w.safetensors")) is None
        assert same(model.state_dict(), tensors())
        assert model.get_parameter("conv.weight") is parameter
        assert parameter.requires_grad

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".tar", ".bin", ".ckpt"])
    def test_what_torch_saves(self, tmp_path, suffix):
        torch.save(tensors(), tmp_path / f"w{suffix}")
        model = network()
        load_weights(model, tmp_path / f"w{suffix}")
        assert same(model.state_dict(), tensors())

    def test_the_format_before_zip(self, tmp_path):
        torch.save(tensors(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        model = network()
        load_weights(model, tmp_path / "w.pth")
        assert same(model.state_dict(), tensors())

    @pytest.mark.parametrize(
        "path",
        [["state_dict"], ["model_state_dict"], ["model"], ["net"], ["weights"], ["model", "net"]],
    )
    def test_a_nested_state_dict(self, tmp_path, path):
        content: dict[str, Any] = tensors()
        for key in path:
            content = {"epoch": 3, "optimizer": {"lr": 0.1}, key: content}
        torch.save(content, tmp_path / "w.pt")
        model = network()
        load_weights(model, tmp_path / "w.pt")
        assert same(model.state_dict(), tensors())

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."])
    def test_the_prefix_of_a_wrapper(self, tmp_path, prefix):
        save_file({prefix + k: v for k, v in tensors().items()}, tmp_path / "w.safetensors")
        model = network()
        load_weights(model, tmp_path / "w.safetensors")
        assert same(model.state_dict(), tensors())

    def test_a_prefix_of_the_models_own_stays(self, tmp_path):
        inner = nn.ModuleDict({"model": network()})
        save_file({f"model.{k}": v for k, v in tensors().items()}, tmp_path / "w.safetensors")
        load_weights(inner, tmp_path / "w.safetensors")
        assert same(inner["model"].state_dict(), tensors())

    def test_floats_are_cast_to_the_models_type(self, tmp_path):
        half = {k: v.half() if v.is_floating_point() else v for k, v in tensors().items()}
        save_file(half, tmp_path / "w.safetensors")
        model = network()
        load_weights(model, tmp_path / "w.safetensors")
        weight = model.get_parameter("conv.weight")
        assert weight.dtype is torch.float32
        assert torch.equal(weight, half["conv.weight"].float())

    def test_batch_counters_may_be_absent(self, tmp_path):
        state = tensors()
        del state["norm.num_batches_tracked"]
        save_file(state, tmp_path / "w.safetensors")
        model = network()
        model.get_buffer("norm.num_batches_tracked").fill_(2)
        load_weights(model, tmp_path / "w.safetensors")
        assert model.get_buffer("norm.num_batches_tracked") == 2

    def test_a_shared_parameter_needs_one_name(self, tmp_path):
        def shared() -> nn.Sequential:
            first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            second.weight = first.weight
            return nn.Sequential(first, second)

        for name in ("0.weight", "1.weight"):
            save_file({name: torch.full((3, 3), 2.5)}, tmp_path / "w.safetensors")
            model = shared()
            load_weights(model, tmp_path / "w.safetensors")
            assert (model.get_parameter("0.weight") == 2.5).all()
            assert model.get_parameter("0.weight") is model.get_parameter("1.weight")

    def test_a_mask_buffer_may_be_infinite(self, tmp_path):
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        load_weights(model, tmp_path / "w.safetensors")
        assert model.get_buffer("mask").tolist() == [0.0, -torch.inf]


class TestPath:
    def test_missing(self, tmp_path):
        refuse(tmp_path / "w.safetensors", "does not exist")

    def test_folder_lists_its_weights(self, tmp_path):
        refuse(tmp_path, "is a folder: .* holds no weights file")
        (tmp_path / "a.pt").touch()
        (tmp_path / "b.txt").touch()
        assert "It holds a.pt." in refuse(tmp_path, "is a folder: name the file itself")

    def test_other_suffix(self, tmp_path):
        (tmp_path / "w.onnx").write_bytes(b"x")
        refuse(tmp_path / "w.onnx", r"the suffix '\.onnx', but it must be one of \.safetensors, \.pt")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_empty(self, tmp_path, suffix):
        (tmp_path / f"w{suffix}").touch()
        refuse(tmp_path / f"w{suffix}", "is empty")

    def test_unreadable(self, tmp_path, monkeypatch):
        (tmp_path / "w.pt").write_bytes(b"x")

        def denied(*_args: object, **_options: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", denied)
        refuse(tmp_path / "w.pt", "cannot be read: Permission denied")


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-8],
            lambda data: data[:30],
            lambda data: data[:5],
            lambda data: data + b"more",
            lambda data: b"\xff" * 8 + data[8:],
            lambda data: data.replace(b"F32", b"F16", 1),
            lambda data: data.replace(b"[4,3,3,3]", b"[4,3,3,9]"),
            lambda _data: b"<html>not found</html>",
        ],
    )
    def test_safetensors(self, tmp_path, damage):
        path = tmp_path / "w.safetensors"
        save_file(tensors(), path)
        path.write_bytes(damage(path.read_bytes()))
        refuse(path, "is not a whole safetensors file .*Copy or download it again")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[: len(data) // 2],
            lambda data: data[:20],
            lambda _data: b"\x80\x02junk",
        ],
    )
    @pytest.mark.parametrize("zipped", [True, False])
    def test_torch(self, tmp_path, damage, zipped):
        path = tmp_path / "w.pt"
        torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(damage(path.read_bytes()))
        refuse(path, "(?i)cut short or changed.*copy or download it again")

    def test_a_web_page_in_place_of_the_file(self, tmp_path):
        (tmp_path / "w.pt").write_bytes(b"<html>not found</html>")
        refuse(tmp_path / "w.pt", "is no file that torch.save wrote: copy or download it again")

    def test_a_pickle_of_unknown_operations(self, tmp_path):
        (tmp_path / "w.pt").write_bytes(b"\x80\x02<<<<<<<<")
        refuse(tmp_path / "w.pt", "holds something besides tensors.*save model.state_dict")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_values_that_are_not_finite_are_named(self, tmp_path, value):
        state = tensors()
        state["head.bias"][1] = value
        state["norm.running_var"][0] = value
        save_file(state, tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", r"NaN or infinite .*: norm.running_var, head.bias\.")

    def test_values_too_large_for_the_models_type(self, tmp_path):
        state = tensors()
        state["head.bias"][1] = 1e6
        save_file(state, tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", "head.bias.*float32 model", network().half())

    def test_integers_for_floats(self, tmp_path):
        state = tensors()
        state["conv.weight"] = state["conv.weight"].to(torch.int8)
        save_file(state, tmp_path / "w.safetensors")
        refuse(
            tmp_path / "w.safetensors",
            r"conv.weight \(torch.int8, model torch.float32\).*quantized",
        )

    def test_sparse(self, tmp_path):
        state = tensors()
        state["head.weight"] = state["head.weight"].to_sparse()
        torch.save(state, tmp_path / "w.pt")
        refuse(tmp_path / "w.pt", r"head.weight \(sparse.*dense")


class TestUnsafe:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
    def test_code_in_a_pickle_is_refused_and_never_run(self, tmp_path, name, zipped):
        marker = tmp_path / "harmed"
        content = {**tensors(), "extra": Harm(marker)}
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        text = refuse(tmp_path / name, "pickl")
        assert not marker.exists()
        assert "save_file" in text
        if name != "w.safetensors":
            assert "mkdir" in text

    def test_a_whole_model_is_refused_with_the_remedy(self, tmp_path):
        torch.save(network(), tmp_path / "w.pt")
        refuse(tmp_path / "w.pt", r"torch\.nn\.\w+.*The remedy: .*save model.state_dict\(\) alone")

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_torchscript_is_refused(self, tmp_path):
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
        refuse(tmp_path / "w.pt", "is a TorchScript program")

    def test_a_plain_pickle_named_safetensors(self, tmp_path):
        torch.save(tensors(), tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", r"holds a pickle.*Rename it to \.pt")

    def test_safetensors_named_pt(self, tmp_path):
        save_file(tensors(), tmp_path / "w.safetensors")
        (tmp_path / "w.safetensors").rename(tmp_path / "w.pt")
        refuse(tmp_path / "w.pt", r"rename it to w\.safetensors")


class TestContent:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (torch.ones(3), "no state dict but a Tensor"),
            ([torch.ones(3)], "no state dict but a list"),
            ({}, "no state dict but a dict without keys"),
            ({"epoch": 1, "lr": 0.1}, "no state dict but a dict with the keys epoch, lr:"),
            ({"state_dict": {"epoch": 1}}, "a dict with the keys epoch:"),
            ({"state_dict": {}}, "a dict without keys"),
            ({"a": torch.ones(1), "epoch": 3}, "not named tensors: epoch"),
            ({0: torch.ones(1)}, "not named tensors: 0"),
        ],
    )
    def test_no_state_dict(self, tmp_path, content, message):
        torch.save(content, tmp_path / "w.pt")
        refuse(tmp_path / "w.pt", message)

    def test_safetensors_without_tensors(self, tmp_path):
        save_file({}, tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", "holds no tensors")


class TestFit:
    def test_missing_and_unexpected_names(self, tmp_path):
        state = tensors()
        state["fc.weight"] = state.pop("head.weight")
        save_file(state, tmp_path / "w.safetensors")
        refuse(
            tmp_path / "w.safetensors",
            r"Missing from the file \(1\): head.weight\. Unknown to the model \(1\): fc.weight\. "
            "Name the model that these weights were trained for",
        )

    def test_only_ten_names_are_listed(self, tmp_path):
        save_file({f"x{i:02}": torch.ones(1) for i in range(14)}, tmp_path / "w.safetensors")
        text = refuse(tmp_path / "w.safetensors", r"Unknown to the model \(14\): x00, .*x09 and 4 more")
        assert "x10" not in text
        assert "Missing from the file (8): conv.weight," in text
        assert "num_batches_tracked" not in text

    def test_another_number_of_classes(self, tmp_path):
        save_file(tensors(num_classes=5), tmp_path / "w.safetensors")
        refuse(
            tmp_path / "w.safetensors",
            r"head.weight \(5, 4\) \(model \(3, 4\)\), head.bias \(5,\) \(model \(3,\)\).*"
            "5 classes and the model has 3: build the model with num_classes=5",
        )

    def test_a_narrower_network(self, tmp_path):
        save_file(tensors(width=2), tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", r"conv.weight \(2, 3, 3, 3\).*clusterprune\.load")

    def test_a_wider_network(self, tmp_path):
        save_file(tensors(width=8), tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", "Name the model that these weights were trained for")

    def test_another_number_of_dimensions(self, tmp_path):
        state = tensors()
        state["head.bias"] = state["head.bias"].sum()
        save_file(state, tmp_path / "w.safetensors")
        refuse(tmp_path / "w.safetensors", r"head.bias \(\) \(model \(3,\)\)")

    def test_a_refusal_by_the_model_itself_restores_it(self, tmp_path):
        class Picky(nn.Linear):
            def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
                super()._load_from_state_dict(*args, **options)
                message = "not today"
                raise LookupError(message)

        save_file(
            {k: torch.full(s, 2.0) for k, s in {"0.weight": (2, 2), "1.weight": (2, 2)}.items()},
            tmp_path / "w.safetensors",
        )
        model = nn.Sequential(nn.Linear(2, 2, bias=False), Picky(2, 2, bias=False))
        refuse(tmp_path / "w.safetensors", r"own loading code \(LookupError: not today\)", model)


class TestModel:
    def test_not_a_module(self, tmp_path):
        with pytest.raises(ArgumentError, match=r"model must be a torch\.nn.Module, but got dict"):
            load_weights({}, tmp_path / "w.pt")  # pyright: ignore[reportArgumentType]

    def test_no_storage(self, tmp_path):
        save_file(tensors(), tmp_path / "w.safetensors")
        with pytest.raises(ModelError, match=r"without values: conv.weight, .*real device"):
            load_weights(network().to("meta"), tmp_path / "w.safetensors")
        with pytest.raises(ModelError, match="without values: weight, bias"):
            load_weights(nn.LazyLinear(3), tmp_path / "w.safetensors")
