"""`compile plan`: everything in 100 columns, as JSON, and as a page that a real browser shows and a keyboard drives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import browser
from support.error_runs import SHAPES, weights

import mapspec
from compiler.checkpoints.formats import stored_tensor
from compiler.cli.main import main
from compiler.diagnostics import Span
from compiler.ops.rearrange_notation import TRANSPOSE, parse_rearrange
from compiler.plan_report.overview import op_text

SPEC = str(Path(__file__).parent.parent / "errors" / "runs" / "small.yaml")
CHROMIUM = browser.find()


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


def say(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["plan", *map(str, words)])
    said = capsys.readouterr()
    assert done.value.code == 0, said.err
    return said.out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    weights(str(tmp_path / "model.safetensors"), SHAPES)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    return tmp_path / "model.safetensors"


def test_text(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, SPEC, small)
    assert max(map(len, said.splitlines())) <= 100
    assert "layers.{0-1}.mlp.gate_up.weight" in said
    assert "[96, 32] = [2 intermediate_size, hidden_size] float32" in said
    assert "split axis 0" in said
    # Each default is shown once, in the table of config.json.
    assert ["num_key_value_heads", "2", "default"] in [line.split() for line in said.splitlines()]
    assert "defaults used" not in said
    assert "lossy: nothing" in said
    assert "\033" not in said
    assert "gate_up" in say(capsys, SPEC, small, "--full")
    assert "layers.1.mlp.gate_up.weight" in say(capsys, SPEC, small, "--full")


def test_what_is_lost_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, SPEC, small, "--dtype", "float16")
    assert "lossy: rename" in said
    assert "a cast does not record the dtype" in said


def test_headers_are_enough(small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte of a tensor is read, unless it is asked for: then what is tied is compared, as a run does."""
    weights(str(small), SHAPES | {"lm_head.weight": [64, 32]}, ones=("lm_head.weight",))
    read: list[int] = []
    plain = stored_tensor._read
    monkeypatch.setattr(
        stored_tensor, "_read", lambda path, offset, length: read.append(length) or plain(path, offset, length)
    )
    assert "= embed.weight, written once; not compared yet: a run, or --compare" in say(capsys, SPEC, small)
    mapspec.plan(SPEC, small)
    assert read == []
    with pytest.raises(SystemExit) as done:
        main(["plan", SPEC, str(small), "--compare"])
    assert (done.value.code, "[untied-weights]" in capsys.readouterr().err, sum(read)) == (1, True, 2 * 64 * 32 * 4)
    weights(str(small), SHAPES | {"lm_head.weight": [64, 32]})
    assert "= embed.weight, written once; equal bit for bit" in say(capsys, SPEC, small, "--compare")


def test_json(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(say(capsys, SPEC, small, "--json"))
    assert plan["totals"]["target_tensors"] == 20
    line = next(line for line in plan["lines"] if line["rule"] == "gate_up")
    assert (line["line"], line["count"], line["moves"]) == (30, 2, 2)
    # Where the rows of the picture come from: the second half of the source is the second target.
    assert line["picture"]["targets"][1]["whole"][0] == [0, 48, 0]
    full = json.loads(say(capsys, SPEC, small, "--json", "--full"))
    assert sum(line["count"] for line in plan["lines"]) == len(full["lines"])
    assert sum(line["nbytes"] for line in full["lines"]) == full["totals"]["target_bytes"]


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_is_one_small_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moe(tmp_path / "model.safetensors", 32, 8)
    words = ["--set", "num_attention_heads=8", "--set", "num_key_value_heads=8", "--set", "tie_word_embeddings=false"]
    say(capsys, "qwen3_moe", tmp_path / "model.safetensors", *words, "--html", tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    assert len(text) < 100_000
    assert "model.layers.{0-31}.mlp.experts.{0-7}.down_proj.weight" in text
    assert not [
        word
        for word in ("http://", "https://", "src=", "@import")
        if word in text.replace("http://www.w3.org/2000/svg", "")
    ]


def test_names_cannot_leave_the_data(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(SPEC).read_text().replace("a small spec", "</script><script>alert(1)</script>")
    (tmp_path / "small.yaml").write_text(text)
    say(capsys, tmp_path / "small.yaml", small, "--html", tmp_path / "plan.html")
    assert "alert(1)" in (tmp_path / "plan.html").read_text()
    assert "<script>alert" not in (tmp_path / "plan.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with browser.Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shown(page: browser.Browser, tree: str) -> list[str]:
    found = page.value(f"[...document.querySelectorAll('#{tree} .row .name')].map((n) => n.textContent)")
    assert isinstance(found, list)
    return found


def test_a_browser_shows_it(page: browser.Browser, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = small.parent / "plan.html"
    say(capsys, SPEC, small, "--html", html)
    page.open(html)
    assert "gate_up.weight" in shown(page, "source")
    assert "down_proj.weight" in shown(page, "target")
    flows = page.value("document.querySelectorAll('#flows path').length")
    assert flows == 11  # one to each folded target
    # By keyboard alone: into the source tree, down to gate_up, chosen.
    page.press("Tab", "Tab", "Tab", "Tab")
    assert page.value("document.activeElement.getAttribute('role')") == "treeitem"
    page.press("Home")
    while "gate_up" not in page.value("document.activeElement.textContent"):
        page.press("ArrowDown")
    page.press("Enter")
    assert page.value("document.querySelector('#detail h1').textContent") == "gate_up"
    assert page.value("document.querySelectorAll('#flows path.chosen').length") == 2
    assert page.value("document.querySelectorAll('#detail svg path').length") == 2  # two ribbons: the cut
    page.press("ArrowLeft", "ArrowLeft")
    assert "gate_up.weight" not in shown(page, "source")
    assert page.value("document.querySelectorAll('#flows path').length") <= flows
    page.press("ArrowRight")
    assert "gate_up.weight" in shown(page, "source")
    # Search.
    page.press("/")
    page.call("Input.insertText", text="embed")
    assert shown(page, "source") == ["embed.weight"]
    page.press("Escape")
    assert len(shown(page, "source")) > 5
    # Light and dark differ.
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.value(colour)
    page.value("document.querySelector('#theme').click()")
    assert page.value(colour) != before
    assert page.complaints == []


def test_a_browser_complains_of_a_broken_page(page: browser.Browser, tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text("<title>broken</title><script>nothing.there</script>")
    page.open(tmp_path / "broken.html")
    assert page.complaints != []
    page.complaints.clear()


def test_a_step_says_which_tensors_it_changes() -> None:
    turned = parse_rearrange(TRANSPOSE, {}, Span(""))
    assert op_text(turned) == "rearrange a b -> b a"
    assert op_text(replace(turned, only=(0, 1))) == "rearrange a b -> b a only [0, 1]"
