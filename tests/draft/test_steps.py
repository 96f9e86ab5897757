"""The steps between tensors of two shapes: reshaped, stacked, split, joined, with scales."""

from __future__ import annotations

import pytest

from compiler.draft.companion_tensors import ADAPTER, BLOCK, PACKED, merge_companions
from compiler.draft.fuse_steps import BLOCKS, GROUPS, IN_GROUPS, ORDER, concat_steps, split_steps
from compiler.draft.reshape_steps import reshape
from compiler.draft.sizes import Sizes, measure, submodel_fields
from compiler.draft.tensor_roles import NameFamily, name_families

LAYERS = (frozenset(range(2)),)
EXPERTS = (frozenset(range(2)), frozenset(range(3)))
SIZES = Sizes({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})


def family(
    shape: tuple[int, ...], role: str = "other", numbers: tuple[frozenset[int], ...] = LAYERS, text: str = "a.{i}.w"
) -> NameFamily:
    count = 1
    for values in numbers:
        count *= len(values)
    return NameFamily(text, (shape,) * count, "float32", numbers, ("a.0.w",) * count, role)


@pytest.mark.parametrize(
    ("source", "target", "steps"),
    [
        (family((4, 6, 5)), family((4, 5, 6)), ({"rearrange": "e a b -> e b a"},)),
        (family((4, 32, 8), "q"), family((32, 32), "q"), ({"rearrange": "head model row -> (head row) model", "sizes": {"head": "num_attention_heads"}},)),
        (family((4, 8, 32), "o"), family((32, 32), "o"), ({"rearrange": "head row model -> (head row) model", "sizes": {"head": "num_attention_heads"}},)),
        (family((32, 4), "q"), family((128,), "q"), None),
        (family((3, 6, 5)), family((6, 5), numbers=EXPERTS), ({"unstack": "e"},)),
        (family((3, 5, 6)), family((6, 5), numbers=EXPERTS), ({"rearrange": "e a b -> e b a"}, {"unstack": "e"})),
        (family((18, 5)), family((6, 5), numbers=EXPERTS), ({"rearrange": "(e row) d -> e row d", "sizes": {"e": "num_experts"}}, {"unstack": "e"})),
        (family((15, 6)), family((6, 5), numbers=EXPERTS), ({"rearrange": "(e row) d -> e d row", "sizes": {"e": "num_experts"}}, {"unstack": "e"})),
        (family((7, 7)), family((6, 5), numbers=EXPERTS), None),
        (family((7,)), family((6,), numbers=EXPERTS), None),
        (family((6, 5), numbers=EXPERTS), family((3, 6, 5)), ({"stack": "e"},)),
        (family((6, 5), numbers=EXPERTS), family((3, 5, 6)), ({"stack": "e"}, {"rearrange": "e a b -> e b a"})),
        (family((6, 5), numbers=EXPERTS), family((3, 7, 6)), None),
        (family((6, 5), numbers=EXPERTS), family((6, 5), numbers=()), None),
    ],
)  # fmt: skip
def test_one_tensor_from_one(source: NameFamily, target: NameFamily, steps: object) -> None:
    found = reshape(source, target)
    assert (found.steps if found else None) == steps


def test_queries_keys_and_values_are_split() -> None:
    parts = [family((rows, 32), role) for role, rows in (("q", 32), ("k", 16), ("v", 16))]
    plain = split_steps(family((64, 32), "qkv", text="a.{i}.qkv.w"), parts, SIZES)
    assert plain is not None
    assert (plain.steps, plain.name_sizes, plain.question) == (
        ({"split": 0},),
        ("q_rows", "kv_rows", "kv_rows"),
        BLOCKS,
    )
    grouped = split_steps(family((64, 32), "qkv", text="a.{i}.wqkv.w"), parts, SIZES)
    assert grouped is not None
    assert (grouped.steps, grouped.question) == (IN_GROUPS, GROUPS)
    turned = split_steps(family((32, 64), "qkv", text="a.{i}.qkv.w"), parts, SIZES)
    assert turned is not None
    assert turned.steps == ({"transpose": True}, {"split": 0})
    assert split_steps(family((65, 32), "qkv"), parts, SIZES) is None
    assert split_steps(family((65, 32, 1), "qkv"), parts, SIZES) is None


def test_two_fused_matrices() -> None:
    blocks, grouped = (
        family((96, 32), "qkv", text="a.{i}.qkv.w"),
        family((96, 32), "qkv", text="a.{i}.query_key_value.w"),
    )
    same = split_steps(blocks, [blocks], SIZES)
    assert same is not None
    assert (same.steps, same.question) == ((), BLOCKS)
    sorted_by_head = split_steps(blocks, [grouped], SIZES)
    assert sorted_by_head is not None
    assert sorted_by_head.steps[0]["rearrange"] == "(three head row) ... -> (head three row) ..."
    back = split_steps(grouped, [blocks], SIZES)
    assert back is not None
    assert back.steps[0]["rearrange"] == "(head three row) ... -> (three head row) ..."
    assert split_steps(blocks, [family((95, 32), "qkv")], SIZES) is None


def test_gate_and_up_of_all_experts() -> None:
    parts = [family((6, 5), role, EXPERTS) for role in ("expert_gate", "expert_up")]
    for shape, steps in (
        ((3, 12, 5), ({"split": 1}, {"unstack": "e"})),
        ((3, 5, 12), ({"rearrange": "e a b -> e b a"}, {"split": 1}, {"unstack": "e"})),
    ):
        found = split_steps(family(shape, "expert_gate_up"), parts, SIZES)
        assert found is not None
        assert (found.steps, found.question) == (steps, ORDER)
    assert split_steps(family((3, 13, 5), "expert_gate_up"), parts, SIZES) is None
    joined = concat_steps(parts, family((3, 12, 5), "expert_gate_up"), SIZES)
    assert joined is not None
    assert joined.steps == ({"stack": "e"}, {"concat": 1})
    assert concat_steps(parts, family((3, 13, 5), "expert_gate_up"), SIZES) is None
    assert concat_steps(parts, family((3, 12, 5), numbers=()), SIZES) is None


def test_parts_are_joined() -> None:
    parts = [family((rows, 32), role) for role, rows in (("q", 32), ("k", 16), ("v", 16))]
    found = concat_steps(parts, family((64, 32), "qkv"), SIZES)
    assert found is not None
    assert (found.steps, found.question) == (({"concat": 0},), BLOCKS)
    turned = concat_steps([family((32, 48)), family((32, 48))], family((96, 32), "gate_up"), SIZES)
    assert turned is not None
    assert turned.steps == ({"transpose": True}, {"concat": 0})
    assert concat_steps([family((7, 5)), family((7, 5))], family((11, 13), "gate_up"), SIZES) is None


def test_tensors_that_belong_to_another() -> None:
    shapes = {f"h.{i}.{n}": (s, "float32") for i in range(2) for n, s in {
        "w.weight": (256, 128), "w.weight_scale_inv": (2, 1), "x_blocks": (8, 4, 16), "x_scales": (8, 4),
        "y.weight": (8, 8), "y.lora_A.weight": (2, 8), "y.lora_B.weight": (8, 2)}.items()}  # fmt: skip
    families, companions = merge_companions(name_families(shapes))
    assert {one.text: one.shape for one in families} == {
        "h.{i}.w.weight": (256, 128),
        "h.{i}.x": (8, 128),
        "h.{i}.y.weight": (8, 8),
    }
    by_question = {one.question: (name, one.steps) for name, one in companions.items()}
    assert by_question == {
        BLOCK: ("h.{i}.w.weight", ({"dequantize": {"format": "blocks", "block": [128, 128]}},)),
        PACKED: ("h.{i}.x", ({"dequantize": {"format": "mxfp4"}},)),
        ADAPTER: ("h.{i}.y.weight", ({"lora": {"rank": 2}},)),
    }
    assert companions["h.{i}.x"].names("h.{i}.x") == ["h.{i}.x_blocks", "h.{i}.x_scales"]


def test_submodels_are_measured_each() -> None:
    shapes = {
        f"{tower}.layers.{i}.fc1.weight": ((20, 8), "float32")
        for tower, layers in (("encoder", 3), ("decoder", 2))
        for i in range(layers)
    }
    shapes |= {"encoder.conv1.weight": ((8, 10, 3), "float32"), "encoder.positions": ((30, 8), "float32")}
    sizes = Sizes()
    fields = ("encoder_layers", "decoder_layers", "num_mel_bins", "max_source_positions", "encoder_ffn_dim")
    found = submodel_fields(name_families(shapes), {"encoder_layers": 3}, fields, sizes)
    assert found == {"decoder_layers": 2, "num_mel_bins": 10, "max_source_positions": 30}
    assert sizes.expressions["num_mel_bins"] == 'dim("encoder.conv1.weight", 1)'


def test_image_and_text_are_measured_each() -> None:
    shapes = {
        f"{side}.layers.{i}.norm1.weight": ((width,), "float32")
        for side, width, n in (("visual", 12, 3), ("text", 8, 2))
        for i in range(n)
    }
    shapes |= {"visual.conv.weight": ((12, 3, 4, 4), "float32"), "text_proj.weight": ((6, 8), "float32")}
    fields = ("vision_config", "text_config", "projection_dim")
    found = submodel_fields(name_families(shapes), {}, fields, Sizes())
    assert found["vision_config"]["patch_size"] == 4
    assert (found["vision_config"]["num_hidden_layers"], found["text_config"]["num_hidden_layers"]) == (3, 2)
    assert found["projection_dim"] == 6


def test_experts_in_one_matrix_are_measured() -> None:
    shapes = {f"layers.{i}.{n}": (s, "float32") for i in range(2) for n, s in {
        "moe.router.weight": (3, 8), "moe.experts.down.weight": (15, 8), "attn.q.weight": (4, 8, 2), "norm1.weight": (8,)}.items()}  # fmt: skip
    sizes = measure(name_families(shapes | {"embed.weight": ((50, 8), "float32")}), {})
    assert (sizes["num_experts"], sizes["num_attention_heads"], sizes["head_dim"]) == (3, 4, 2)
    assert sizes["intermediate_size"] == sizes["moe_intermediate_size"] == 5
