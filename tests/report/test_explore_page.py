"""The page of `clusterprune explore`, opened in a browser."""

from pathlib import Path
from typing import Any

import pytest

from clusterprune.report.browser import installed, page
from clusterprune.report.explore import explore_page


def found(model: str = "net.py:build") -> dict[str, Any]:
    """Return what `explore` finds, for ten budgets of a network with two groups."""
    rows = []
    for number in range(10):
        keep = (number + 1) / 10
        rows.append(
            {
                "keep": round(keep, 3), "predicted_loss": 1 - keep, "metric": 40 + 50 * keep**0.3,
                "macs": round(41e6 * keep), "params": round(272e3 * keep), "bytes": round(1.1e6 * keep),
                "latency_ms": 2 + 6 * keep, "latency_iqr_ms": 0.3,
                "widths": {"layer1.0.conv1": number + 6, "layer2.0.conv1": 3 * number + 2},
                "command": "" if number == 9 else f"clusterprune compress --keep-macs {keep:.3f} --out runs/small",
            }
        )  # fmt: skip
    return {
        "model": model, "about": "Input 3 x 32 x 32; 256 images looked at.", "note": "Fitted for a short while.",
        "metric": {"name": "accuracy", "unit": " %"}, "latency": {"batch": 1}, "rows": rows[::-1],
    }  # fmt: skip


def test_a_page_is_one_small_file_that_names_no_address(tmp_path: Path) -> None:
    text = explore_page(found("</script><script>alert(1)</script>&"))
    assert len(text) < 100_000
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which is not asked for
    assert "https://" not in text
    assert "{{" not in text
    assert "alert(1)</script>" not in text
    assert "default-src 'none'" in text


def test_the_slider_moves_the_numbers_and_nothing_is_asked_of_a_network(tmp_path: Path) -> None:
    browser = installed()
    if browser is None:
        pytest.skip("there is no Chromium here; apt-get install chromium has one")
    file = tmp_path / "explore.html"
    file.write_text(explore_page(found("<b>net</b>")), encoding="utf-8")
    text = "document.getElementById('{}').textContent".format
    with page(browser) as opened:
        opened.open(file)
        assert opened.evaluate("document.querySelector('h1').textContent") == "<b>net</b>: what a budget leads to"
        assert opened.evaluate(text("kept")) == "50.0 %"  # begins near a half
        before = opened.evaluate(text("numbers"))
        opened.evaluate("document.getElementById('budget').focus()")
        opened.press("ArrowRight", 39)
        assert opened.evaluate(text("kept")) == "60.0 %"
        after = opened.evaluate(text("numbers"))
        assert after != before
        for said in ("82.90 %", "5.60 ms", "24.60 M", "163.20 k", "660.0 kB", "1.43 \u00d7 as fast"):
            assert said in after, after
        assert "--keep-macs 0.600" in opened.evaluate(text("command"))
        assert "11 of 15" in opened.evaluate(text("widths"))
        assert opened.evaluate("document.querySelectorAll('tr.now').length") == 1
        assert "60.0 % of the multiply-adds" in opened.evaluate("document.getElementById('budget').ariaValueText")
        opened.press("End", 35)
        assert opened.evaluate(text("kept")) == "all"
        assert opened.evaluate("document.getElementById('command').hidden")
        # On a telephone nothing is wider than the screen, and every control has a name.
        opened.look(390, 844)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        tree = opened.call("Accessibility.getFullAXTree")["nodes"]
        named = {n["role"]["value"]: n.get("name", {}).get("value") for n in tree if not n.get("ignored")}
        assert named["slider"] == "Multiply-adds to keep"
        assert named["image" if "image" in named else "img"]
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith("data:")] == [file.resolve().as_uri()]
