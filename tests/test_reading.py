"""Files that hang a reader or fill the memory: refused at once, with a reason, wherever a file is read."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import clusterprune as cp
from clusterprune import data, runs
from clusterprune.data import decode
from clusterprune.errors import ArgumentError, ClusterpruneError, DataError, OutputError, PlanError, WeightsError
from clusterprune.files import reading
from clusterprune.files.reading import ReadError
from clusterprune.files.tensors import MAX_HEADER_BYTES, check_pickle, read_tensors, stored, tensor_bytes
from clusterprune.files.writing import begun_with
from clusterprune.models import build, load_weights
from clusterprune.studies import recipe
from clusterprune.train import checkpoint


@contextmanager
def soon(seconds: float = 20) -> Iterator[None]:
    """Fail if the block takes long; what this file tests is over in milliseconds, or never."""
    began = time.perf_counter()
    yield
    assert time.perf_counter() - began < seconds


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))


def billion_laughs() -> str:
    """Each line holds the one before ten times."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(9)]
    return "\n".join(lines)


READERS: dict[str, tuple[str, Callable[[Path], object], type[ClusterpruneError]]] = {
    "weights": ("w.pt", lambda path: load_weights(network(), path), WeightsError),
    "safetensors": ("w.safetensors", lambda path: load_weights(network(), path), WeightsError),
    "config": ("config.yaml", runs.read_config, DataError),
    "log": ("log.jsonl", lambda path: runs.read_log(path.parent), DataError),
    "recipe": ("mine.yaml", recipe.read, ArgumentError),
    "plan": ("plan.json", lambda path: cp.Plan.load(path.parent), PlanError),
    "compact": ("structure.json", lambda path: cp.load(path.parent, network), WeightsError),
    "checkpoint": ("checkpoint.safetensors", checkpoint.read, WeightsError),
    "run": ("asked.json", lambda path: begun_with(path, {}), OutputError),
    "images": ("train/cat/a.png", lambda path: data.load(f"folder:{path.parents[2]}").train.load(), DataError),
    "cifar": ("train.bin", lambda path: data.load(f"cifar100:{path.parent}"), DataError),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused_without_waiting(name: str, kind: str, tmp_path: Path) -> None:
    place, read, error = READERS[name]
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with soon(), pytest.raises(error) as caught:
        read(path)
    # The data sets look for regular files only, and say what they miss.
    expected = {"cifar": "holds neither", "images": "not a regular file"}.get(name, "not a regular file")
    assert expected in str(caught.value)


def test_a_damaged_result_is_no_result(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "result.json")
    with soon():
        assert runs.read_result(tmp_path) is None


BRACKETS = "[" * 3000 + "]" * 3000
YAML = [
    (billion_laughs(), "aliases counted"),
    ("a: &a [*a]", "inside what it stands for"),
    (BRACKETS, "levels deep"),
    ("{a: " * 3000, "levels deep"),
    ("- " * 3000, "levels deep"),
    ("a: 1\na: 2", "occurs twice"),
    ("1: 2", "not text"),
    ("a: " + "9" * 5000, "digits"),
    ("a: 0x" + "f" * 5000, "digits"),
    ("a: !!python/object/apply:os.getcwd []", "no type of a setting"),
    ("a: !!int ''", "not YAML"),
    ('a: "\\ud800"', "not Unicode"),
    ("a: [" + "1, " * 10_001 + "]", "more than 10,000 values"),
    ("a: x" * 300_000, "more than 1,048,576"),
]


@pytest.mark.parametrize(("text", "message"), YAML, ids=range(len(YAML)))
def test_yaml_that_goes_on_for_ever(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with soon(), pytest.raises(DataError, match=message):
        runs.read_config(path)
    with pytest.raises(ArgumentError, match=message):
        recipe.read(path)


def test_yaml_says_what_it_said_before() -> None:
    text = "base: &b {lr: 0.1, steps: [1, 2]}\nmore: {<<: *b, lr: 1e-2, really: true, day: 2020-01-01, none: null}"
    assert reading.parse_yaml(text) == {
        "base": {"lr": 0.1, "steps": [1, 2]},
        "more": {"lr": "1e-2", "steps": [1, 2], "really": True, "day": "2020-01-01", "none": None},
    }


JSON = [
    (BRACKETS, "levels deep"),
    ('{"a": ' * 3000 + "1" + "}" * 3000, "levels deep"),
    ('{"a": 1, "a": 2}', "twice"),
    ('{"a": "\\ud800"}', "not Unicode"),
    ('{"a": ' + "9" * 5000 + "}", "digits"),
    ("", "not JSON"),
    ("\ufeff{}", "not JSON"),
]


@pytest.mark.parametrize(("text", "message"), JSON, ids=range(len(JSON)))
def test_json_that_goes_on_for_ever(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    (tmp_path / "structure.json").write_text(text)
    with soon(), pytest.raises(PlanError, match=message):
        cp.Plan.load(tmp_path)
    with pytest.raises(WeightsError, match=message):
        cp.load(tmp_path, network)


@pytest.mark.parametrize("line", ["{", "[]", "3", "{} {}", BRACKETS])
def test_damaged_logs_name_the_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(DataError, match="damaged in line 2"):
        runs.read_log(tmp_path)


def test_documents_have_a_largest_size(tmp_path: Path) -> None:
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(1 << 40)  # holes take no room on the disk
    with soon(), pytest.raises(PlanError, match="holds more than"):
        cp.Plan.load(tmp_path)


class TestTorchFiles:
    def test_a_mapping_inside_itself(self, tmp_path: Path) -> None:
        content: dict[str, object] = {"epoch": 3}
        content["state_dict"] = content
        torch.save(content, tmp_path / "w.pt")
        with soon(), pytest.raises(WeightsError, match="holds no state dict"):
            load_weights(network(), tmp_path / "w.pt")

    def test_two_mappings_inside_each_other(self, tmp_path: Path) -> None:
        content: dict[str, object] = {}
        content["model"] = {"net": {"weights": content}}
        torch.save(content, tmp_path / "w.pt")
        with soon(), pytest.raises(WeightsError, match="holds no state dict"):
            load_weights(network(), tmp_path / "w.pt")

    def test_a_key_that_holds_one_thing_many_times(self, tmp_path: Path) -> None:
        key: object = ()
        for _ in range(10):
            key = (key, key)
        torch.save({key: 1}, tmp_path / "w.pt")
        with soon(), pytest.raises(WeightsError, match="with the keys a tuple"):
            load_weights(network(), tmp_path / "w.pt")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_key_whose_hash_takes_years(self, zipped: bool, tmp_path: Path) -> None:
        # Written by hand: to make such a mapping takes years too. A tuple of two of what is on top, forty times.
        double = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(40))
        bomb = b"\x80\x02})" + double + b"K\x01s."
        if zipped:
            torch.save(network().state_dict(), tmp_path / "sound.pt")
            with (
                zipfile.ZipFile(tmp_path / "sound.pt") as source,
                zipfile.ZipFile(tmp_path / "w.pt", "w") as target,
            ):
                for entry in source.infolist():
                    target.writestr(entry.filename, bomb if entry.filename.endswith("data.pkl") else source.read(entry))
        else:
            torch.save(3, tmp_path / "sound.pt", _use_new_zipfile_serialization=False)
            content = (tmp_path / "sound.pt").read_bytes()
            (tmp_path / "w.pt").write_bytes(content.replace(pickle.dumps(3, protocol=2), bomb, 1))
            assert (tmp_path / "w.pt").read_bytes() != content
        with soon(), pytest.raises(WeightsError, match="stands for more values"):
            load_weights(network(), tmp_path / "w.pt")

    def test_what_torch_saves_is_read_through(self, tmp_path: Path) -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.zeros(1, 3, 8, 8)).sum().backward()
        optimizer.step()
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": [(1, ("a", 2.5)), {}, None]}
        for name, options in (("new.pt", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
            torch.save(content, tmp_path / name, **options)
            other = network()
            load_weights(other, tmp_path / name)
            assert torch.equal(other[1].bias, model[1].bias)
        with zipfile.ZipFile(tmp_path / "new.pt") as archive, archive.open("new/data.pkl") as described:
            assert check_pickle(io.BytesIO(described.read()))

    def test_an_archive_that_unfolds_to_more_than_weights_do(self, tmp_path: Path) -> None:
        torch.save({"0.weight": torch.zeros(40_000_000)}, tmp_path / "stored.pt")
        with (
            zipfile.ZipFile(tmp_path / "stored.pt") as source,
            zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        assert (tmp_path / "w.pt").stat().st_size < 1_000_000
        with soon(), pytest.raises(WeightsError, match=r"unfolds to 160,.* bytes, but has only"):
            load_weights(network(), tmp_path / "w.pt")

    def test_a_compressed_archive_of_weights_is_read(self, tmp_path: Path) -> None:
        model, other = network(), network()
        torch.save(model.state_dict(), tmp_path / "stored.pt")
        with (
            zipfile.ZipFile(tmp_path / "stored.pt") as source,
            zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        load_weights(other, tmp_path / "w.pt")
        assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, MAX_HEADER_BYTES + 1, 100])
def test_headers_of_absurd_size(length: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    if length == MAX_HEADER_BYTES + 1:
        with path.open("r+b") as file:
            file.truncate(1 << 30)
    with soon(), pytest.raises(WeightsError, match="header of"):
        load_weights(network(), path)


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [9999999999999], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99999]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        '{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}',
        '{"a": 3}',
        '{"a": ' * 3000,
        "[]",
    ],
)
def test_headers_that_make_no_sense(header: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0\0\0\0")
    with soon(), pytest.raises(WeightsError):
        checkpoint.read(path)
    with soon(), pytest.raises(WeightsError):
        load_weights(network(), path)


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Three small images and one of 12,000 x 12,000 pixels, which has 20,000 bytes."""
        place = tmp_path / "train" / "cat"
        place.mkdir(parents=True)
        for name in "abc":
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / f"{name}.png")
        Image.new("1", (12_000, 12_000)).save(place / "large.png")
        assert (place / "large.png").stat().st_size < 100_000
        return tmp_path

    def test_too_many_pixels_are_refused_before_they_are_decoded(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def decoded(_image: Image.Image) -> Image.Image:
            raise AssertionError("the pixels were decoded")

        monkeypatch.setattr(decode, "to_rgb", decoded)
        path = str(folder / "train" / "cat" / "large.png")
        with pytest.raises(ValueError, match=r"has 12,000 x 12,000 = 144,000,000 pixels, more than"):
            decode.decode(path, 32)

    def test_the_file_is_named_and_the_others_are_read(self, folder: Path) -> None:
        split = data.load(f"folder:{folder}", image_size=8).train
        with pytest.warns(UserWarning, match=r"large\.png.*144,000,000 pixels"):
            images, _ = split.load()
        assert len(images) == 3

    def test_a_program_called_an_image_is_not_run(self, folder: Path) -> None:
        path = folder / "train" / "cat" / "d.png"
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%stdout) (w) file\n")
        with pytest.raises(Image.UnidentifiedImageError):
            decode.decode(str(path))

    def test_files_of_absurd_length(self, folder: Path) -> None:
        path = folder / "train" / "cat" / "d.webp"
        with path.open("wb") as file:
            file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
            file.truncate(1 << 40)
        with soon(), pytest.raises(ValueError, match="bytes, more than"):
            decode.decode(str(path))

    def test_threads_wait_for_room(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        room, held, most = decode._Room(100), [], []

        def work(pixels: int) -> None:
            with room.take(pixels):
                held.append(pixels)
                most.append(sum(held))
                time.sleep(0.001)
                held.remove(pixels)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, [60, 100, 30, 30, 50, 7, 100, 60] * 8))
        assert max(most) <= 100
        assert room._free == 100

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16", "RGBA", "1"])
    @pytest.mark.parametrize("form", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"])
    def test_every_format_reads_as_pillow_reads_it(self, form: str, mode: str, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8)).convert("RGB")
        path = tmp_path / f"a.{form}"
        try:
            image.convert("I" if mode == "I;16" else mode).convert(mode).save(path)
        except (OSError, KeyError, ValueError):  # a format without this mode
            image.save(path)
        with Image.open(path) as opened:
            expected = np.asarray(decode.to_rgb(opened))
        assert np.array_equal(decode.decode(str(path)).permute(1, 2, 0).numpy(), expected)


class TestStored:
    def test_views_shared_and_strided_tensors(self, tmp_path: Path) -> None:
        base = torch.arange(24.0).view(4, 6)
        tensors = {"t": base.T, "part": base[1:, ::2], "same": base, "again": base, "grown": torch.ones(1).expand(3, 2)}
        tensors["last"] = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        tensors["parameter"] = nn.Parameter(base)
        (tmp_path / "t.safetensors").write_bytes(tensor_bytes(tensors))
        found, _ = read_tensors(tmp_path / "t.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        assert all(tensor.is_contiguous() for tensor in found.values())

    def test_what_is_stored_is_memory_of_its_own(self) -> None:
        base = torch.zeros(3)
        kept = stored(base)
        base.add_(1)
        assert not kept.any()

    def test_a_digest_that_differs(self, tmp_path: Path) -> None:
        path = tmp_path / "t.safetensors"
        path.write_bytes(tensor_bytes({"a": torch.zeros(3)}))
        digest = reading.sha256_of(path)
        assert read_tensors(path, digest)[0].keys() == {"a"}
        path.write_bytes(tensor_bytes({"a": torch.ones(3)}))
        with pytest.raises(ReadError, match="altered"):
            read_tensors(path, digest)


@pytest.mark.parametrize("name", ["a\0b.pt", "x" * 300 + ".pt"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(WeightsError):
        build("resnet20", weights=name)


def test_pickles_are_not_documents(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(pickle.dumps({"model": "resnet20"}))
    with pytest.raises(DataError):
        runs.read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_folders_that_cannot_be(name: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        data.load(f"folder:{name}")
    with pytest.raises(PlanError):
        cp.Plan.load(name)
    with pytest.raises(WeightsError):
        cp.load(name, network)


@pytest.mark.parametrize(
    "change",
    [
        {"macs": 0},
        {"macs": "many"},
        {"params": None},
        {"latency_ms": 0},
        {"latency_ms": float("nan")},
        {"accuracy": "x"},
    ],
)
def test_results_that_cannot_be_shown_are_none(change: dict[str, object], tmp_path: Path) -> None:
    sound = runs.Measurement(10, 20, {"accuracy": 91.5, "accuracy_top5": None}, 100, 1.5, 0.1, 8).to_dict()
    runs.write_result(tmp_path, {"trained": sound, "baseline": sound})
    assert runs.read_result(tmp_path, "trained", "baseline") is not None
    assert runs.read_result(tmp_path, "trained", "compressed") is None
    runs.write_result(tmp_path, {"trained": sound | change, "baseline": sound})
    assert runs.read_result(tmp_path, "baseline") is not None
    assert runs.read_result(tmp_path, "trained") is None
    left = {name: sound[name] for name in sound if name not in change}
    runs.write_result(tmp_path, {"trained": left})
    # Which metrics there are is the task's affair.
    assert (runs.read_result(tmp_path, "trained") is None) == ("accuracy" not in change)
