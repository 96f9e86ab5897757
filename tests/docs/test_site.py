"""The site has every page, its links to the repository lead to files that exist, and it loads nothing from elsewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import browser

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav: Any) -> Iterator[str]:
    """The files that a navigation names."""
    for entry in nav:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(pages(CONFIG["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))


def test_links_out_of_the_documents_lead_to_files() -> None:
    found = [
        (page.name, link)
        for page in DOCS.glob("*.md")
        for link in re.findall(r"\]\(\.\./([^)#]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(found) > 100
    assert [(page, link) for page, link in found if not (ROOT / link).exists()] == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    """mkdocs-material loads fonts unless told not to, and figures of the repository where `repo_url` is set."""
    assert CONFIG["theme"]["font"] is False
    assert "repo_url" not in CONFIG
    assert CONFIG["strict"] is True
    assert all((DOCS / name).is_file() for name in CONFIG["extra_css"] + CONFIG["extra_javascript"])
    for name in CONFIG["extra_css"] + CONFIG["extra_javascript"]:
        assert "http" not in (DOCS / name).read_text()


def test_what_builds_it_is_in_the_extra() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    pinned = (ROOT / "constraints.txt").read_text()
    for requirement in extra:
        name = re.split(r"[>\[]", requirement)[0]
        assert f"\n{name}==" in pinned


@pytest.mark.skipif(browser.find() is None, reason="there is no Chromium here")
def test_the_gallery_is_filtered(tmp_path: Path) -> None:
    rows = [
        ("a", "A", "X", "text", "recorded"),
        ("b", "B", "Y", "audio", "written"),
        ("c", "B", "X", "text", "written"),
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{head}</th>" for head in ("spec", "source", "target", "modality", "proven by"))
    (tmp_path / "page.html").write_text(
        f"<h1>Gallery</h1><table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>"
        f"<script>{(DOCS / 'gallery.js').read_text()}</script>"
    )
    program = browser.find()
    assert program is not None
    shown = (
        "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent).join('')"
    )
    change = "e.value = {!r}; e.dispatchEvent(new Event('input', {{bubbles: true}}))"
    with browser.Browser(program, tmp_path / "profile") as page:
        page.open(tmp_path / "page.html")
        assert page.value(shown) == "abc"
        page.value("{const e = document.querySelectorAll('select')[0]; " + change.format("B") + "}")
        assert page.value(shown) == "bc"
        page.value("{const e = document.querySelectorAll('select')[2]; " + change.format("audio") + "}")
        assert page.value(shown) == "b"
        assert page.value("document.querySelector('output').textContent") == "1 of 3 specs"
        assert page.value("location.hash") == "#source=B&modality=audio"
        page.value("{const e = document.querySelector('input'); " + change.format("nothing such") + "}")
        assert page.value(shown) == ""
        assert page.complaints == []
