"""The one bisection, and spending of what it leaves."""

from clusterprune.budget.search import search, spend


def test_the_loosest_value_that_fits_is_found_from_either_side() -> None:
    assert abs((search(float, lambda x: x <= 0.3, tight=0.0, loose=1.0) or 0) - 0.3) < 1e-8
    assert abs((search(float, lambda x: x >= 0.3, tight=1.0, loose=0.0) or 0) - 0.3) < 1e-8


def test_what_cannot_be_made_so_tight_is_looked_for_looser() -> None:
    found = search(lambda x: x if x > 0.2 else None, lambda x: x <= 0.3, tight=0.0, loose=1.0)
    assert found is not None
    assert abs(found - 0.3) < 1e-8


def test_nothing_is_found_where_nothing_fits() -> None:
    assert search(float, lambda _: False, tight=0.0, loose=1.0) is None


def test_what_is_left_is_spent_on_all_that_fits() -> None:
    def widen(found: dict[str, int], waiting: list[str]) -> tuple[str, dict[str, int] | None]:
        name = min(waiting, key=lambda key: (found[key], key))
        return name, None if found[name] == 5 else {**found, name: found[name] + 1}

    price = {"cheap": 1, "dear": 4}
    spent = spend({"cheap": 1, "dear": 1}, price, widen, lambda f: sum(price[k] * n for k, n in f.items()) <= 13)
    assert spent == {"cheap": 5, "dear": 2}
