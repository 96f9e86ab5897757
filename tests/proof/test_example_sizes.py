"""Examples tell sizes apart: two sizes that are equal in every example are an error, and so are heads of two widths."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.diagnostics import Diagnostic, Refusal
from compiler.program.loading import load_program
from compiler.proof.proof import prove

SPECS = Path(__file__).parent.parent.parent / "specs"
EXAMPLES = "example:\n"


def problems(folder: Path, name: str, *changes: tuple[str, str], example: str | None = None) -> list[Diagnostic]:
    """What the proof reports about a shipped spec with texts replaced, and perhaps with other examples."""
    text = (SPECS / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    if example is not None:
        text = text[: text.index(EXAMPLES)] + EXAMPLES + example
    (folder / f"{name}.yaml").write_text(text)
    try:
        return list(prove(load_program(str(folder / f"{name}.yaml"))).warnings)
    except Refusal as refusal:
        return list(refusal.diagnostics)


GROUPED = "  - {rows: 128, width: 64, hidden_dim: 192, n_layers: 3, n_heads: 8, kv_heads: 2, head_dim: 8, multiple_of: 64, rope_theta: 10000.0, rope_scale_factor: 8.0}\n"
PLAIN = "  - {rows: 128, width: 80, hidden_dim: 256, n_layers: 2, n_heads: 4, kv_heads: 4, multiple_of: 128, ffn_dim_multiplier: 1.1, tie_word_embeddings: true, rope_theta: 10000.0, rope_scale_factor: 8.0}\n"


@pytest.mark.parametrize(("rule", "number"), [("kv_heads", "n_heads"), ("n_heads", "kv_heads")])
def test_heads_of_keys_are_not_those_of_queries(rule: str, number: str, tmp_path: Path) -> None:
    """Both numbers divide the rows, so that shapes alone accept either."""
    found = problems(tmp_path, "meta_llama", (f"    rope_to_half: {rule}\n", f"    rope_to_half: {number}\n"))
    assert {d.kind for d in found} == {"uneven-heads"}


def test_equal_heads_in_every_example(tmp_path: Path) -> None:
    both = PLAIN + GROUPED.replace("n_heads: 8, kv_heads: 2", "n_heads: 8, kv_heads: 8").replace("head_dim: 8, ", "")
    found = problems(tmp_path, "meta_llama", example=both)
    assert {d.kind for d in found} == {"weak-example"}
    assert ["n_heads" in d.message and "kv_heads" in d.message for d in found] == [True]
    assert "kv_heads: 2" in found[0].hint or "n_heads: 8" in found[0].hint


def test_the_wrong_axis_of_a_square_example(tmp_path: Path) -> None:
    """The width read from the rows of the embedding: the proof itself finds it where the examples differ."""
    wrong = ('width: dim("tok_embeddings.weight", 1)', 'width: dim("tok_embeddings.weight", 0)')
    assert {d.kind for d in problems(tmp_path, "meta_llama", wrong)} == {"wrong-fact"}
    square = GROUPED.replace("rows: 128", "rows: 64") + PLAIN.replace("rows: 128", "rows: 80")
    found = problems(tmp_path, "meta_llama", wrong, example=square)
    assert [(d.kind, "rows and width" in d.message) for d in found] == [("weak-example", True)]


def test_a_rule_is_judged_by_its_own_examples(tmp_path: Path) -> None:
    """Sizes that differ only where the guard of the rule is false."""
    rule = "    rope_to_half: kv_heads\n"
    tied = (
        f"{rule}    when: not tie_word_embeddings\n"
        "  - name: rope_tied\n    from: layers.{i}.attention.wk.weight\n"
        f"    to: model.layers.{{i}}.self_attn.k_proj.weight\n{rule}    when: tie_word_embeddings\n"
    )
    found = problems(tmp_path, "meta_llama", (rule, tied))
    assert "rope_tied: kv_heads and n_heads are equal in every example of this rule" in [d.message for d in found]


def test_what_is_required_to_be_equal_needs_no_example(tmp_path: Path) -> None:
    assert problems(tmp_path, "torchtune_phi3") == []
    found = problems(
        tmp_path, "torchtune_phi3", ("  embed_dim == q_rows: Phi-3 has heads of embed_dim / num_heads\n", "")
    )
    assert [d.kind for d in found] == ["weak-example"]
