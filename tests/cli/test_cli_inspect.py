import json
import re
from pathlib import Path

import pytest
from command_line import Cli


def test_the_table_says_who_makes_and_who_reads(cli: Cli):
    result = cli("inspect", "--model", "resnet20", "--input-size", 8)

    assert result.exit_code == 0, result.output
    assert "resnet20, input 3 x 8 x 8" in result.stdout
    assert re.search(r"^ conv1 +16   layer1.0.conv2, layer1.1.conv2 +layer1.0.conv1,", result.stdout, re.MULTILINE)
    assert re.search(r"^ layer1.0.conv1 +16 +layer1.0.conv2 *$", result.stdout, re.MULTILINE)
    assert re.search(r"^ linear +10 +frozen: it reaches the network's", result.stdout, re.MULTILINE)
    assert "12 of 13 groups may be cut: 400 of 410 channels." in result.stdout
    assert "MACs 2.54 M, parameters 269.72 k." in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100


def test_json_is_for_programs(tiny: str, cli: Cli):
    result = cli("inspect", "--model", tiny, "--num-classes", 5, "--ignore", "0", "--json")

    facts = json.loads(result.stdout)
    assert facts["macs"] == 8 * 8 * 9 * (12 + 12 * 16) + 64 * 5
    assert {group["name"]: group["channels"] for group in facts["groups"]} == {"0": 12, "3": 16, "8": 5}
    assert facts["groups"][0]["frozen"] == "left alone on request"
    assert facts["groups"][1]["consumers"] == ["8.weight"]
    assert facts["smallest"] == {"macs": 8 * 8 * 9 * (12 + 12) + 4 * 5, "params": 12 * 9 + 24 + 12 * 9 + 2 + 4 * 5 + 5}


def test_the_groups_are_drawn_on_request(tiny: str, cli: Cli, tmp_path: Path):
    drawing = tmp_path / "new" / "groups.svg"

    assert "The groups are drawn in" in cli("inspect", "--model", tiny, "--plot", drawing).stdout
    assert drawing.read_text().startswith("<svg")
    assert "name it groups.svg" in cli.fails("inspect", "--model", tiny, "--plot", "groups.png")
    assert "cannot be written" in cli.fails("inspect", "--model", tiny, "--plot", drawing / "below.svg")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet57", "model='resnet57' is not known"),
        ("torchvision:resnet51", "torchvision has no usable model 'resnet51'"),
        ("nowhere.py:build", "there is no file"),
    ],
)
def test_a_model_that_cannot_be_found_is_named(cli: Cli, model: str, expected: str):
    assert expected in cli.fails("inspect", "--model", model)


def test_an_input_that_does_not_fit_is_named(tiny: str, cli: Cli):
    message = cli.fails("inspect", "--model", "resnet20", "--image-size", 8, "--weights", "x.pt")

    assert "x.pt' does not exist" in message
