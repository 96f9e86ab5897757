"""`run hf` on configs with rotary fields in every dialect: the folder means what the config does, or nothing is written.

What a config means is what its class makes of it. The models are compared by logits, under each installed version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.parity import Job, interpreters, logits_many

from compiler.cli.main import main

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
CLASSES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": GROUPED,
    "Qwen3ForCausalLM": GROUPED,
    "Gemma3ForCausalLM": GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "GPTNeoXForCausalLM": SIZES | {"rotary_pct": 0.5},
    "ModernBertForMaskedLM": SIZES | {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip
THETA, LOCAL = {"rope_theta": 54321.0}, {"rope_theta": 777.0}
PLAIN = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
OLD_LOCAL = {"rope_local_base_freq": 777.0}


def flat(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {name: value for part in parts for name, value in part.items()}}


def kinds(full: dict[str, Any] | None, sliding: dict[str, Any] | None = None) -> dict[str, Any]:
    parts = {"full_attention": full, "sliding_attention": sliding}
    return {"rope_parameters": {name: part for name, part in parts.items() if part is not None}}


# Class, the fields of a config, and the same in words that both generations read.
MEANT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "flat": ("LlamaForCausalLM", flat(THETA, PLAIN), THETA),
    "flat without a type": ("LlamaForCausalLM", flat(THETA), THETA),
    "flat yarn": ("LlamaForCausalLM", flat(THETA, YARN), THETA | {"rope_scaling": YARN}),
    "flat without theta": ("LlamaForCausalLM", flat(LINEAR), {"rope_scaling": LINEAR}),
    "a former key": ("LlamaForCausalLM", THETA | {"rope_scaling": {"type": "linear", "factor": 8.0}}, THETA | {"rope_scaling": LINEAR}),
    "top": ("Qwen3ForCausalLM", THETA, THETA),
    "scaling": ("Qwen3ForCausalLM", THETA | {"rope_scaling": YARN}, THETA | {"rope_scaling": YARN}),
    "kinds": ("Gemma3ForCausalLM", kinds(PLAIN | THETA, PLAIN | LOCAL), THETA | OLD_LOCAL),
    "scaled kinds": ("Gemma3ForCausalLM", kinds(LINEAR | THETA, PLAIN | LOCAL), THETA | OLD_LOCAL | {"rope_scaling": LINEAR}),
    "one kind": ("Gemma3ForCausalLM", kinds(PLAIN | THETA), THETA),
    "old kinds": ("Gemma3ForCausalLM", THETA | OLD_LOCAL, THETA | OLD_LOCAL),
    "its own name": ("GPTNeoXForCausalLM", flat(THETA, PLAIN), {"rotary_emb_base": 54321.0}),
    "its own names": ("ModernBertForMaskedLM", kinds(PLAIN | THETA, PLAIN | LOCAL), {"global_rope_theta": 54321.0, "local_rope_theta": 777.0}),
}  # fmt: skip


def source(place: Path, name: str, fields: dict[str, Any]) -> None:
    """A folder with a state dict of the class and a config.json with these fields."""
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**CLASSES[name]))
    torch.save(
        {n: torch.randn_like(t) / 3 if t.dim() > 1 else t for n, t in model.state_dict().items()}, place / "model.pth"
    )
    config = CLASSES[name] | fields | {"architectures": [name], "model_type": cls.config_class.model_type}
    (place / "config.json").write_text(json.dumps(config))


def run(place: Path) -> int:
    with pytest.raises(SystemExit) as done:
        main(["run", "hf", str(place / "model.pth"), str(place / "out")])
    return int(done.value.code or 0)


def test_the_folder_means_what_the_config_does(tmp_path: Path) -> None:
    ids, jobs, wanted = torch.arange(3, 27)[None], [], {}
    for case, (name, fields, meaning) in MEANT.items():
        place = tmp_path / case
        place.mkdir()
        source(place, name, fields)
        assert run(place) == 0
        auto = "AutoModelForMaskedLM" if name.endswith("MaskedLM") else "AutoModelForCausalLM"
        jobs.append(Job(place / "out", ids, model_class=auto))
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**CLASSES[name], **json.loads(json.dumps(meaning)), attn_implementation="eager"))
        model.load_state_dict(torch.load(place / "model.pth"))
        with torch.no_grad():
            wanted[case] = model.eval()(ids).logits
    assert float((wanted["flat"] - wanted["flat without theta"]).abs().max()) > 0.1  # theta shows in the logits
    for python in interpreters().values():
        found = logits_many(jobs, python)
        apart = {case: float((got - wanted[case]).abs().max()) for case, got in zip(MEANT, found, strict=True)}
        assert max(apart.values()) < 1e-4, apart


@pytest.mark.parametrize(
    ("name", "fields", "kind", "says"),
    [
        ("LlamaForCausalLM", kinds(PLAIN | THETA), "misread-field", "10000.0 from this config, and 54321.0 from"),
        ("LlamaForCausalLM", kinds(PLAIN | THETA, PLAIN | LOCAL), "misread-field", "rope_theta = 10000.0 from this config"),
        ("LlamaForCausalLM", THETA | OLD_LOCAL, "misread-field", "nothing from this config, and 777.0"),
        ("LlamaForCausalLM", THETA | flat({"rope_theta": 1e4}), "contradictory-field", "rope_theta has two values"),
        ("LlamaForCausalLM", {"rope_scaling": LINEAR} | flat(PLAIN, THETA), "contradictory-field", "rope_parameters does not"),
        ("Qwen3ForCausalLM", kinds(PLAIN | THETA), "unbuildable-target", "as Qwen3ForCausalLM saves them"),
        ("Gemma3ForCausalLM", flat(PLAIN, THETA), "misread-field", "and nothing from the one that is written"),
        ("Gemma3ForCausalLM", kinds(PLAIN | THETA, LINEAR | LOCAL), "misread-field", "rope_parameters.sliding_attention"),
        ("GPTNeoXForCausalLM", THETA, "misread-field", "10000.0 from this config, and 54321.0 from"),
    ],
)  # fmt: skip
def test_a_config_that_its_class_reads_otherwise(
    name: str, fields: dict[str, Any], kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path, name, fields)
    assert run(tmp_path) == 1
    errors = capsys.readouterr().err
    assert f"[{kind}]" in errors
    assert says in errors
    assert not (tmp_path / "out").exists()
