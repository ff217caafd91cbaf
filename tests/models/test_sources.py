import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import googlenet

from clusterprune import models
from clusterprune.errors import ArgumentError, ModelError


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def write(tmp_path):
    def to_file(text: str, name: str = "net.py") -> Path:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path / name

    return to_file


class TestTorchvision:
    def test_resnet18_is_imagenets(self):
        spec = models.resolve("torchvision:resnet18")
        assert spec.input_shape == (3, 224, 224)
        assert spec.mean == (0.485, 0.456, 0.406)
        assert spec.std == (0.229, 0.224, 0.225)
        assert spec.num_classes == 1000
        with torch.device("meta"):
            assert parameters(spec.build()) == 11_689_512
            assert spec.build(num_classes=7)(spec.example().to("meta")).shape == (1, 7)

    @pytest.mark.parametrize(
        ("name", "params", "side"),
        [("googlenet", 6_624_904, 224), ("inception_v3", 23_834_568, 299)],
    )
    def test_inception_networks_have_no_auxiliary_head_and_no_warning(self, name, params, side):
        spec = models.resolve(f"torchvision:{name}")
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("error")
            model = spec.build()
        assert parameters(model) == params
        assert spec.input_shape == (3, side, side)
        assert model(spec.example().to("meta")).shape == (1, 1000)

    def test_inception_statistics_equal_torchvisions_own_transform(self):
        """transform_input on ImageNet statistics is the plain network on (0.5, 0.5)."""
        options = {"weights": None, "aux_logits": False, "init_weights": False, "num_classes": 3}
        reference = googlenet(transform_input=True, **options).eval()
        spec = models.resolve("torchvision:googlenet")
        model = spec.build(num_classes=3)
        model.load_state_dict(reference.state_dict())
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

        def normalize(mean, std):
            column = (1, 3, 1, 1)
            return (image - torch.tensor(mean).view(column)) / torch.tensor(std).view(column)

        imagenet = models.resolve("torchvision:resnet18")
        expected = reference(normalize(imagenet.mean, imagenet.std))
        found = model(normalize(spec.mean, spec.std))
        assert torch.allclose(found, expected, atol=1e-4)

    def test_weights_with_auxiliary_heads_load(self, tmp_path):
        published = googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=3)
        save_file(published.state_dict(), tmp_path / "w.safetensors")
        model = models.build("torchvision:googlenet", num_classes=3, weights=tmp_path / "w.safetensors")
        assert torch.equal(model.get_parameter("fc.weight"), published.fc.weight)

    @pytest.mark.parametrize(
        ("name", "side", "classes"),
        [("vit_h_14", 518, 1000), ("swin_v2_t", 256, 1000), ("efficientnet_b1", 240, 1000)],
    )
    def test_input_size_is_the_published_weights(self, name, side, classes):
        spec = models.resolve(f"torchvision:{name}")
        assert spec.input_shape == (3, side, side)
        with torch.device("meta"):
            assert spec.build()(spec.example().to("meta")).shape == (1, classes)

    def test_segmentation_downloads_no_backbone(self):
        spec = models.resolve("torchvision:fcn_resnet50")
        assert spec.num_classes == 21
        with torch.device("meta"):
            output = spec.build(num_classes=4)(torch.empty(1, 3, 64, 64))
        assert output["out"].shape == (1, 4, 64, 64)

    def test_unknown_name_gets_suggestions(self):
        with pytest.raises(ModelError, match=r"no usable model 'resnet51'. Did you mean .*resnet50"):
            models.resolve("torchvision:resnet51")

    def test_detectors_of_boxes_come_as_their_tensor_part(self, tmp_path: Path):
        spec = models.resolve("torchvision:ssdlite320_mobilenet_v3_large")
        assert (spec.input_shape, spec.mean, spec.num_classes) == ((3, 320, 320), (0.5,) * 3, 91)
        part = spec.build(4, seed=0)
        assert spec.head is not None
        with torch.no_grad():
            spec.head(part).check(part(spec.example()), spec.example(), 3)
        # Weights are published by the detector's own names.
        save_file(
            {name.removeprefix("detector."): t for name, t in part.state_dict().items()}, tmp_path / "w.safetensors"
        )
        again = models.build(spec, num_classes=4, weights=tmp_path / "w.safetensors", seed=1)
        assert all(torch.equal(t, again.state_dict()[name]) for name, t in part.state_dict().items())
        with pytest.raises(ArgumentError, match="nobody says what the outputs of model=RetinaNet mean"):
            models.heads.head_of(models.build("torchvision:retinanet_resnet50_fpn", num_classes=4))

    def test_detectors_of_more_than_boxes_need_a_factory(self):
        with pytest.raises(ModelError, match=r"no image classifier.*path/to/file.py:factory"):
            models.resolve("torchvision:maskrcnn_resnet50_fpn")


class TestTimm:
    def test_the_pretrained_cfg_gives_the_input(self):
        pytest.importorskip("timm")
        spec = models.resolve("timm:mobilenetv3_small_050.lamb_in1k")
        assert spec.input_shape == (3, 224, 224)
        assert spec.num_classes == 1000
        inception = models.resolve("timm:inception_v4")
        assert inception.input_shape == (3, 299, 299)
        assert inception.mean == inception.std == (0.5, 0.5, 0.5)
        with torch.device("meta"):
            assert spec.build(num_classes=6)(spec.example().to("meta")).shape == (1, 6)

    def test_unknown_name_gets_suggestions(self):
        pytest.importorskip("timm")
        with pytest.raises(ModelError, match=r"timm has no model 'resnet51'. Did you mean .*resnet"):
            models.resolve("timm:resnet51")

    @pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:x", ""])
    def test_names_that_would_reach_elsewhere_are_refused(self, name):
        pytest.importorskip("timm")
        with pytest.raises(ModelError, match="timm has no model"):
            models.resolve(f"timm:{name}")

    def test_unknown_tag_is_named(self):
        pytest.importorskip("timm")
        with pytest.raises(ModelError, match=r"zz.* Write timm:resnet18, or take a tag from"):
            models.resolve("timm:resnet18.zz")

    def test_the_missing_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ModelError, match=r"needs timm: pip install 'clusterprune\[timm\]'"):
            models.resolve("timm:resnet18")


class TestFile:
    def test_a_function_a_class_and_their_defaults(self, write):
        path = write("""
            from torch import nn

            class Net(nn.Module):
                def __init__(self, num_classes=6):
                    super().__init__()
                    self.head = nn.Linear(3, num_classes)

                def forward(self, x):
                    return self.head(x.mean((2, 3)))

            def build(**options):
                return Net(**options)

            def fixed():
                return Net(4)
        """)
        spec = models.resolve(f"{path}:Net")
        assert spec.num_classes == 6
        assert spec.input_shape == (3, 224, 224)
        assert spec.mean == (0.485, 0.456, 0.406)
        assert spec.build(num_classes=3)(spec.example()).shape == (1, 3)
        assert spec.build()(spec.example()).shape == (1, 6)
        assert models.resolve(f"{path}:build").num_classes == 0
        assert models.build(f"{path}:build", num_classes=2)(spec.example()).shape == (1, 2)
        assert models.build(f"{path}:fixed", num_classes=4)(spec.example()).shape == (1, 4)
        with pytest.raises(ModelError, match="has 4 outputs, but num_classes=5"):
            models.build(f"{path}:fixed", num_classes=5)

    def test_the_file_states_its_input(self, write):
        path = write("""
            from torch import nn

            INPUT_SHAPE = [3, 8, 12]
            MEAN = (0.1, 0.2, 0.3)
            STD = (1, 2, 3)
            NUM_CLASSES = 5

            def build():
                return nn.Sequential(nn.Flatten(), nn.Linear(288, 5))
        """)
        spec = models.resolve(f"{path}:build")
        assert spec.input_shape == (3, 8, 12)
        assert spec.mean == (0.1, 0.2, 0.3)
        assert spec.std == (1, 2, 3)
        assert spec.num_classes == 5
        assert spec.build()(spec.example()).shape == (1, 5)

    def test_other_than_three_channels_are_left_unnormalized(self, write):
        path = write("INPUT_SHAPE = (1, 28, 28)\ndef build(): ...")
        spec = models.resolve(f"{path}:build")
        assert (spec.mean, spec.std) == ((0.0,), (1.0,))

    def test_files_beside_it_can_be_imported_then_and_later(self, write):
        write("WIDTH = 7", "beside_one.py")
        write("WIDTH = 9", "beside_two.py")
        path = write("""
            from torch import nn
            from beside_one import WIDTH

            def build():
                import beside_two
                return nn.Linear(WIDTH, beside_two.WIDTH)
        """)
        before = list(sys.path)
        model = models.build(f"{path}:build")
        assert isinstance(model, nn.Linear)
        assert model.weight.shape == (9, 7)
        assert sys.path == before

    def test_two_files_of_one_name_stay_apart(self, write, tmp_path):
        (tmp_path / "other").mkdir()
        one = write("from torch import nn\nclass Net(nn.Identity): ...")
        two = write("from torch import nn\nclass Net(nn.ReLU): ...", "other/net.py")
        assert isinstance(models.build(f"{one}:Net"), nn.Identity)
        assert isinstance(models.build(f"{two}:Net"), nn.ReLU)

    def test_a_relative_path_and_the_home_folder(self, write, tmp_path, monkeypatch):
        write("from torch import nn\nNet = nn.Identity")
        monkeypatch.chdir(tmp_path)
        assert isinstance(models.build("net.py:Net"), nn.Identity)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert isinstance(models.build("~/net.py:Net"), nn.Identity)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(ModelError, match=r"there is no file '.*nothing\.py'"):
            models.resolve(f"{tmp_path}/nothing.py:build")
        (tmp_path / "folder.py").mkdir()
        with pytest.raises(ModelError, match=r"there is no file '.*folder\.py'"):
            models.resolve(f"{tmp_path}/folder.py:build")

    def test_missing_factory_lists_what_there_is(self, write):
        path = write("from torch import nn\nclass Network(nn.Module): ...\ndef build(): ...")
        with pytest.raises(ModelError, match=r"defines no 'biuld'. Did you mean build\? .*Network, build\."):
            models.resolve(f"{path}:biuld")
        for spec in (f"{path}", f"{path}:"):
            with pytest.raises(ModelError, match=r"names no factory: .* Network, build"):
                models.resolve(spec)

    def test_a_file_with_nothing_in_it(self, write):
        with pytest.raises(ModelError, match="The file defines no function or class"):
            models.resolve(f"{write('')}:build")

    def test_what_is_no_factory(self, write):
        path = write("from torch import nn\nnet = nn.Linear(2, 2)\nwidth = 3")
        with pytest.raises(ModelError, match=r"net is a network already built; .*return Linear"):
            models.resolve(f"{path}:net")
        with pytest.raises(ModelError, match="has a int, not a factory, as 'width'"):
            models.resolve(f"{path}:width")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1 / 0", r"running net.py raised ZeroDivisionError: .*net\.py:1\)"),
            ("import absent_package", "ModuleNotFoundError: .*absent_package"),
            ("def build(:", r"SyntaxError: .*\(net.py, line 1\)"),
            ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ],
    )
    def test_a_file_that_fails_is_named_with_its_error(self, write, text, message):
        before = set(sys.modules)
        with pytest.raises(ModelError, match=message):
            models.resolve(f"{write(text)}:build")
        assert not [name for name in set(sys.modules) - before if name.startswith("net_")]

    def test_a_factory_that_fails_or_returns_something_else(self, write):
        path = write("""
            def broken():
                raise ValueError("width must be even")

            def wrong():
                return "resnet"
        """)
        with pytest.raises(ModelError, match=r"ValueError: width must be even \(.*net\.py:3\)"):
            models.build(f"{path}:broken")
        with pytest.raises(ModelError, match=r"returned str, but must return a torch\.nn.Module"):
            models.build(f"{path}:wrong")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("INPUT_SHAPE = 32", "INPUT_SHAPE in the file must be a tuple of numbers, but is 32"),
            ("MEAN = 'grey'", "MEAN in the file must be a tuple of numbers, but is 'grey'"),
            ("STD = (0.5, 0.5)", "one number for each of the 3 input channels"),
            ("INPUT_SHAPE = (3, 8.5, 8)", "three integers of 1 or more"),
            ("NUM_CLASSES = 'ten'", "num_classes must be an integer of 0 or more, but got 'ten'"),
        ],
    )
    def test_impossible_constants_are_named(self, write, line, message):
        with pytest.raises(ModelError, match=message):
            models.resolve(f"{write(f'{line}{chr(10)}def build(): ...')}:build")
