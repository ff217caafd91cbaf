"""Counterexamples that are known and not mended yet: each must go on failing until it is."""

import pytest

KNOWN = {
    "test_pixel_shuffle_cuts_whole_maps": "a pixel shuffle behind unevenly united maps",
    "test_what_depends_on_the_batch_or_writes_in_place[linear-Attention-option1]": "the batch is not in front",
    "test_what_depends_on_the_batch_or_writes_in_place[hard_view-Attention-option1]": "the batch is not in front",
    "test_numbers_that_follow_the_batch_are_found_whatever_was_traced[1]": "a constant that follows the batch",
    "test_numbers_that_follow_the_batch_are_found_whatever_was_traced[2]": "a constant that follows the batch",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    for item in items:
        if item.name in KNOWN and "graph" in item.path.parts:
            item.add_marker(pytest.mark.xfail(reason=KNOWN[item.name], strict=True))
