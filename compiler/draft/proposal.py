"""Drafts a spec from the shapes of a checkpoint and the name of a target class.

`propose` measures sizes, builds the target class, pairs tensors and looks for open questions. While a question is listed
under `undecided`, the spec does not compile. Raises Refusal for a class that cannot be built from what is known of its
config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compiler.diagnostics import Refusal
from compiler.draft.config_fields import TargetClass, class_families, find_fields, start_fit
from compiler.draft.rules import LOOSE, UNUSED, Draft, draft
from compiler.draft.sizes import SIZE_FIELDS, Sizes, measure, submodel_fields, target_config
from compiler.draft.spec_text import Proposal
from compiler.draft.tensor_roles import NameFamily, Shape, name_families
from compiler.proof.config_faults import TOKENS
from compiler.target import model_class as target_class

MOSTLY = 0.8  # of the target's tensors; where fewer are matched, sizes that names suggest are not relied upon
_OUTER = ("vocab_size", "num_labels")  # sizes of tensors outside the layers, which no other size depends on
_ROTARY = re.compile(
    r"rope|rotary|position_embedding_type"
)  # in the names of fields of a class that may rotate queries
_TIE = "tie_word_embeddings"


def propose(
    name: str, shapes: Mapping[str, tuple[Shape, str]], model_class: str, given: Mapping[str, Any], weights: str = "*"
) -> Proposal:
    """Draft a spec for tensors of these shapes and element types. `given`: fields of the source's config. Raises Refusal."""
    families = name_families(shapes)
    sizes = measure(families, given)
    fields = target_class.config_fields(model_class)
    config = _known_config(families, sizes, given, fields)
    target = TargetClass(model_class)
    class_families(target, config, given)
    rows = {family.shape[0] for family in families if family.role == "embedding" and family.shape}
    if rows and max(rows) > sizes["vocab_size"] > 0:
        sizes.values["padded_vocab_size"] = max(rows)
        embedding = next(f for f in families if f.role == "embedding" and f.shape[:1] == (max(rows),))
        sizes.expressions["padded_vocab_size"] = embedding.dim(0)
    stated = _stated(config, sizes, given)
    fixed = stated | {name for name, value in config.items() if not isinstance(value, dict)}
    rules = _rules(families, target, config, sizes)
    fit = start_fit(target, families, config, frozenset((name,) for name in fixed))
    if _unmatched(rules) > (1 - MOSTLY) * max(1, len(fit.families)):
        suggested = {name for names in SIZE_FIELDS.values() for name in names} - stated - {*_OUTER}
        bare = {name: value for name, value in config.items() if name not in suggested}
        starts = [start_fit(target, families, one, frozenset((name,) for name in stated)) for one in (config, bare)]
        fit = max(starts, key=lambda one: one.score(one.families))
        fit.fit()
        rules = _rules(families, target, fit.config, sizes)
    own = find_fields(fit, target, rules, families)
    proposal = Proposal(name, model_class, weights, rules, sizes, fit.config, own)
    idle = _without_effect(proposal, target, given)
    config = {n: v for n, v in fit.config.items() if n not in idle and all(path[0] != n for path in own)}
    sizes.guessed = {name for name in sizes.guessed if any(field in config for field in SIZE_FIELDS[name])}
    return replace(proposal, config=config)


def _known_config(
    families: Sequence[NameFamily], sizes: Sizes, given: Mapping[str, Any], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of the target's config that the source's config gives, or that roles and shapes suggest."""
    config = target_config(sizes, given, fields)
    config |= (submodels := submodel_fields(families, given, fields, sizes))
    if "encoder_layers" in submodels and "num_hidden_layers" not in given:
        config.pop("num_hidden_layers", None)  # in such a class an alias of one of the two
    if _TIE in fields and _TIE not in config:
        config[_TIE] = not any(family.role == "head" for family in families)
    for flag, roles in (("attention_bias", ("q", "k", "v", "qkv", "o")), ("mlp_bias", ("down",))):
        if flag in fields and flag not in config:
            config[flag] = any(family.role in roles and family.part == "bias" for family in families)
    pad = config.get("pad_token_id", fields.get("pad_token_id"))
    if isinstance(pad, int) and pad >= sizes["vocab_size"] > 0:
        config["pad_token_id"] = None  # the class's own default is for another vocabulary
    for name in TOKENS:  # so are these, which generation reads; null leaves them to the tokenizer
        if fields.get(name) is not None:
            config.setdefault(name, None)
    return config


def _without_effect(proposal: Proposal, target: TargetClass, given: Mapping[str, Any]) -> set[str]:
    """The measured sizes that the class does not declare and does not need: no shape changes when one is doubled, so that
    the model's code looks for it to no effect; or no rule uses it, and the shapes are the same without it, so that the
    class computes it."""
    config = proposal.config
    looked_for = set(target_class.config_schema(target.name).looked_for) & config.keys() - given.keys()

    def shapes(config: Mapping[str, Any]) -> object:
        try:
            return target.signature(config).shapes
        except Refusal:  # the class reads it
            return None

    sizes = {name: config[name] for name in looked_for if type(config[name]) is int}
    usual = shapes(config) if sizes else None

    def idle(name: str) -> bool:
        without = {other: value for other, value in config.items() if other != name}
        if shapes({**config, name: 2 * sizes[name]}) == usual:
            return True
        return shapes(without) == usual and name not in replace(proposal, config=without).facts

    return {name for name in sizes if usual is not None and idle(name)}


def _stated(config: Mapping[str, Any], sizes: Sizes, given: Mapping[str, Any]) -> set[str]:
    """The fields that the source's config gives, under this name or another."""
    found = {name for name in config if name in given or name in sizes.named}
    return found | {name for word in sizes.named for name in SIZE_FIELDS.get(word, ()) if name in config}


def _rules(families: Sequence[NameFamily], target: TargetClass, config: dict[str, Any], sizes: Sizes) -> Draft:
    signature = target.signature(config)
    theirs = name_families({n: (tuple(s), "float32") for n, s in signature.shapes.items()})
    rotary = any(_ROTARY.search(name) for name in target_class.config_fields(target.name))
    return draft(families, theirs, dict(signature.ties), sizes, rotary)


def _unmatched(rules: Draft) -> int:
    """How many target tensors have no source or only one paired by its shape, and how many sources are unused."""
    return len(rules.missing) + sum(guess.question in (UNUSED, LOOSE) for guess in rules.guesses)
