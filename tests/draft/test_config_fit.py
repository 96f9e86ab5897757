"""Fields of a config are solved for by building the class; what no shape reveals is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from compiler.diagnostics import Diagnostic, Refusal, Span, refuse
from compiler.draft.config_fields import Field, TargetClass, class_families, find_fields, used
from compiler.draft.config_fit import ConfigFit, changed, get, leaves
from compiler.draft.proposal import propose
from compiler.draft.rules import draft
from compiler.draft.sizes import Sizes, measure
from compiler.draft.tensor_roles import NameFamily, name_families

DEFAULTS: dict[str, Any] = {
    "width": 64,
    "vision_config": {"width": 32, "layers": 6, "heads": 4, "patch": 16, "image": 64, "global_layers": [1, 3]},
    "stages": [8, 16, 32],
    "flag": False,
    "mlp_ratio": 4.0,
    "extra": 2,
    "eps": 1e-6,
}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = DEFAULTS["vision_config"] | config.get("vision_config", {})
    return DEFAULTS | config | {"vision_config": vision}


def tensors(config: Mapping[str, Any]) -> list[NameFamily]:
    """A class with a nested config, stages in a list, a ratio, a flag, and layers of two kinds."""
    c = completed(config)
    v = c["vision_config"]
    if v["width"] % v["heads"]:
        raise Refusal([Diagnostic(Span("toy"), "heads do not divide the width", "unbuildable-target")])
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (10, c["width"])}
    shapes |= {"mlp.up.weight": (int(c["width"] * c["mlp_ratio"]), c["width"])}
    shapes |= {"vision.patch.weight": (v["width"], 3, v["patch"], v["patch"])}
    shapes |= {"vision.positions": ((v["image"] // v["patch"]) ** 2 + 1, v["width"])}
    for n in range(v["layers"]):
        shapes[f"vision.layers.{n}.q.weight"] = (v["width"], v["width"])
        shapes[f"vision.layers.{n}.rel"] = (15 if n in v["global_layers"] else 3, 4)
    for n, size in enumerate(c["stages"]):
        shapes[f"stages.{n}.conv.weight"] = (size, 5)
    shapes |= {f"tokens.{n}.bias": (c["width"],) for n in range(c["extra"] + 1)}
    shapes |= {"embed.bias": (c["width"],)} if c["flag"] else {}
    return name_families({name: (shape, "float32") for name, shape in shapes.items()})


def fitted(truth: Mapping[str, Any], start: dict[str, Any] | None = None) -> ConfigFit:
    sources = [NameFamily(f.text.replace("vision.", "visual.").replace("layers", "blocks"), f.shapes, f.dtype, f.numbers,
                          tuple(n.replace("vision.", "visual.").replace("layers", "blocks") for n in f.names), f.role, f.part)
               for f in tensors(truth)]  # fmt: skip
    return ConfigFit(sources, tensors, completed, start or {}, frozenset(), used)


@pytest.mark.parametrize(
    "truth",
    [
        {"width": 24},
        {"width": 24, "mlp_ratio": 2.0},
        {"vision_config": {"width": 48, "layers": 2, "global_layers": [0]}},
        {"vision_config": {"width": 30, "heads": 2, "layers": 4}},
        {"vision_config": {"patch": 8, "image": 32}},
        {"stages": [4, 6]},
        {"stages": [4, 6, 10, 12]},
        {"flag": True, "width": 12},
        {"extra": 0},
    ],
    ids=str,
)
def test_the_config_of_a_checkpoint_is_found(truth: dict[str, Any]) -> None:
    fit = fitted(truth)
    fit.fit()
    assert {f.text: f.shapes for f in fit.families} == {f.text: f.shapes for f in each(tensors(truth))}


def each(families: list[NameFamily]) -> list[NameFamily]:
    return [one for f in families for one in (f.each() if f.mixed else [f])]


def test_what_is_known_is_not_changed() -> None:
    sources = tensors({"width": 24})
    fit = ConfigFit(sources, tensors, completed, {"width": 64}, frozenset([("width",)]), used)
    fit.fit()
    assert fit.config["width"] == 64


def test_a_probe_finds_the_axes_of_a_field() -> None:
    fit = fitted({})
    found = fit.probe(("width",), 64)
    assert {(axis.text, axis.number, axis.slope) for axis in found.axes} == {
        ("embed.weight", 1, 1), ("mlp.up.weight", 0, 4), ("mlp.up.weight", 1, 1), ("tokens.{i}.bias", 0, 1),
    }  # fmt: skip
    assert fit.probe(("flag",), False).renamed
    assert not fit.probe(("vision_config", "heads"), 4).revealed


def test_paths_of_a_config() -> None:
    assert get(DEFAULTS, ("vision_config", "width")) == 32
    assert get(DEFAULTS, ("vision_config", "depth", 0)) is None
    assert changed({}, DEFAULTS, ("stages", 1), 9) == {"stages": [8, 9, 32]}
    assert changed({}, DEFAULTS, ("vision_config", "width"), 9) == {"vision_config": {"width": 9}}
    assert dict(leaves(DEFAULTS, lambda name: name in ("width", "eps"))) == {
        ("width",): 64, ("vision_config", "width"): 32, ("eps",): 1e-6,
    }  # fmt: skip


def test_fields_are_measured_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fitted({"width": 24, "stages": [4, 6, 10]})
    fit.fit()
    monkeypatch.setattr(
        "compiler.target.model_class.fields_read", lambda name: frozenset([*DEFAULTS, *DEFAULTS["vision_config"]])
    )
    rules = draft(fit.sources, fit.families, {}, measure(fit.sources, {}))
    fields = find_fields(fit, TargetClass("Toy"), rules, fit.sources)
    assert fields[("width",)] == Field(24, 'dim("embed.weight", 1)')
    assert fields[("stages",)].expression == '[dim("stages.0.conv.weight", 0), dim("stages.1.conv.weight", 0), dim("stages.2.conv.weight", 0)]'  # fmt: skip
    assert fields[("vision_config", "layers")].expression == 'count("visual.blocks.{i}.q.weight")', rules
    assert fields[("extra",)].expression.startswith("(count(")
    assert fields[("mlp_ratio",)].expression == 'dim("mlp.up.weight", 0) / width'
    heads = fields[("vision_config", "heads")]
    assert (heads.required, bool(heads.question)) == (True, True)
    assert "1e-06 is the default" in fields[("eps",)].question
    assert fields[("flag",)] == Field(False)


def test_a_nested_config_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class whose sizes are those of nested configs, with other names: measured, and asked where shapes do not tell."""
    target = TargetClass("Dinov2Model")
    truth = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "mlp_ratio": 3,
        "image_size": 28,
        "patch_size": 7,
    }
    shapes = {n: (tuple(s), "float32") for n, s in target.signature(truth).shapes.items()}
    rename = {
        "encoder.layer": "blocks",
        "embeddings.": "",
        "attention.attention": "attn",
        "layer_scale": "ls",
        "lambda1": "gamma",
    }
    for old, new in rename.items():
        shapes = {name.replace(old, new): one for name, one in shapes.items()}
    proposal = propose("x", shapes, "Dinov2Model", {})
    assert proposal.draft.missing == []
    assert {path[0]: field.value for path, field in proposal.fields.items() if path[0] in truth} | {
        "num_attention_heads": 4
    } == truth
    assert proposal.fields[("num_attention_heads",)].required
    assert {"num_attention_heads", "hidden_act", "layer_norm_eps"} <= proposal.questions.keys()
    assert isinstance(proposal.sizes, Sizes)


def test_sizes_that_a_class_rejects_are_left_out() -> None:
    """First the one that it names, then the width of heads, then all that nobody gave; what was given stays."""
    tried: list[dict[str, Any]] = []

    class Picky:
        def __init__(self, *messages: str) -> None:
            self.messages = [*messages]

        def families(self, config: dict[str, Any]) -> list[NameFamily]:
            tried.append(dict(config))
            if self.messages:
                refuse("Picky", self.messages.pop(0), "unbuildable-target")
            return []

    def left(*messages: str, given: Mapping[str, Any] | None = None) -> list[set[str]]:
        """The fields of each trial."""
        tried.clear()
        config = {"width": 4, "head_dim": 3, "depth": 2, "act": "x"}
        assert class_families(Picky(*messages), config, given or {"act": "x"}) == []  # type: ignore[arg-type]
        assert config == tried[-1]
        return [set(one) for one in tried]

    every = {"width", "head_dim", "depth", "act"}
    assert left() == [every]
    assert left("Field 'width' is no int", "no", "no") == [every, every - {"width"}, {"depth", "act"}, {"act"}]
    assert left("field 'act' expected int, got str") == [every, every - {"act"}]
    with pytest.raises(Refusal, match="no"):
        left("no", "no", "no")
    with pytest.raises(Refusal, match="Field 'depth' is no int"):
        left("Field 'depth' is no int", given={"width": 4, "head_dim": 3, "depth": 2, "act": "x"})
