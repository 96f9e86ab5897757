"""A few of the spoiled specs of `spec_mutations`, the same each time; `python tests/support/spec_mutations.py 5000` tries more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.spec_mutations import QUIET, Fuzzer, Pairs, places, spoil, text, tree

from compiler.diagnostics import Refusal
from compiler.jobs.compile import build
from compiler.language import document

SPECS = Path(__file__).parent.parent.parent / "specs"


def test_no_mistake_ends_in_a_traceback_or_vanishes(tmp_path: Path) -> None:
    few = [SPECS / f"{name}.yaml" for name in ("llama", "litgpt_gpt_neox", "internlm2_llama", "minimind", "phi3_llama")]
    fuzzer = Fuzzer(3, tmp_path, few)
    outcomes = [fuzzer.attempt() for _ in range(80)]
    assert [o for o in outcomes if o.how in ("traceback", "silent")] == []
    assert {"refused", "shows"} <= {o.how for o in outcomes}


def test_a_spec_written_as_json_means_the_same(tmp_path: Path) -> None:
    spec = SPECS / "llama.yaml"
    (tmp_path / "llama.yaml").write_text(text(tree(document.read_document(spec))))
    ours, theirs = (build(str(path), prove=False) for path in (tmp_path / "llama.yaml", spec))
    name = "llama/convert_llama.py"
    assert ours[name].replace(str(tmp_path / "llama.yaml"), "") == theirs[name].replace(str(spec), "")


def test_every_deed_spoils() -> None:
    root = Pairs([["a", 1], ["b", Pairs([["c", "word"]])], ["d", [1, 2]]])
    assert [path for path, _, _ in places(root)] == [("a",), ("b",), ("b", "c"), ("d",), ("d", 0), ("d", 1)]
    seen = set()
    for seed in range(60):
        root = Pairs([["a", 1], ["b", Pairs([["c", "word"]])]])
        before = text(root)
        deed, path = spoil(root, random.Random(seed))
        assert text(root) != before or deed == "rename"
        seen.add(deed)
        assert path
    assert seen == {"delete", "double", "retype", "change", "rename"}
    assert QUIET.match("example/0/hidden_size")
    assert not QUIET.match("rename/a")


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("hidden_act: silu", "hidden_act: silu\n  rope_scaling: 1", "duplicate-key"),
        ("rope_scaling: null", "rope_scaling: 1", "wrong-type"),
        ("keep:", "keep: []\ntransform:\n  - {name: a, from: [], to: b, split: 0}\nrename:", "wrong-value"),
    ],
)
def test_what_the_fuzzer_found(tmp_path: Path, old: str, new: str, kind: str) -> None:
    found = (SPECS / "llama.yaml").read_text()
    assert old in found
    (tmp_path / "llama.yaml").write_text(found.replace(old, new, 1))
    with pytest.raises(Refusal) as caught:
        build(str(tmp_path / "llama.yaml"), prove=True)
    assert kind in {d.kind for d in caught.value.diagnostics}
