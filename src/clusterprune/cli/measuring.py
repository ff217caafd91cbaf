"""A network and its compact successor, measured alike."""

from dataclasses import replace
from typing import Any

from torch import nn

from clusterprune import runs
from clusterprune.cli.opening import Subject
from clusterprune.cli.progress import Display
from clusterprune.data import Split
from clusterprune.runs import HitsByClass
from clusterprune.tasks import Task


def runtime_of(runtime: str | None) -> dict[str, str]:
    """Return what a result is to say of the runtime that times are of: nothing of PyTorch as it is."""
    return {} if runtime is None else {"runtime": runtime}


def measure_both(
    subject: Subject,
    compact: nn.Module,
    task: Task | None,
    test: Split | None,
    wanted: dict[str, Any],
    timeline: runs.Timeline,
    display: Display,
    memory: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what ``result.json`` and ``details.json`` of a compression hold.

    The test split is read here alone, after every choice.

    Parameters
    ----------
    wanted
        The run's options; `latency_batch`, `runtime`, `evaluate`, `method` and `seed` are read.
    memory
        Where the network itself was measured before, beside another compact one, or what is to be told so.
    """
    memory = {} if memory is None else memory
    models = {"baseline": subject.model, "compressed": compact}
    with timeline.phase("time both"):
        latencies = runs.time_in_turns(
            list(models.values()), subject.example, batch=wanted["latency_batch"], runtime=wanted["runtime"]
        )
    measured, by_class = dict[str, Any](), dict[str, HitsByClass]()
    for (name, model), latency in zip(models.items(), latencies, strict=True):
        if name not in memory:
            counted = HitsByClass()
            with timeline.phase(f"measure {name}") as tell:
                found = runs.measure(model, subject.example, test, task, latency=latency, progress=tell, each=counted)
            if name == "baseline":
                memory[name] = found, counted
        else:
            found, counted = memory[name]
            found = replace(found, latency_ms=latency.median_ms, latency_iqr_ms=latency.iqr_ms)
        measured[name], by_class[name] = found.to_dict(), counted
    if test is None and wanted["evaluate"]:
        display.line("There are no test images, so only costs were measured.", "yellow")
    result = {
        "command": "compress",
        "method": wanted["method"],
        **measured,
        **runtime_of(wanted["runtime"]),
        "seconds": timeline.seconds,
        "seed": wanted["seed"],
        "input": list(subject.example.shape[1:]),
        **runs.environment(subject.example.device),
    }
    names = () if test is None else test.classes
    return result, runs.details(models, by_class, names)
