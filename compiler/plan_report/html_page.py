"""One page that shows a plan: two trees, the flows between them, each op drawn. No network, no file beside it.

Takes an `Overview`, writes HTML. The page holds the overview as data; `templates/plan.html.jinja` is all of its look
and behaviour. Refuses a place where nothing can be written.
"""

from __future__ import annotations

import json
from pathlib import Path

from compiler.diagnostics import refuse
from compiler.plan_report.overview import Overview
from compiler.templating import environment


def page(view: Overview) -> str:
    """The HTML of a plan."""
    # Inside a script element nothing but its end tag is markup.
    data = json.dumps(view.as_json(), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment().get_template("plan.html.jinja").render(data=data)


def write_page(view: Overview, path: Path) -> None:
    """Write it. Raises Refusal."""
    try:
        path.write_text(page(view), encoding="utf-8")
    except OSError as error:
        refuse(str(path), f"cannot be written: {error.strerror}", "output-unwritable")
