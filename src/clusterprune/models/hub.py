"""Compact models on the Hugging Face Hub: the folder that :func:`clusterprune.save` writes, up and down."""

from pathlib import Path
from typing import Any

from torch import nn

from clusterprune.errors import ArgumentError, OutputError
from clusterprune.models.artifact import load, read_origin
from clusterprune.runtimes.running import optional_package

FILES = ("*.json", "*.safetensors")
"""All that is sent and fetched: data, no code."""


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, api: Any = None) -> str:
    """Send a folder that :func:`clusterprune.save` wrote to a repository, which is made where there is none.

    Parameters
    ----------
    repo_id
        "owner/name".
    api
        A ``huggingface_hub.HfApi``; None is one with the token that ``hf auth login`` has left.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    ArgumentError
        If the folder does not say what the model was cut from, or huggingface_hub is not installed.
    OutputError
        If the Hub refuses.
    """
    hub = optional_package("huggingface_hub", "the Hub", "hub")
    errors = optional_package("huggingface_hub.errors", "the Hub", "hub")
    path = Path(folder).expanduser()
    if read_origin(path) is None:
        raise ArgumentError(
            f"folder={str(folder)!r} does not say what its model was cut from, so that nobody could load it; save it "
            "with an origin (Origin.of)"
        )
    api = api or hub.HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id, folder_path=str(path), allow_patterns=list(FILES), commit_message="Compact model"
        )
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise OutputError(f"repo_id={repo_id!r} cannot be written ({error}); check its name and your token") from error
    return str(getattr(done, "commit_url", done))


def from_hub(
    repo_id: str, *, revision: str | None = None, trust: str | Path | None = None, api: Any = None
) -> nn.Module:
    """Fetch a compact model and load it; see :func:`clusterprune.load`.

    Parameters
    ----------
    revision
        A commit, tag or branch; a commit's full hash is always the same files.
    trust
        As of :func:`clusterprune.load`: nothing that is fetched is ever run.

    Raises
    ------
    ArgumentError
        If huggingface_hub is not installed, or the repository cannot be read.
    UntrustedCodeError, WeightsError, ModelError
        As :func:`clusterprune.load`.
    """
    hub = optional_package("huggingface_hub", "the Hub", "hub")
    errors = optional_package("huggingface_hub.errors", "the Hub", "hub")
    api = api or hub.HfApi()
    try:
        folder = api.snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES))
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise ArgumentError(f"repo_id={repo_id!r} cannot be read ({error}); check its name and your token") from error
    return load(folder, trust=trust)
