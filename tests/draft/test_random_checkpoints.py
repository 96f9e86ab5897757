"""A draft of any checkpoint is a spec that loads: whatever its names and shapes, no traceback and no key twice."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from compiler.diagnostics import Refusal, Span
from compiler.draft import config_fields
from compiler.draft.module_pairs import pair_modules
from compiler.draft.proposal import propose
from compiler.draft.rules import UNUSED, draft
from compiler.draft.sizes import measure
from compiler.draft.spec_text import Proposal
from compiler.draft.tensor_roles import literal_pattern, name_families
from compiler.jobs.detect import detect, known_specs
from compiler.jobs.request import Request
from compiler.language.name_pattern_parser import parse_pattern
from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec
from compiler.program.program import Program

WORDS = ["layers", "0", "1", "2", "00", "attn", "q_proj", "wk", "c_attn", "w1", "norm", "inv_freq", "weight", "bias", "embed",
         "head", "experts", "weight_scale_inv", "lora_A", "pos", "{x}", "a b", "é", "true", "#1", "x:", "w_blocks", "w_scales"]  # fmt: skip
names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(".".join)
shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
checkpoints = st.dictionaries(names | st.text(max_size=6), st.tuples(shapes, st.just("float32")), max_size=12)


@given(checkpoints, checkpoints)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_text_of_a_draft_loads(
    source: dict[str, tuple[tuple[int, ...], str]], target: dict[str, tuple[tuple[int, ...], str]]
) -> None:
    families = name_families(source)
    sizes = measure(families, {})
    rules = draft(families, name_families(target), {}, sizes)
    proposal = Proposal("x", "LlamaForCausalLM", "*", rules, sizes, {"hidden_size": 4, "vocab_size": 8, "rope": None})
    spec = load_spec("x.yaml", proposal.text())
    assert {text.value for text, _ in spec.undecided} == proposal.questions.keys()
    read = {name for guess in rules.guesses for name in guess.sources}
    assert {family.text for family in families} <= read | {t for g in rules.guesses for t in g.sources}


@given(checkpoints)
@example({"{\\": ((), "float32")})
@settings(max_examples=150, deadline=None)
def test_families_match_their_names_and_no_others(source: dict[str, tuple[tuple[int, ...], str]]) -> None:
    families = name_families(source)
    assert sorted(name for family in families for name in family.names) == sorted(source)
    for family in families:
        assert [source[name][0] for name in family.names] == list(family.shapes)
        if not family.text:
            continue
        pattern = parse_pattern(family.text, Span("x"))
        assert {name for name in source if pattern.match(name) is not None} == {*family.names}
    for name in filter(None, source):
        assert parse_pattern(literal_pattern(name), Span("x")).match(name) == {}


def test_layers_of_two_shapes_are_one_rule() -> None:
    """Layers 1 and 3 have other shapes: one rule reads all four, where two would write its key twice."""
    shapes = {f"blocks.{i}.attn.rel": (((15 if i in (1, 3) else 3), 8), "float32") for i in range(4)}
    (family,) = name_families(shapes)
    assert (family.text, family.mixed, family.shapes) == (
        "blocks.{i}.attn.rel",
        True,
        ((3, 8), (15, 8), (3, 8), (15, 8)),
    )
    target = name_families({name.replace("blocks", "layers"): one for name, one in shapes.items()})
    rules = draft([family], target, {}, measure([family], {}))
    assert [(g.kind, g.sources, g.targets) for g in rules.guesses] == [
        ("rename", ["blocks.{i}.attn.rel"], ["layers.{i}.attn.rel"])
    ]


def test_a_ragged_index_is_written_as_numbers() -> None:
    """Stage 0 has one block and stage 1 two: a rule for all would miss a block of stage 0."""
    names = ["stages.0.0.w", "stages.1.0.w", "stages.1.1.w"]
    families = name_families(dict.fromkeys(names, ((2, 2), "float32")))
    assert {family.text for family in families} == {"stages.0.0.w", "stages.1.{i}.w"}


def test_a_number_without_axes() -> None:
    """A tensor without axes is kept or asked about."""
    source = name_families({"logit_scale": ((), "float32"), "temperature": ((), "float32")})
    target = name_families({"logit_scale": ((), "float32"), "bias": ((1,), "float32")})
    rules = draft(source, target, {}, measure(source, {}))
    assert [(g.kind, g.sources) for g in rules.guesses] == [("keep", ["logit_scale"]), ("ignore", ["temperature"])]
    assert (rules.guesses[1].question, rules.missing) == (UNUSED, ["bias"])


def test_an_unused_tensor_is_asked_about_and_not_ignored() -> None:
    shapes = {f"model.layers.{i}.extra": ((3, 5), "float32") for i in range(2)} | {
        "model.norm.weight": ((32,), "float32")
    }
    given = {
        "hidden_size": 32,
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
    }
    with mock.patch.object(config_fields.ConfigFit, "fit"):
        proposal = propose("x", shapes, "LlamaForCausalLM", given)
    assert proposal.questions["model.layers.{i}.extra"] == UNUSED
    assert "ignore:" not in proposal.text()
    assert load_spec("x.yaml", proposal.text()).ignore == ()


@pytest.mark.parametrize("name", ["c_q", "c_k", "c_v", "to_q", "wk", "value"])
def test_projections_are_known_by_their_words(name: str) -> None:
    families = name_families({f"h.{i}.attn.{name}.weight": ((4, 4), "float32") for i in range(2)})
    assert families[0].role == re_role(name)


def re_role(name: str) -> str:
    return {"value": "v"}.get(name, name[-1])


def test_what_no_config_gives_is_asked(tmp_path: object) -> None:
    """The number of heads has no default, and values of the class are questions, not silent defaults."""
    layer = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
             "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48), "input_layernorm": (32,),
             "post_attention_layernorm": (32,)}  # fmt: skip
    shapes = {f"model.layers.{i}.{n}.weight": (s, "float32") for i in range(2) for n, s in layer.items()}
    shapes |= {"model.embed_tokens.weight": ((64, 32), "float32"), "lm_head.weight": ((64, 32), "float32"), "model.norm.weight": ((32,), "float32")}  # fmt: skip
    proposal = propose("x", shapes, "LlamaForCausalLM", {})
    asked = {
        "num_attention_heads",
        "hidden_act",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "max_position_embeddings",
    }
    assert asked <= proposal.questions.keys()
    assert not {"vocab_size", "hidden_size", "initializer_range", "attention_dropout"} & proposal.questions.keys()
    text = proposal.text(schema="../schema.json")
    assert text.startswith("# yaml-language-server: $schema=../schema.json\n")
    start, end = text.index("undecided:"), text.index("arguments:")
    program = compile_spec(load_spec("x.yaml", text[:start] + text[end:]))
    assert program.spec.arguments["num_attention_heads"].default is None
    assert "default" not in text[text.index("  num_attention_heads:") :].splitlines()[0]
    given = propose("x", shapes, "LlamaForCausalLM", dict.fromkeys(("rope_scaling",)) | {
        "num_attention_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 64,
    })  # fmt: skip
    assert given.questions.keys() & asked == set()


@cache
def programs() -> list[Program]:
    return known_specs()


@given(checkpoints)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_checkpoint_is_judged(source: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """`detect` has an answer for each spec; random names fit none. It rejects a file without tensors or readable names."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: torch.zeros(shape) for name, (shape, _) in source.items()}, path)
        if not source or not all(name and name.isprintable() for name in source):
            with pytest.raises(Refusal, match=r"unprintable names|without tensors"):
                detect(Request([path]), programs())
            return
        fits = detect(Request([path]), programs())
    assert {fit.spec for fit in fits} == {program.spec.name.value for program in programs()}
    assert all(0 <= fit.share <= 1 and fit.status in ("near", "no") for fit in fits)
    assert all(fit.reasons for fit in fits)


@given(checkpoints, checkpoints)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_modules_are_paired_once(
    source: dict[str, tuple[tuple[int, ...], str]], target: dict[str, tuple[tuple[int, ...], str]]
) -> None:
    pairs = pair_modules(name_families(source), name_families(target))
    for side in ("source", "target"):
        texts = [getattr(pair, side).text for pair in pairs]
        assert len(texts) == len({*texts})
    for pair in pairs:
        assert all(one.shapes == other.shapes for one, other in pair.tensors())


@given(checkpoints)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_divided_family_has_the_same_tensors(source: dict[str, tuple[tuple[int, ...], str]]) -> None:
    for family in name_families(source):
        for some in [family.each(), *((family.unfold(), family.apart()) if family.level == 2 else ())]:
            assert sorted(name for part in some for name in part.names) == sorted(family.names)
            for part in some:
                assert [source[name][0] for name in part.names] == list(part.shapes)
