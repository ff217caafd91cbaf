"""The options that several commands share: one name, one meaning, one help text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterprune.cli.presets import remember_out, remember_resume, use_config
from clusterprune.runtimes.running import runtime_names
from clusterprune.tasks import TASKS

MODEL_HELP = "Built-in name (vgg16, resnet56, …), torchvision:NAME, timm:NAME, or path/to/file.py:factory."
DATA_HELP = (
    "digits, cifar10:DIR, cifar100:DIR, imagenet:DIR, or folder:DIR (train/, and test/ or val/; one folder per class); "
    "with boxes voc:DIR or coco:DIR."
)

Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help=MODEL_HELP, rich_help_panel="Model", show_default=False)
]
RunsModel = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help=MODEL_HELP, rich_help_panel="Model", show_default="that of the run"),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights: .safetensors, or a .pt/.pth with tensors alone; or the folder of an earlier run.",
        rich_help_panel="Model",
        show_default=False,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        "--input-size",
        min=1,
        metavar="PIXELS",
        help="Height and width that images are brought to.",
        rich_help_panel="Model",
        show_default="as the weights' run, or the model, states; else the images' own where all agree; else 224",
    ),
]
_STATISTICS = "of the images' channels in [0, 1], with commas between them; one number stands for all."
_STATED = "as the weights' run, or the model, states; else ImageNet's"
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="M,M,M", help=f"Mean {_STATISTICS}", rich_help_panel="Model", show_default=_STATED),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std", metavar="S,S,S", help=f"Standard deviation {_STATISTICS}", rich_help_panel="Model",
        show_default=_STATED,
    ),
]  # fmt: skip
Classes = Annotated[
    int | None,
    typer.Option(
        "--num-classes",
        min=1,
        metavar="N",
        help="Outputs of the model.",
        rich_help_panel="Model",
        show_default="those of the weights; without weights, of the data",
    ),
]
Approximate = Annotated[
    bool,
    typer.Option(
        "--approximate",
        help="Cut channels too that a norm takes its statistics over; the norm becomes that of the kept channels.",
        rich_help_panel="Model",
    ),
]
Data = Annotated[
    str, typer.Option("--data", metavar="DATA", help=DATA_HELP, rich_help_panel="Data", show_default=False)
]
OptionalData = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP, rich_help_panel="Data", show_default=False)
]
RunsData = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help=DATA_HELP, rich_help_panel="Data", show_default="that of the run"),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="imagenet|FILE",
        help=(
            "Which output each class of the data is: imagenet for folders named by WordNet ids, or a file with one "
            "class a line in the order of the outputs, or JSON of classes and outputs."
        ),
        rich_help_panel="Data",
        show_default="in their order; imagenet for WordNet ids and 1,000 outputs",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DIR",
        help="Draw the images to look at from any folder of images; --data is then for training and test alone.",
        rich_help_panel="Data",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="|".join(TASKS),
        help="What the model is for; plain compares outputs as they are, and needs no labels.",
        rich_help_panel="Data",
        show_default="detection of data with boxes, else classification",
    ),
]
METHOD, TRAINING = "Method", "Training"


def training(name: str, metavar: str, text: str) -> Any:
    """Return an option of a training that has a default of its own for every method."""
    shown = "the method's own"
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=TRAINING, show_default=shown)


def augment(panel: str = TRAINING) -> Any:
    """Return the option of how training images are varied, in a panel of the help."""
    metavar, text = "crop_flip|crop|resized_crop_flip|none", "Random shifts and mirror images."
    return typer.Option("--augment", metavar=metavar, help=text, rich_help_panel=panel)


def precision(panel: str = TRAINING) -> Any:
    """Return the option of what a training computes in, in a panel of the help."""
    metavar, text = "auto|float32|bfloat16|float16", "auto takes bfloat16 where the processor computes in it."
    return typer.Option("--precision", metavar=metavar, help=text, rich_help_panel=panel)


Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Epochs of the training; of methods that cut by turns or once, after the last cut.",
        rich_help_panel=TRAINING,
        show_default="as published; of methods that cut once none",
    ),
]
Validation = Annotated[
    float,
    typer.Option(
        "--validation",
        min=0.0,
        max=0.9,
        metavar="SHARE",
        help="Share of the training images held out to watch, and for what a method chooses; 0 for none.",
        rich_help_panel=TRAINING,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting of the method, such as merging=refit; may be repeated. A wrong name lists them all.",
        rich_help_panel=METHOD,
        show_default=False,
    ),
]
_OUT = typer.Option(
    "--out",
    metavar="DIR",
    help="Folder for everything that the run writes. It must be new or empty.",
    rich_help_panel="Run",
    is_eager=True,
    callback=remember_out,
    show_default=False,
)
Out = Annotated[Path, _OUT]
OptionalOut = Annotated[Path | None, _OUT]
"""Of commands that write nothing when they only list."""
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --out; its other options are read from there.",
        rich_help_panel="Run",
        is_eager=True,
        callback=remember_resume,
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        "--memory-limit",
        metavar="GIB",
        help="Refuse at once what would take more, beside the network and the program.",
        rich_help_panel="Run",
        show_default="none",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check options, model, data and budget, say what time and memory are expected, and write nothing.",
        rich_help_panel="Run",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same result.", rich_help_panel="Run"),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute, such as cpu or cuda:0.",
        rich_help_panel="Run",
        show_default="cuda if there is one, else cpu",
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write what trainings report for TensorBoard, into tensorboard/ of the run's folder.",
        rich_help_panel="Run",
    ),
]
LatencyBatch = Annotated[
    int,
    typer.Option("--latency-batch", min=1, metavar="N", help="Images in a timed pass.", rich_help_panel="Run"),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="RUNTIME",
        help=(
            f"What times are measured by: {', '.join(runtime_names())}; with threads as in onnxruntime:threads=1. With "
            "--keep-latency what the model is made fast for."
        ),
        rich_help_panel="Run",
        show_default="PyTorch as it is",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Take all options not given here from this file, such as the config.yaml of an earlier run.",
        rich_help_panel="Run",
        is_eager=True,
        callback=use_config,
        show_default=False,
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="FILE.py",
        help=(
            "Run this file, where not the command but the run, the recipe or the study names it; FILE.py@SHA256 pins "
            "it; may be repeated."
        ),
        rich_help_panel="Model",
        show_default=False,
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show where an error comes from, and every warning.", rich_help_panel="Run"),
]
