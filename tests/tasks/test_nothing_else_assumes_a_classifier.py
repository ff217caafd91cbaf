import re
from pathlib import Path

import clusterprune

ELSEWHERE = ("tasks", "data", "models", "evaluate/accuracy.py", "evaluate/__init__.py")
"""What knows of classes: tasks; data, which have labels; factories of models; and the call for a classifier's user."""
WORDS = re.compile(
    r"\b(top_?-?[15]|cross[_ ]?entropy|logits\w*|accurac(?:y\w*|ies)|label_smoothing|labelled|classifiers?)\b", re.I
)
ALLOWED = {
    # The setting of a task's loss, by the name that recipes know it by.
    "train/config.py": {"label_smoothing"},
    "train/prepare.py": {"label_smoothing"},
    "cli/train.py": {"label_smoothing"},
    # Names of fields in records, whatever the task's deciding metric is.
    "studies/comparison.py": {"accuracy", "accuracy_cut"},
    "studies/recipe.py": {"accuracy", "accuracy_top5"},
    "methods/_work.py": {"accuracy"},
    "methods/icp_steps.py": {"accuracy", "accuracy_cut"},
    "methods/once.py": {"accuracy_cut"},
    "methods/slimming.py": {"accuracy_cut", "label_smoothing"},
    "methods/wlp.py": {"accuracy_cut"},
    "cli/compare.py": {"accuracy", "accuracy_cut"},
    "report/published.py": {"accuracy"},
    "report/ranking.py": {"accuracy", "accuracy_cut"},
    "report/several.py": {"accuracy"},
    # Columns of the papers' figures.
    "studies/figures/_base.py": {"accuracy", "accuracies"},
    "studies/figures/clusters.py": {"accuracy", "accuracy_untrained"},
    "studies/figures/searches.py": {"accuracy"},
    "studies/figures/training.py": {"accuracy", "accuracy_by_epoch"},
    # How far two outputs are apart, by what they look like: what tasks say where they know no better.
    "merge/divergence.py": {"logits"},
    "merge/statistics.py": {"logits"},
    "merge/bn_images.py": {"logits", "cross_entropy"},
    # Channels have labels too.
    "graph/walk.py": {"labelled"},
}


def test_nothing_but_tasks_speaks_of_labels_or_accuracy() -> None:
    """A new task is new files in tasks/ alone; what stands in `ALLOWED` may go, and nothing may come."""
    home = Path(clusterprune.__file__).parent
    found: dict[str, set[str]] = {}
    for path in sorted(home.rglob("*.py")):
        name = path.relative_to(home).as_posix()
        if words := {match.group(0).lower() for match in WORDS.finditer(path.read_text())}:
            found[name] = words
    others = {name: words for name, words in found.items() if not name.startswith(ELSEWHERE)}
    assert others == ALLOWED
