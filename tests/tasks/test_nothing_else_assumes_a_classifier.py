import re
from pathlib import Path

import clusterprune

ROOMS = ("criteria", "similarity", "train", "methods", "search", "studies")
WORDS = re.compile(
    r"\b(top_?-?[15]|cross_?entropy|logits\w*|accuracy\w*|label_smoothing|labelled|classifiers?)\b", re.I
)
ALLOWED = {
    # The setting of a task's loss, by the name that recipes know it by.
    "train/config.py": {"label_smoothing"},
    "train/prepare.py": {"label_smoothing"},
    # Names of fields in records, which are those of the task's metrics.
    "train/result.py": {"train_accuracy", "validation_accuracy"},
    "studies/comparison.py": {"accuracy", "accuracy_cut"},
    "studies/recipe.py": {"accuracy", "accuracy_top5"},
    "methods/_work.py": {"accuracy"},
    "methods/acp.py": {"accuracy"},
    "methods/icp_steps.py": {"accuracy", "accuracy_cut"},
    "methods/once.py": {"accuracy_cut"},
    "methods/slimming.py": {"accuracy_cut", "label_smoothing"},
    # Columns of the papers' figures.
    "studies/figures/_base.py": {"accuracy"},
    "studies/figures/clusters.py": {"accuracy", "accuracy_untrained"},
    "studies/figures/searches.py": {"accuracy"},
    "studies/figures/training.py": {"accuracy", "accuracy_by_epoch"},
}


def test_nothing_but_tasks_speaks_of_labels_or_accuracy() -> None:
    """A new task is new files in tasks/ alone; what stands in `ALLOWED` may go, and nothing may come."""
    home = Path(clusterprune.__file__).parent
    for room in ROOMS:
        for path in sorted((home / room).rglob("*.py")):
            name = path.relative_to(home).as_posix()
            found = {match.group(0).lower() for match in WORDS.finditer(path.read_text())}
            assert found <= ALLOWED.get(name, set()), name
