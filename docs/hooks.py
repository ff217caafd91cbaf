"""What the site changes of the pages: roles of docstrings, which the site shows as code."""

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles before names in code."""
    return ROLE.sub("", html)
