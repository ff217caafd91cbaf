"""A newcomer types what the README says under "Deploy", and has an ONNX model of a network of the own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli

import clusterprune as cp
from clusterprune import data

README = Path(__file__).parents[2] / "README.md"


def test_from_a_file_of_the_own_to_onnx_in_eight_bits_as_the_readme_says(cli: Cli):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    section = re.search(r"^## Deploy\n(.*?)^## ", README.read_text(), re.DOTALL | re.MULTILINE)
    assert section is not None
    (code,) = re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    (commands,) = re.findall(r"^```sh\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    Path("net.py").write_text(code)
    typed = [line for line in commands.splitlines() if line.startswith("clusterprune ")]
    assert len(typed) == 5

    outputs = []
    for line in typed:
        result = cli(*shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        outputs.append(result.stdout)

    assert "latency, 1 image, onnxruntime:threads=1" in outputs[2]
    small = cp.load("runs/half/compact", trust="net.py")
    test = data.load("digits").test
    pixels, labels = test.load()
    images = data.normalize(pixels, (0.3,), (0.37,))
    with torch.no_grad():
        expected = small(images)
    right = {}
    for name in ("compact.onnx", "compact.int8.onnx"):
        session = onnxruntime.InferenceSession(f"runs/half/{name}", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": images.numpy()})
        right[name] = float((found.argmax(1) == labels.numpy()).mean())
        if name == "compact.onnx":
            assert np.allclose(found, expected, atol=1e-4)
    assert right["compact.onnx"] > 0.8
    assert right["compact.int8.onnx"] > right["compact.onnx"] - 0.03
