"""Drafts of vision, audio and protein models in the layouts of their original repositories.

The names follow the originals (`support.original_layouts`); for each of the target's tensors the draft must read the same
bytes. What it gets wrong must be asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
from support.original_layouts import LAYOUTS, Part

from compiler.draft.config_fields import TargetClass, used
from compiler.draft.proposal import propose
from compiler.draft.spec_text import Proposal
from compiler.language.parser import load_spec
from compiler.layout import array as layout
from compiler.layout.moves import lower
from compiler.plan.bind import bind
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, NamedShapes
from compiler.program.inverse import TensorShape
from compiler.program.loading import compile_spec

# The search for the sizes of large configs takes longer than tests may: for these every field is given.
LARGE = ("segment_anything", "segformer", "segformer_classifier", "encodec")
GIVEN = {"esm2": {"position_embedding_type": "rotary", "tie_word_embeddings": True}}  # words that no shape reveals


@cache
def drafted(name: str) -> tuple[Proposal, Mapping[str, TensorShape], Mapping[str, Part]]:
    example = LAYOUTS[name]
    source, truth = example.checkpoint()
    shapes = {tensor: (tuple(form.shape), form.dtype) for tensor, form in source.items()}
    given = GIVEN.get(name, {})
    if name in LARGE:
        fields = TargetClass(example.target).complete(example.config)
        given = {field: value for field, value in fields.items() if used(field) or field.endswith("_config")}
    return propose("x_draft", shapes, example.target, given), source, truth


def plan_of(proposal: Proposal, source: Mapping[str, TensorShape]) -> Plan:
    program = compile_spec(load_spec("x_draft.yaml", proposal.text(decided=True)))
    return bind(program, source, Environment(program, NamedShapes(source), {}))


def read(plan: Plan, source: Mapping[str, TensorShape]) -> dict[str, object]:
    """Target name -> its shape and the source bytes that fill it."""
    found: dict[str, object] = {}
    for group in plan.groups:
        bundle = group.sources.map(lambda name: layout.source(name, source[name].dtype, tuple(source[name].shape)))  # type: ignore[arg-type,return-value]
        for op in group.ops:
            bundle = op.apply(bundle, layout.LayoutAlgebra())
        for slot, targets in zip(bundle.slots, group.targets.slots, strict=True):
            found |= {target.name: (target.shape, tuple(lower(slot[key]))) for key, target in targets.items()}
    return found


def wanted(part: Part, source: Mapping[str, TensorShape]) -> object:
    name, start, stop = part
    shape = tuple(source[name].shape)
    array = layout.source(name, source[name].dtype, shape)
    if shape and (start, stop) != (0, shape[0]):
        array = layout.narrow(array, 0, start, stop - start)
        shape = (stop - start, *shape[1:])
    return shape, tuple(lower(array))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_gets_its_source(name: str) -> None:
    proposal, source, truth = drafted(name)
    found = read(plan_of(proposal, source), source)
    wrong = {target for target, part in truth.items() if found.get(target) != wanted(part, source)}
    assert wrong == set()
    assert [name for name in proposal.draft.missing if "*" not in name] == []


def test_modules_in_order_only_are_asked_about() -> None:
    """The matrices of an MLP that are numbered in one name and named in the other."""
    proposal = drafted("segment_anything")[0]
    by_source = {guess.sources[0]: guess for guess in proposal.draft.guesses}
    first = by_source["mask_decoder.output_hypernetworks_mlps.{i}.layers.0.weight"]
    assert first.targets == ["mask_decoder.output_hypernetworks_mlps.{i}.proj_in.weight"]
    assert first.question
    assert (
        by_source["mask_decoder.output_hypernetworks_mlps.{i}.layers.2.weight"].question == ""
    )  # the only one of its shape


def test_sizes_of_a_config_are_found() -> None:
    proposal = drafted("hubert")[0]
    values = {path[-1]: field.value for path, field in proposal.fields.items()} | dict(proposal.config)
    stated = LAYOUTS["hubert"].config
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "conv_dim", "conv_kernel"):
        assert values[name] == stated[name], name
    assert {"num_attention_heads", "conv_stride", "hidden_act"} <= proposal.questions.keys()


def test_a_model_without_rotation_is_not_asked_about_it() -> None:
    assert not any("rotary" in question for question in drafted("hubert")[0].questions.values())
    assert any("rotary" in question for question in drafted("esm2")[0].questions.values())
