"""A compact model goes to a repository and comes back, and nothing but data travels."""

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune import models
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.models.artifact import Origin, save

pytest.importorskip("huggingface_hub")


class LocalHub:
    """Repositories as folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> str:
        for path in Path(folder_path).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.root / repo_id)
        return commit_message

    def snapshot_download(self, repo_id: str, **_: Any) -> str:
        if not (self.root / repo_id).is_dir():
            raise OSError("404")
        return str(self.root / repo_id)


def test_up_and_down_again(tmp_path: Path) -> None:
    spec = models.resolve("resnet20")
    network, images = models.build(spec, seed=0), torch.randn(2, 3, 32, 32)
    graph = cp.trace(network, images[:1])
    small = cp.apply(network, cp.prune_by(graph, "l1", keep_macs=0.6), graph=graph)
    save(small, tmp_path / "compact", Origin.of(spec))
    (tmp_path / "compact" / "evil.py").write_text("raise SystemExit")
    hub = LocalHub(tmp_path / "hub")
    cp.push_to_hub(tmp_path / "compact", "me/small", api=hub)
    assert not (tmp_path / "hub" / "me" / "small" / "evil.py").exists()
    with torch.no_grad():
        assert cp.from_hub("me/small", api=hub)(images).equal(small.eval()(images))


def test_what_nobody_could_load_is_not_sent(tmp_path: Path) -> None:
    save(nn.Conv2d(3, 4, 3), tmp_path / "plain")
    with pytest.raises(ArgumentError, match="Origin"):
        cp.push_to_hub(tmp_path / "plain", "me/plain", api=LocalHub(tmp_path))
    with pytest.raises(ArgumentError, match="cannot be read"):
        cp.from_hub("me/none", api=LocalHub(tmp_path))


def test_a_refusal_is_our_error(tmp_path: Path) -> None:
    class Closed(LocalHub):
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise OSError("401")

    save(models.build("resnet20"), tmp_path / "net", Origin.of(models.resolve("resnet20")))
    with pytest.raises(OutputError, match="me/net"):
        cp.push_to_hub(tmp_path / "net", "me/net", api=Closed(tmp_path))
