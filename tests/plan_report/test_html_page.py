"""The HTML page of a plan, without a browser: what it contains, that it is one file, and that its colours can be read.
`make test-page` opens pages in Chromium."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.error_runs import SHAPES, weights

from compiler.cli.main import main
from compiler.resources import folder

SPEC = str(Path(__file__).parent.parent / "errors" / "runs" / "small.yaml")
STYLE = Path(folder("templates")) / "plan" / "page.css.jinja"


def moe(path: Path, layers: int, experts: int) -> None:
    """A mixture of experts from its header alone: the data is a hole in the file."""
    width, inner, rows = 64, 32, 64
    shapes = {"model.embed_tokens.weight": [128, width], "model.norm.weight": [width], "lm_head.weight": [128, width]}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{n}_layernorm.weight": [width] for n in ("input", "post_attention")}
        shapes |= {f"{at}self_attn.{p}_proj.weight": [rows, width] for p in "qkv"}
        shapes |= {f"{at}self_attn.o_proj.weight": [width, rows], f"{at}mlp.gate.weight": [experts, width]}
        shapes |= {f"{at}self_attn.{p}_norm.weight": [8] for p in "qk"}
        for e in range(experts):
            shapes |= {f"{at}mlp.experts.{e}.{n}_proj.weight": [inner, width] for n in ("gate", "up")}
            shapes |= {f"{at}mlp.experts.{e}.down_proj.weight": [width, inner]}
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def write(spec: object, source: Path, *words: str) -> str:
    page = source.parent / "plan.html"
    with pytest.raises(SystemExit) as done:
        main(["plan", str(spec), str(source), *words, "--html", str(page)])
    assert done.value.code == 0
    return page.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The start tags of a page, and the text of each element with an id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") or ""

    def handle_data(self, data: str) -> None:
        self.text[self.inside] = self.text.get(self.inside, "") + data


def data(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(page).text["data"])
    return found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    weights(str(tmp_path / "model.safetensors"), SHAPES | {"lm_head.weight": [64, 32]})
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    return tmp_path / "model.safetensors"


def test_what_it_contains(small: Path) -> None:
    page = write(SPEC, small)
    plan, elements = data(page), Elements(page)
    assert [plan["spec"], plan["target"], len(plan["lines"]), len(plan["ties"])] == ["small", "LlamaForCausalLM", 10, 1]
    assert {line["effect"] for line in plan["lines"]} == {"copy", "split"}
    rows = {row["field"]: (row["text"], row["origin"]) for row in plan["config_table"]}
    assert rows["rope_theta"] == ("10000.0", "default")  # not 10000, which JavaScript would write
    assert rows["num_attention_heads"] == ("4", "config.json")
    assert plan["defaults"]["rope_theta"] == "10000.0"
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"search", "diagram", "list", "panel", "config", "save-svg", "save-png", "data"} <= {*ids}


def test_it_is_the_same_every_time(small: Path) -> None:
    assert write(SPEC, small) == write(SPEC, small)


def test_every_row_of_the_config_is_in_it(small: Path) -> None:
    """Also those of a reversed plan, which writes no config.json: it has none."""
    folder = small.parent / "converted"
    with pytest.raises(SystemExit):
        main(["run", SPEC, str(small), str(folder), "--no-check"])
    page = small.parent / "back.html"
    with pytest.raises(SystemExit) as done:
        main(["plan", SPEC, str(folder), "--reverse", "--html", str(page)])
    assert done.value.code == 0
    plan = data(page.read_text())
    assert (plan["config_table"], plan["reverse"]) == ([], True)
    assert "concat" in {line["label"] for line in plan["lines"]}


def test_it_needs_nothing_else(small: Path) -> None:
    page = write(SPEC, small)
    elements = Elements(page)
    assert not [(t, a) for t, a in elements.tags if {"src", "srcset"} & {*a} or (t == "link" and a["href"] != "data:,")]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(|XMLHttpRequest", page)


def test_a_large_mixture_of_experts_is_a_small_page(tmp_path: Path) -> None:
    """A line for each pattern: 61 layers of 16 experts are 3,500 tensors, and twice as many are no larger page."""
    words = ["num_attention_heads=8", "num_key_value_heads=8", "tie_word_embeddings=false"]
    lengths = []
    for experts in (8, 16):
        moe(tmp_path / "model.safetensors", 61, experts)
        page = write("qwen3_moe", tmp_path / "model.safetensors", *(part for word in words for part in ("--set", word)))
        lengths.append(len(page))
    assert data(page)["totals"]["target_tensors"] == 3 + 61 * (9 + 3 * 16)
    assert lengths[1] < 100_000
    assert lengths[1] - lengths[0] < 100
    assert "model.layers.{0-60}.mlp.experts.{0-15}.down_proj.weight" in page


HOSTILE = "</script><script>alert(1)</script><!--"


def test_names_cannot_leave_the_data(small: Path, tmp_path: Path) -> None:
    """Neither a spec's text nor a tensor's name becomes markup."""
    (tmp_path / "small.yaml").write_text(
        Path(SPEC).read_text().replace("a small spec", HOSTILE) + 'ignore: {"{n:.*alert.*}": a reason}\n'
    )
    weights(str(small), SHAPES | {HOSTILE + ".weight": [2]})
    page = write(tmp_path / "small.yaml", small)
    assert "<script>alert" not in page
    assert "<!--" not in page
    plan = data(page)
    assert plan["summary"] == HOSTILE
    assert plan["ignored"] == [[HOSTILE + ".weight", "a reason"]]


# ---------------------------------------------------------------------------------------------------------------------
# Colours


def luminance(colour: str) -> float:
    """The relative luminance of `#rrggbb`. https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_text_can_be_read_in_every_state() -> None:
    """WCAG AA: 4.5 for text, 3 for the borders of controls, in both schemes and on every background."""
    pairs = re.findall(r"--([a-z]+): light-dark\((#\w{6}), (#\w{6})\);", STYLE.read_text())
    schemes = [{name: light for name, light, _ in pairs}, {name: dark for name, _, dark in pairs}]
    backs = ["back", "panel", "hover", "chosen"]
    inks = ["ink", "faint", "accent", "copy", "permute", "split", "stack", "compute", "dropped"]
    assert {*backs, *inks, "control", "line"} == {name for name, _, _ in pairs}
    low = [
        (ink, back, colours[ink])
        for colours in schemes
        for back in backs
        for ink, least in [*((ink, 4.5) for ink in inks), ("control", 3.0)]
        if contrast(colours[ink], colours[back]) < least and (ink, back) != ("control", "chosen")
    ]
    assert low == []
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")  # the known border of AA


def test_an_exported_picture_has_all_its_colours() -> None:
    """The names that the script resolves for a file of its own are those that the picture's style uses."""
    plan = STYLE.parent
    used = {
        *re.findall(
            r"var\(--([a-z]+)\)", (plan / "diagram.css.jinja").read_text() + (plan / "diagram.js.jinja").read_text()
        )
    }
    listed = re.search(r"const COLORS = (\[.*?\]);", (plan / "controls.js.jinja").read_text())
    assert listed
    # Chosen rows and controls are not exported.
    assert used - {"accent", "chosen", "control"} == {*json.loads(listed[1])}
