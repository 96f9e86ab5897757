"""A self-contained HTML page that shows a plan: two trees, the flows between them, and a drawing of each op.

Takes an `Overview`, writes HTML. The page contains the overview as JSON; `templates/plan.html.jinja` has its style and
script. It needs no network and no other file.
"""

from __future__ import annotations

import json
from pathlib import Path

from compiler.diagnostics import refuse
from compiler.plan_report.overview import Overview
from compiler.templating import environment


def page(view: Overview) -> str:
    """The HTML of a plan."""
    # In a script element only its end tag is markup.
    data = json.dumps(view.as_json(), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment().get_template("plan/page.html.jinja").render(data=data)


def write_page(view: Overview, path: Path) -> None:
    """Write the page to `path`. Raises Refusal: `output-unwritable`."""
    try:
        path.write_text(page(view), encoding="utf-8")
    except OSError as error:
        refuse(str(path), f"cannot be written: {error.strerror}", "output-unwritable")
