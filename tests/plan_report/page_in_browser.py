"""The page of a plan in a real Chromium: mouse, keyboard, phone, print, export, and axe's rules of accessibility.

Run by `make test-page`; skipped where there is no Chromium. `AXE` names the file axe.min.js of the npm package axe-core.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import browser
from support.error_runs import SHAPES, weights
from support.oracle_cases import ORACLES, Case

from compiler.cli.main import main
from compiler.jobs.prepare import prepare
from compiler.plan_report.html_page import write_page
from compiler.plan_report.overview import overview

SPEC = Path(__file__).parent.parent / "errors" / "runs" / "small.yaml"
CHROMIUM = browser.find()
AXE = os.environ.get("AXE", "")
# Permutations and dropped tensors; split and concat; experts that are stacked; computed values; images.
CASES = [
    "meta_llama/llama3_1shard_gqa",
    "megatron_mcore/qwen3_moe",
    "minimind_v2_early/moe",
    "deepseek_v3/fp8",
    "clip/vit",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    assert CHROMIUM is not None
    with browser.Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_to_complain_of(page: browser.Browser) -> Iterator[None]:
    page.show(1300, 900)
    yield
    complaints, page.complaints = page.complaints, []
    assert complaints == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The page of a small plan with a split and a tie."""
    weights(str(tmp_path / "model.safetensors"), SHAPES | {"lm_head.weight": [64, 32]})
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    with pytest.raises(SystemExit) as done:
        main(["plan", str(SPEC), str(tmp_path / "model.safetensors"), "--html", str(tmp_path / "plan.html")])
    assert done.value.code == 0
    return tmp_path / "plan.html"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of recorded checkpoints."""
    folder, made = tmp_path_factory.mktemp("pages"), {}
    for name in CASES:
        case = Case(next(path for path in sorted((ORACLES / name).parent.glob(f"{Path(name).name}*")) if path.is_dir()))
        ready = prepare(case.program, case.request)
        view = overview(
            ready.plan, ready.checkpoint, defaults=ready.defaults, notes=[], jobs=2, full=False, compared=False
        )
        made[name] = folder / f"{case.spec}.html"
        write_page(view, made[name])
    return made


def texts(page: browser.Browser, selector: str) -> Any:
    return page.value(f"[...document.querySelectorAll({selector!r})].map((made) => made.textContent)")


def focused(page: browser.Browser) -> str:
    return str(page.value("document.activeElement.dataset.row || document.activeElement.id"))


def chosen(page: browser.Browser) -> Any:
    return page.value("[document.querySelector('#panel h2').textContent, location.hash]")


def test_the_picture(page: browser.Browser, small: Path) -> None:
    page.open(small)
    assert texts(page, ".source .row .mono")[:2] == ["embed.weight", "norm.weight"]
    assert page.value("document.querySelectorAll('.edge').length") == 12  # one to each folded target, and the tie
    assert page.value("document.querySelectorAll('.edge[data-effect=split]').length") == 2
    assert texts(page, ".tag") == ["split"]
    assert texts(page, ".legend text") == [
        "copy",
        "split or concat",
        "tied: written once",
        "width: bytes (square root)",
    ]
    # The same bytes have the same width, four times as many twice the width.
    embed, gate, down = [
        page.value(f"current.edges.find((e) => e.to && e.to.path.includes('{name}')).width")
        for name in ("embed", "gate_proj", "down_proj")
    ]
    assert gate == down == pytest.approx(embed * (48 / 64) ** 0.5 * 2**0.5)
    assert texts(page, "#config tbody tr td:first-child")[0] == "vocab_size"


def test_edges_are_hovered_and_clicked(page: browser.Browser, small: Path) -> None:
    page.open(small)
    page.click(".tag")
    assert chosen(page) == ["gate_up", "#rule=gate_up"]
    assert page.value("document.querySelectorAll('.edge.chosen, .row.chosen').length") == 5
    assert page.value("document.querySelectorAll('#panel svg .ribbon').length") == 2
    assert "gate_up: split" in page.value("document.querySelector('#tip').textContent")
    page.click("#close")
    assert chosen(page) == ["The plan", ""]
    page.click(".edge[data-effect=tied] .hit")
    assert chosen(page)[0] == "lm_head.weight"


def test_the_keyboard(page: browser.Browser, small: Path) -> None:
    page.open(small)
    seen = []
    for _ in range(10):
        page.press("Tab")
        seen.append(focused(page))
    assert seen[:7] == ["search", "as-diagram", "as-list", "fold", "save-svg", "save-png", "theme"]
    assert seen[7] == page.value("document.querySelector('.source .row').dataset.row")
    assert seen[8] == page.value("document.querySelector('.target .row').dataset.row")
    page.value("document.querySelector('.source .row').focus()")
    while "gate_up" not in focused(page):
        page.press("ArrowDown")
    assert page.value("getComputedStyle(document.activeElement.querySelector('.back')).strokeWidth") == "2px"
    page.press("Enter")
    assert chosen(page) == ["gate_up", "#rule=gate_up"]
    page.press("Escape")
    assert chosen(page) == ["The plan", ""]
    assert "gate_up" in focused(page)
    page.press("ArrowLeft", "ArrowLeft")
    assert not [name for name in texts(page, ".source .row .mono") if "gate_up" in name]
    page.press("ArrowRight")
    assert [name for name in texts(page, ".source .row .mono") if "gate_up" in name]
    page.press("Home", "End")
    assert focused(page) == page.value("[...document.querySelectorAll('.source .row')].at(-1).dataset.row")


def test_search(page: browser.Browser, small: Path) -> None:
    page.open(small)
    everything = texts(page, ".source .row .mono")
    page.press("/")
    page.call("Input.insertText", text="embed")
    assert texts(page, ".target .row .mono") == ["model", "embed_tokens.weight"]
    assert texts(page, "#matches") == ["1 of 11 match"]
    assert len(texts(page, "#list a")) == 1
    page.press("Escape")
    assert texts(page, ".source .row .mono") == everything
    page.call("Input.insertText", text="gate_up")  # the name of a rule
    assert "gate_proj.weight" in "".join(texts(page, ".target .row .mono"))
    page.call("Input.insertText", text="no such name")
    assert texts(page, "#list li") == ["Nothing matches."]


def test_links(page: browser.Browser, small: Path) -> None:
    page.open(small, "#rule=gate_up")
    assert chosen(page)[0] == "gate_up"
    page.open(small, "#rule=rename&tensor=model.norm.weight")
    assert "norm.weight" in texts(page, "#panel li")[0]
    every = page.value("lines.map((_, n) => { choose(n); return linked(location.hash) === n; })")
    assert every == [True] * 11
    page.open(small, "#rule=nothing")
    assert chosen(page)[0] == "The plan"


@pytest.mark.parametrize("name", CASES)
def test_every_line_has_its_details(page: browser.Browser, recorded: dict[str, Path], name: str) -> None:
    page.open(recorded[name])
    faults = page.value(
        "lines.flatMap((line, n) => { choose(n); return /NaN|undefined|Infinity/.test(document.querySelector('main').innerHTML) ? [line.rule] : []; })"
    )
    assert faults == []
    # No label runs into another.
    overlaps = page.value(
        "[...document.querySelectorAll('.row')].filter((row) => { const [a, b] = [...row.querySelectorAll('text')].map((t) => t.getBoundingClientRect());"
        " return b && a.right > b.left - 2; }).map((row) => row.dataset.row)"
    )
    assert overlaps == []


def test_one_head_is_drawn_row_by_row(page: browser.Browser, recorded: dict[str, Path]) -> None:
    page.open(recorded["meta_llama/llama3_1shard_gqa"], "#rule=rope_q")
    drawn = page.value("plan.lines[chosen].picture.targets[0]")
    half = drawn["height"] // 2
    assert [run["start"] for run in drawn["runs"]] == [0, 1]
    assert texts(page, "#panel .sum span")[1].endswith(f"→ {half}–{2 * half - 1}")
    assert f"of {drawn['times']}" in texts(page, "#panel figcaption")[0]
    assert page.value("document.querySelectorAll('.edge[data-effect=permute]').length") == 2


def test_a_phone(page: browser.Browser, recorded: dict[str, Path]) -> None:
    page.show(360, 740)
    for path in recorded.values():
        page.open(path)
        assert page.value("document.documentElement.scrollWidth") == 360
        assert page.value("document.querySelector('#diagram').getClientRects().length") == 0
        page.click("#list a")
        box = page.value(
            "(() => { const b = document.querySelector('#panel').getBoundingClientRect(); return [b.left, b.right, b.bottom]; })()"
        )
        assert box == [0, 360, 740]
        assert page.value("document.documentElement.scrollWidth") == 360


def test_paper(page: browser.Browser, recorded: dict[str, Path]) -> None:
    for path in recorded.values():
        page.show(720, 1000, dark=True, media="print")
        page.open(path)
        page.value("dispatchEvent(new Event('beforeprint'))")
        assert page.value("document.querySelector('#tools').getClientRects().length") == 0
        assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        boxes = page.value(
            "['#diagram', '#list', '#panel', '#config'].map((s) => document.querySelector(s).getBoundingClientRect())"
            ".filter((b) => b.height).map((b) => [b.top, b.bottom])"
        )
        assert len(boxes) >= 3
        assert all(below[0] >= above[1] for above, below in itertools.pairwise(boxes))
        page.value("dispatchEvent(new Event('afterprint'))")


def test_it_is_exported(page: browser.Browser, small: Path) -> None:
    page.show(1300, 900, dark=True)
    page.open(small)
    svg = ElementTree.fromstring(page.value("exported()"))
    assert "down_proj.weight" in "".join(svg.itertext())
    assert "--back:rgb(20, 23, 28)" in svg.attrib["style"]
    assert [made for made in svg.iter() if "hit" in made.get("class", "") or made.get("tabindex")] == []
    page.value(
        "save = (blob, ending) => { globalThis.saved = [blob.type, ending, blob.size]; }; find('#save-png').click()"
    )
    deadline = time.monotonic() + 30
    while not (saved := page.value("globalThis.saved")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert saved[:2] == ["image/png", "png"]
    assert saved[2] > 10_000


def test_colours_follow_the_reader(page: browser.Browser, small: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page.open(small)
    assert page.value(colour) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.value(colour) == "rgb(20, 23, 28)"
    page.show(1300, 900, dark=True)
    page.open(small)
    assert page.value(colour) == "rgb(20, 23, 28)"


@pytest.mark.skipif(not AXE, reason="AXE does not name axe.min.js")
@pytest.mark.parametrize("name", CASES)
def test_axe_finds_nothing(page: browser.Browser, recorded: dict[str, Path], name: str) -> None:
    script = Path(AXE).read_text(encoding="utf-8")

    def violations() -> Any:
        page.value(f"{script};0")
        run = "axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.length, v.nodes[0].html]))"
        return page.call("Runtime.evaluate", expression=run, awaitPromise=True, returnByValue=True)["result"]["value"]

    for width, dark in ((1300, False), (1300, True), (360, False)):
        page.show(width, 800, dark)
        page.open(recorded[name])
        assert violations() == []
        page.value("choose(lines.findIndex((line) => line.picture) < 0 ? 0 : lines.findIndex((line) => line.picture))")
        assert violations() == []
        page.value("view(true)")
        assert violations() == []
    page.value("document.body.append(element('img', {}))")
    assert "image-alt" in {found[0] for found in violations()}


def test_a_broken_page_is_noticed(page: browser.Browser, tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text("<title>broken</title><script>nothing.there</script>")
    page.open(tmp_path / "broken.html")
    assert page.complaints != []
    page.complaints.clear()
