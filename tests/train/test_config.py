import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clusterprune.errors import ArgumentError
from clusterprune.train import TrainConfig
from clusterprune.train import config as config_module
from clusterprune.train.config import resolve_device, resolve_precision


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs: .* greater than or equal to 1, but got epochs=0"),
        ({"lr": -0.1}, "lr: .* greater than 0, but got lr=-0.1"),
        ({"lr": float("nan")}, "lr: .*, but got lr=nan"),
        ({"schedule": "linear"}, "'cosine', 'step', 'onecycle' or 'constant', but got schedule='linear'"),
        ({"learning_rate": 0.1}, "learning_rate is not a training setting; .* lr, momentum"),
        ({"milestones": (60, 120)}, r"milestones must be fractions .* 0.3.*milestones=\(60, 120\)"),
        ({"milestones": (0.5, 0.25)}, "milestones must increase"),
        ({"epochs": 5, "warmup_epochs": 5}, "less than epochs=5, but got warmup_epochs=5"),
        ({"momentum": 0}, "pass nesterov=False"),
        ({"schedule": "onecycle", "warmup_epochs": 1}, "warms up by itself, but got warmup_epochs=1"),
        ({"ema_decay": 1}, "ema_decay: .* less than 1, but got ema_decay=1"),
        ({"lr": 0, "gamma": 2}, "lr: .*; gamma: "),
    ],
)
def test_a_wrong_field_is_named_with_its_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        TrainConfig(**fields)
    assert re.search(message, str(caught.value))
    assert "Value error" not in str(caught.value)


def test_it_is_frozen_and_round_trips_through_json() -> None:
    config = TrainConfig(epochs=3, milestones=(0.2, 0.4), clip_norm=1)
    with pytest.raises(ValidationError):
        config.epochs = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert TrainConfig(**config.model_dump(mode="json")) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("device", ["tpu-of-mine", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ArgumentError, match=f"device='{device}'.*pass 'cpu'"):
        resolve_device(TrainConfig(device=device))


def test_auto_precision_asks_for_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, expected in (
        ({"avx2": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c, raising=False)
        assert resolve_precision("auto", cpu) == expected
        assert resolve_precision("float32", cpu) == torch.float32
        assert resolve_precision("bfloat16", cpu) == torch.bfloat16
    monkeypatch.setattr(config_module, "_cuda_has_bfloat16", lambda: True)
    assert resolve_precision("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_precision("auto", torch.device("mps")) == torch.float32


def test_float16_needs_cuda() -> None:
    assert resolve_precision("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(ArgumentError, match="float16' needs a CUDA device, but got cpu; pass 'bfloat16'"):
        resolve_precision("float16", torch.device("cpu"))


def test_auto_precision_without_pytorchs_list_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", torch.device("cpu")) == torch.float32
