"""A self-contained HTML page that shows a plan: two trees, the edges between them, a drawing of each op, and config.json.

Takes an `Overview`, writes HTML. The page contains the overview as JSON; `templates/plan/` has its style and script. It
needs no network and no other file.
"""

from __future__ import annotations

import json
from pathlib import Path

from compiler.diagnostics import refuse
from compiler.plan_report.difference import Difference
from compiler.plan_report.overview import Overview
from compiler.templating import environment


def page(view: Overview, found: Difference | None = None) -> str:
    """The HTML of a plan, and how it differs from another."""
    # Values as text, because JavaScript would write 500000.0 and 1e-05 otherwise.
    shown = {
        "config_table": [
            {"field": row.field, "text": row.text, "origin": row.origin, "kind": row.kind}
            for row in view.config_table
            if not row.repeats
        ],
        "defaults": {name: json.dumps(value, ensure_ascii=False) for name, value in view.defaults.items()},
        "against": found and found.as_json(),
    }
    data = json.dumps(view.as_json() | shown, ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # in a script element only its end tag is markup
    return environment().get_template("plan/page.html.jinja").render(data=data)


def write_page(view: Overview, path: Path, found: Difference | None = None) -> None:
    """Write the page to `path`. Raises Refusal: `output-unwritable`."""
    try:
        path.write_text(page(view, found), encoding="utf-8")
    except OSError as error:
        refuse(str(path), f"cannot be written: {error.strerror}", "output-unwritable")
