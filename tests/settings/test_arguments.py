"""What tells a model's arguments: a mapping inside of a config, a config of the target's kind, the checkpoint itself.

The executor and the generated converter must hear the same, and neither may leave in silence what was said.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.converter_process import ConverterProcess
from support.oracle_cases import Case
from support.parity import ORACLES
from support.synthetic import Synthetic, folder_image, image, synthetic

from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec, load_program
from compiler.settings import arguments

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def made(spec: str, example: int = 0) -> Synthetic:
    return synthetic(load_program(spec), example, "float16", finite=True)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def written(
    place: Path, spec: str, file: Path, config: Mapping[str, Any] | None = None, **given: Any
) -> dict[str, Any]:
    """The config.json of a conversion into `place/out`."""
    path = None
    if config is not None:
        path = place / "told.json"
        path.write_text(json.dumps(config))
    convert(load_program(spec), Request([file], config=path, assigned=given), place / "out")
    return config_of(place / "out")


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Two levels of dictionaries, as Megatron-LM keeps them."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        first, second, rest = name.split(".", 2)
        tree.setdefault(first, {}).setdefault(second, {})[rest] = tensor
    return tree


# ---------------------------------------------------------------------------------------------------------------------
# A config file


@pytest.mark.parametrize("holder", ["kwargs", "model", "model_args", "config"])
def test_a_mapping_in_a_config_holds_the_arguments(server: ConverterProcess, tmp_path: Path, holder: str) -> None:
    source = made("qwen3")
    file = source.save(tmp_path, "*.pth")
    told = {"class": "Config", "seed": 3, holder: {**source.arguments, "rope_theta": 12345.0}}
    assert written(tmp_path, "qwen3", file, told)["rope_theta"] == 12345.0
    # A converter reads the fields themselves; where they are is for the executor to find.
    words = [str(file), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json")]
    assert "told.json has none of the arguments" in server.run("qwen3", *words)


def test_a_config_of_which_nothing_is_read_is_refused(server: ConverterProcess, tmp_path: Path) -> None:
    """Else every argument would be left at its default, although the user gave a file that says otherwise."""
    file = made("qwen3").save(tmp_path, "*.pth")
    with pytest.raises(Refusal, match="unread-config"):
        written(tmp_path, "qwen3", file, {"heads": 8, "theta": 3.0})
    words = [str(file), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json")]
    assert "told.json" in server.run("qwen3", *words)
    assert not (tmp_path / "converter").exists()


def test_a_config_of_the_targets_kind_tells_in_its_own_words(tmp_path: Path) -> None:
    source = made("torchtune_llama")
    file = source.save(tmp_path, "*.pt")
    told = {"model_type": "llama", "num_attention_heads": 8, "rope_theta": 7000.0, "rms_norm_eps": 1e-3}
    with pytest.raises(Refusal, match="unread-config"):
        written(tmp_path, "torchtune_llama", file, told | {"model_type": "mistral"})
    config = written(tmp_path, "torchtune_llama", file, told)
    assert {name: config[name] for name in told} == told


def test_what_such_a_config_states_is_not_contradicted(tmp_path: Path) -> None:
    source = made("torchtune_llama")
    file = source.save(tmp_path, "*.pt")
    told = {"model_type": "llama", "num_attention_heads": 8, "rope_theta": 7000.0, "hidden_act": "gelu"}
    with pytest.raises(Refusal, match=r"hidden_act is 'gelu' .*config-mismatch.*\n.*the spec always writes this value"):
        written(tmp_path, "torchtune_llama", file, told)
    assert not (tmp_path / "out").exists()


COMPOSITE = """\
spec: 1
name: masks
summary: A spec that writes two of the parts of a composite config
source: {weights: "*.safetensors"}
target: {model: SamModel}
config:
  derive:
    vision_config: '{"hidden_size": 16}'
keep: all
"""


@pytest.mark.parametrize(
    ("part", "agrees"),
    [
        ({"hidden_size": 16}, True),
        ({"hidden_size": 16, "qkv_bias": True}, True),  # the default of the part's class
        ({"hidden_size": 16, "qkv_bias": False}, False),
        ({"hidden_size": 32}, False),
        ({}, False),  # the default is another width
        ({"hidden_size": 16, "model_type": "clip_vision_model"}, False),
    ],
)
def test_a_part_of_a_composite_config_has_its_defaults(tmp_path: Path, part: dict[str, Any], agrees: bool) -> None:
    program = compile_spec(load_spec("masks.yaml", COMPOSITE))
    told = {"model_type": "sam", "vision_config": {"model_type": "sam_vision_model", **part}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    settings = arguments.gather(program, tmp_path / "model.safetensors", {}, None, {})
    problems = arguments.contradictions(program, settings.stated, {"vision_config": {"hidden_size": 16}})
    assert ([problem.kind for problem in problems] == []) == agrees


def test_the_scaling_of_such_a_config_counts(server: ConverterProcess, tmp_path: Path) -> None:
    source = made("torchtune_llama")
    file = source.save(tmp_path, "*.pt")
    told = {"model_type": "llama", "num_attention_heads": 8, "rope_theta": 7000.0, "rope_scaling": LLAMA3}
    with pytest.raises(Refusal, match=r"rope_scaling is .*config-mismatch"):
        written(tmp_path, "torchtune_llama", file, told, scale_factor=32)
    assert written(tmp_path, "torchtune_llama", file, told)["rope_scaling"] == LLAMA3
    words = [str(file), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json"), "--num_heads", "8"]
    words += ["--scale_factor", "8"]  # a converter reads the source's own words only
    assert "--rope_base is needed" in server.run("torchtune_llama", *words)
    assert "rope_theta is 7000.0 in the config" in server.run("torchtune_llama", *words, "--rope_base", "500000")
    assert server.run("torchtune_llama", *words, "--rope_base", "7000") == ""
    assert config_of(tmp_path / "converter")["rope_scaling"] == LLAMA3


def test_a_padding_token_has_a_row(tmp_path: Path) -> None:
    """Else no class could be built from the config."""
    file = made("torchtune_phi3").save(tmp_path, "*.pt")
    with pytest.raises(Refusal, match="pad_token_id is 32000, but the vocabulary has 128 rows"):
        written(tmp_path, "torchtune_phi3", file, None, num_heads=8, rope_base=10000.0)
    given = {"num_heads": 8, "rope_base": 10000.0, "pad_token_id": None}
    assert written(tmp_path, "torchtune_phi3", file, None, **given)["pad_token_id"] is None


@pytest.mark.parametrize(
    ("token", "rows"), [(128, ["bos_token_id is 128"]), (127, []), ([5, 200], ["bos_token_id is 200"])]
)
def test_a_token_without_a_row_is_reported(token: object, rows: list[str]) -> None:
    found = arguments.tokens_beyond_vocabulary({"vocab_size": 128, "bos_token_id": token, "eos_token_id": None})
    assert [text.partition(",")[0] for text in found] == rows


def test_the_way_back_from_experts_narrower_than_dense_layers(tmp_path: Path) -> None:
    """As in the published Qwen3-MoE, whose config keeps the width of dense layers that it has none of."""
    source = made("qwen3_moe")
    file = source.save(tmp_path, "*.pth")
    assert written(tmp_path, "qwen3_moe", file, {"intermediate_size": 6144})["intermediate_size"] == 6144
    for spec in ("qwen3_moe", "torchtitan_qwen3_moe", "mcore_qwen3_moe"):
        given = {"expert_bias_is_zero": True} if spec == "torchtitan_qwen3_moe" else {}
        back = Request([tmp_path / "out"], assigned=given, reverse=True)
        convert(load_program(spec), back, tmp_path / f"{spec}.pth")
    assert image(torch.load(tmp_path / "qwen3_moe.pth", weights_only=True)) == image(source.tensors)


def test_a_window_that_no_layer_uses_is_none(tmp_path: Path) -> None:
    """As the published configs of Qwen2 have it."""
    source = made("torchtune_qwen2")
    file = source.save(tmp_path, "*.pt")
    told = {"model_type": "qwen2", "num_attention_heads": 8, "sliding_window": 32768, "use_sliding_window": True}
    with pytest.raises(Refusal, match=r"sliding_window is 32768 .*config-mismatch"):
        written(tmp_path, "torchtune_qwen2", file, told)
    config = written(tmp_path, "torchtune_qwen2", file, told | {"use_sliding_window": False})
    assert config["sliding_window"] is None


def test_such_a_config_may_say_that_nothing_is_scaled(tmp_path: Path) -> None:
    source = made("torchtitan_llama")
    file = source.save(tmp_path, "*.pt")
    told = {"model_type": "llama", "num_attention_heads": 8, "rope_theta": 500000.0, "rope_scaling": None}
    with pytest.raises(Refusal, match=r"rope_scaling is None .*config-mismatch"):
        written(tmp_path, "torchtitan_llama", file, told, scaling="llama", scaling_factor=8.0)
    assert written(tmp_path, "torchtitan_llama", file, told)["rope_scaling"] is None


def test_the_former_word_for_a_kind_of_scaling_is_understood(tmp_path: Path) -> None:
    source = made("internlm2_llama")
    file = source.save(tmp_path, "*.safetensors")
    told = {**source.arguments, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    with pytest.raises(Refusal, match="unmet-requirement"):
        written(tmp_path, "internlm2_llama", file, told | {"rope_scaling": {"type": "yarn", "factor": 2.0}})
    assert written(tmp_path, "internlm2_llama", file, told)["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}


KEY_HEADS = {
    "llama": "num_key_value_heads",
    "minimind": "num_key_value_heads",
    "minimind1_granite_moe_shared": "n_kv_heads",
    "minimind1_llama": "n_kv_heads",
    "minimind2": "num_key_value_heads",
    "minimind2_granite_moe_shared": "num_key_value_heads",
    "qwen3": "num_key_value_heads",
    "qwen3_moe": "num_key_value_heads",
}


@pytest.mark.parametrize("spec", KEY_HEADS)
def test_no_number_of_key_heads_means_as_many_as_of_queries(
    server: ConverterProcess, tmp_path: Path, spec: str
) -> None:
    """In every generation of MiniMind; the tensors are those that the words for it make."""
    program = load_program(spec)
    heads = "n_heads" if "n_kv_heads" in program.spec.arguments else "num_attention_heads"
    tensors, told = equal_heads(spec), {heads: 8, KEY_HEADS[spec]: None}
    torch.save(tensors, tmp_path / "model.pth")
    config = written(tmp_path, spec, tmp_path / "model.pth", told)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 8)
    convert(program, Request([tmp_path / "model.pth"], assigned={heads: 8, KEY_HEADS[spec]: 8}), tmp_path / "said")
    assert folder_image(tmp_path / "said") == folder_image(tmp_path / "out")
    words = [str(tmp_path / "model.pth"), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json")]
    assert server.run(spec, *words) == ""
    assert config_of(tmp_path / "converter") == config
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "out")


def equal_heads(spec: str) -> dict[str, torch.Tensor]:
    """A source of as many key heads as query heads: the matrices of the queries, moved along by one row."""
    tensors = dict(made({"minimind": "qwen3", "minimind2": "llama"}.get(spec, spec)).tensors)
    for name in tensors:
        for letter in "kv":
            for word, query in ((f"{letter}_proj", "q_proj"), (f"attention.w{letter}", "attention.wq")):
                if f"{word}.weight" in name:
                    tensors[name] = tensors[name.replace(word, query)].roll("kv".index(letter) + 1, 0)
    return tensors


@pytest.mark.parametrize("spec", ["llama", "qwen3", "qwen3_moe"])
def test_yarn_scales_a_model_of_more_positions_than_it_was_trained_on(
    server: ConverterProcess, tmp_path: Path, spec: str
) -> None:
    """So MiniMind's own code has it, whatever the config asks for."""
    source = made(spec)
    file = source.save(tmp_path, "*.pth")
    told = {"max_position_embeddings": 2048, "inference_rope_scaling": True}
    assert written(tmp_path, spec, file, told)["rope_scaling"] is None
    words = [str(file), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json")]
    assert server.run(spec, *words) == ""
    assert config_of(tmp_path / "converter")["rope_scaling"] is None
    shutil.rmtree(tmp_path / "out")
    told["max_position_embeddings"] = 2049
    assert written(tmp_path, spec, file, told)["rope_scaling"]["factor"] == 16.0


def test_the_first_yarn_of_minimind_is_another(tmp_path: Path) -> None:
    source = made("llama")
    file = source.save(tmp_path, "*.pth")
    yarn = {"beta_fast": 4, "beta_slow": 1, "factor": 4, "original_max_position_embeddings": 2048, "type": "yarn"}
    told = {"inference_rope_scaling": True, "rope_scaling": yarn}
    with pytest.raises(Refusal, match="a formula of their own"):
        written(tmp_path, "llama", file, told)
    told["rope_scaling"] = yarn | {"beta_fast": 32, "factor": 8}
    assert written(tmp_path, "llama", file, told)["rope_scaling"]["factor"] == 8


@pytest.mark.parametrize("spec", ["litgpt_llama", "litgpt_gpt_neox"])
def test_condensed_positions_are_a_linear_scaling(server: ConverterProcess, tmp_path: Path, spec: str) -> None:
    source = made(spec)
    file = source.save(tmp_path, "*.pth")
    told = {**source.arguments, "rope_condense_ratio": 8}
    assert written(tmp_path, spec, file, told)["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    words = [str(file), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json")]
    assert server.run(spec, *words) == ""
    assert config_of(tmp_path / "converter")["rope_parameters"]["factor"] == 8.0


def test_the_last_layer_of_olmo_3_is_a_full_one(tmp_path: Path) -> None:
    source = made("olmo_core_olmo3")
    tensors = dict(source.tensors)
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    for number, kinds in ((1, "sf"), (4, "sssff"), (5, "sssfsf")):
        layers = {n: t for n, t in tensors.items() if not n.startswith("blocks.")}
        for i in range(number + 1):
            for name, tensor in tensors.items():
                if name.startswith(f"blocks.{last}."):
                    layers[name.replace(f".{last}.", f".{i}.", 1)] = tensor
        torch.save(layers, tmp_path / "model.pt")
        config = written(tmp_path, "olmo_core_olmo3", tmp_path / "model.pt", None, **source.arguments)
        assert "".join(kind[0] for kind in config["layer_types"]) == kinds
        shutil.rmtree(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoint


@pytest.mark.parametrize("example", [2, 5], ids=["encoder", "transformer"])
def test_a_version_that_the_checkpoint_states_counts(server: ConverterProcess, tmp_path: Path, example: int) -> None:
    """The order of queries, keys and values follows from it, and no shape shows it."""
    source = made("megatron_gpt2", example)
    args = argparse.Namespace(num_attention_heads=4, bias_gelu_fusion=False, padded_vocab_size=128, lr=1e-4)
    held = {"model": nested(source.tensors), "checkpoint_version": 3.0, "args": args, "iteration": 3}
    file = tmp_path / "model_optim_rng.pt"
    torch.save(held, file)
    config = written(tmp_path, "megatron_gpt2", file)
    assert (config["n_head"], config["activation_function"]) == (4, "gelu")
    assert server.run("megatron_gpt2", str(file), str(tmp_path / "converter")) == ""
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "out")
    assert config_of(tmp_path / "converter") == config
    # Another version is another order.
    torch.save(held | {"checkpoint_version": 1.0}, file)
    convert(load_program("megatron_gpt2"), Request([file]), tmp_path / "other")
    assert folder_image(tmp_path / "other") != folder_image(tmp_path / "out")


def test_a_nested_checkpoint_is_detected(tmp_path: Path) -> None:
    source = made("megatron_gpt2", 2)
    held = {
        "model": nested(source.tensors),
        "checkpoint_version": 3.0,
        "args": argparse.Namespace(num_attention_heads=4),
    }
    torch.save(held, tmp_path / "model_optim_rng.pt")
    programs = [load_program(name) for name in ("llama", "nanogpt_gpt2", "megatron_gpt2")]
    fits = detect(Request([tmp_path / "model_optim_rng.pt"]), programs)
    assert {fit.spec: fit.status for fit in fits} == {"megatron_gpt2": "fits", "llama": "no", "nanogpt_gpt2": "no"}


def test_one_of_several_ranks_is_refused(tmp_path: Path) -> None:
    source = made("megatron_gpt2", 2)
    half = {n: t[: len(t) // 2] if "query_key_value" in n else t for n, t in source.tensors.items()}
    torch.save({"model": nested(half), "checkpoint_version": 3.0}, tmp_path / "model_optim_rng.pt")
    with pytest.raises(Refusal, match="one of several tensor-parallel ranks"):
        written(tmp_path, "megatron_gpt2", tmp_path / "model_optim_rng.pt", None, num_attention_heads=4)


def test_groups_that_nobody_reads_do_not_count(server: ConverterProcess, tmp_path: Path) -> None:
    """Megatron-LM's `num_query_groups` is 1 unless grouped attention is asked for."""
    source = made("mcore_llama")
    file = tmp_path / "iter_0000003" / "mp_rank_00" / "model_optim_rng.pt"
    file.parent.mkdir(parents=True)
    args = {"num_attention_heads": 8, "num_query_groups": 1, "rotary_base": 10000}
    held = {"model": source.tensors, "checkpoint_version": 3.0}
    torch.save(held | {"args": argparse.Namespace(**args, group_query_attention=True)}, file)
    with pytest.raises(Refusal, match="num_query_groups does not fit"):
        written(tmp_path, "mcore_llama", file)
    torch.save(held | {"args": argparse.Namespace(**args, group_query_attention=False)}, file)
    assert written(tmp_path, "mcore_llama", file)["num_key_value_heads"] == 2
    assert server.run("mcore_llama", str(tmp_path / "iter_0000003"), str(tmp_path / "converter")) == ""
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotary_interleaved", True),
        ("apply_layernorm_1p", True),
        ("position_embedding_type", "learned_absolute"),
        ("rotary_seq_len_interpolation_factor", 4),
        ("layernorm_zero_centered_gamma", True),
        ("window_size", (127, 0)),
        ("softmax_type", "learnable"),
        ("qk_l2_norm", True),
        ("swiglu", False),
    ],
)
def test_args_that_the_class_cannot_express_are_refused(tmp_path: Path, field: str, value: object) -> None:
    source = made("mcore_llama")
    file = tmp_path / "model_optim_rng.pt"
    args = argparse.Namespace(**{"num_attention_heads": 8, field: value})
    torch.save({"model": source.tensors, "args": args}, file)
    with pytest.raises(Refusal, match="unmet-requirement"):
        written(tmp_path, "mcore_llama", file)


# ---------------------------------------------------------------------------------------------------------------------
# The options of a converter


def test_a_text_is_no_answer_to_yes_or_no(server: ConverterProcess, tmp_path: Path) -> None:
    file, config = made("qwen3").save(tmp_path, "*.pth"), tmp_path / "told.json"
    words = [str(file), str(tmp_path / "out"), "--hidden_act", "gelu", "--config", str(config)]
    for value, kind in (("no", "bool"), (1, "bool")):
        config.write_text(json.dumps({"tie_word_embeddings": value}))
        assert f"tie_word_embeddings is {value!r}, where a value of the type {kind}" in server.run("qwen3", *words)
    config.write_text(json.dumps({"tie_word_embeddings": False, "rope_theta": 7}))
    assert server.run("qwen3", *words, "--tie_word_embeddings") == ""  # an option counts more than a config
    written = config_of(tmp_path / "out")
    assert (written["hidden_act"], written["tie_word_embeddings"]) == ("gelu", True)
    assert repr(written["rope_theta"]) == "7.0"


def test_a_converter_says_what_it_does_not_find(server: ConverterProcess, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "*.safetensors" in server.run("internlm2_llama", str(tmp_path / "empty"), str(tmp_path / "out"))
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    words = [str(tmp_path / "other.safetensors"), str(tmp_path / "out"), "--rope_theta", "1e6"]
    assert "--num_attention_heads is needed" in server.run("internlm2_llama", *words)
    said = server.run("internlm2_llama", *words, "--num_attention_heads", "4")
    assert said == "the checkpoint has no tensor called 'model.tok_embeddings.weight'"
    assert "mp_rank_*/model_optim_rng.pt" in server.run("mcore_llama", str(tmp_path / "empty"), str(tmp_path / "out"))


# ---------------------------------------------------------------------------------------------------------------------
# What no name shows


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ("litgpt_mistral", "rotary_percentage", 0.75),  # LitGPT's Phi-4-mini has every name of Mistral
        ("litgpt_mistral", "sliding_window_indices", [1, 0]),
        ("litgpt_mixtral", "rope_condense_ratio", 8),
        ("litgpt_gemma2", "sliding_window_indices", [1, 0, 0]),  # which is every third layer
        ("litgpt_qwen2", "parallel_residual", True),
        ("litgpt_qwen3", "rope_interleave", True),
        ("litgpt_llama", "attention_logit_softcapping", 50.0),
        ("litgpt_phi", "scale_embeddings", True),
        ("litgpt_gemma", "sliding_window_size", 512),
        ("meta_llama", "sliding_window", 4096),  # Mistral AI's files have every name of Meta's
        ("meta_llama", "_sliding_window", 4096),
        ("mistral_mistral", "use_scaled_rope", True),
        ("mistral_mistral", "yarn", {"factor": 16, "original_max_position_embeddings": 16384}),
        ("megatron_gpt2", "apply_layernorm_1p", True),
        ("megatron_gpt2", "apply_residual_connection_post_layernorm", True),
        ("mistral_mixtral", "moe", {"num_experts_per_tok": 2, "num_experts": 8}),  # the router has 12
        ("olmo1_olmo", "layer_norm_type", "rms"),
        ("olmo1_olmo", "scale_logits", True),
        ("olmo1_olmo", "embedding_layer_norm", True),
    ],
)
def test_a_layer_of_another_kind_is_refused(tmp_path: Path, spec: str, field: str, value: object) -> None:
    source = made(spec)
    file = source.save(tmp_path, "*.pth")
    given = dict(source.arguments) | ({"sliding_window_size": 8} if field == "sliding_window_indices" else {})
    with pytest.raises(Refusal, match="unmet-requirement"):
        written(tmp_path, spec, file, None, **given | {field: value})
    assert written(tmp_path, spec, file, None, **given)


@pytest.mark.parametrize("spec", ["mistral_mistral", "mistral_mixtral"])
def test_the_window_has_two_names_in_params_json(server: ConverterProcess, tmp_path: Path, spec: str) -> None:
    source, folder = made(spec), tmp_path / "folder"
    folder.mkdir()
    torch.save(dict(source.tensors), folder / "consolidated.00.pth")
    told = dict(source.arguments) | {"sliding_window": None, "_sliding_window": 9}
    assert written(tmp_path, spec, folder, told)["sliding_window"] == 9
    words = [str(folder), str(tmp_path / "converter"), "--config", str(tmp_path / "told.json")]
    assert server.run(spec, *words) == ""
    assert config_of(tmp_path / "converter")["sliding_window"] == 9


def test_the_embedding_of_mistral_may_be_the_head(tmp_path: Path) -> None:
    source = made("mistral_mistral", 1)
    tensors = {name: tensor for name, tensor in source.tensors.items() if name != "output.weight"}
    torch.save(tensors, tmp_path / "consolidated.00.pth")
    with pytest.raises(Refusal, match=r"no output\.weight"):
        written(tmp_path, "mistral_mistral", tmp_path / "consolidated.00.pth", {"n_heads": 4, "rope_theta": 1e6})
    told = {"n_heads": 4, "rope_theta": 1e6, "tied_embeddings": True}
    assert written(tmp_path, "mistral_mistral", tmp_path / "consolidated.00.pth", told)["tie_word_embeddings"]


def test_nanogpt_without_biases_needs_no_word_for_it(tmp_path: Path) -> None:
    source = made("nanogpt_gpt2", 1)
    torch.save(dict(source.tensors), tmp_path / "ckpt.pt")
    written(tmp_path, "nanogpt_gpt2", tmp_path / "ckpt.pt", None, n_head=4, dropout=0.0)
    back = Request([tmp_path / "out"], assigned={"bias": False}, reverse=True)
    convert(load_program("nanogpt_gpt2"), back, tmp_path / "back.pth")
    assert image(torch.load(tmp_path / "back.pth", weights_only=True)) == image(source.tensors)
    torch.save({"model": dict(source.tensors), "model_args": {"n_head": 4, "bias": True}}, tmp_path / "ckpt.pt")
    with pytest.raises(Refusal, match=r"bias = True .*, but the checkpoint has False"):
        convert(load_program("nanogpt_gpt2"), Request([tmp_path / "ckpt.pt"]), tmp_path / "other")


def test_projections_of_opt_that_were_never_fused(server: ConverterProcess, tmp_path: Path) -> None:
    source = made("opt_opt")
    apart = {n: t for n, t in source.tensors.items() if "qkv_proj" not in n}
    for name in source.tensors.keys() - apart.keys():
        thirds = zip("kvq", source.tensors[name].chunk(3), strict=True)
        apart |= {name.replace("qkv_proj", f"{letter}_proj"): third.clone() for letter, third in thirds}
    file = source.save(tmp_path, "*.pt")
    written(tmp_path, "opt_opt", file, None, decoder_attention_heads=4)
    torch.save(apart, file)
    convert(load_program("opt_opt"), Request([file], assigned={"decoder_attention_heads": 4}), tmp_path / "apart")
    assert folder_image(tmp_path / "apart") == folder_image(tmp_path / "out")
    assert server.run("opt_opt", str(file), str(tmp_path / "converter"), "--decoder_attention_heads", "4") == ""
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "out")


def test_frequencies_that_torchtitan_kept_are_left_behind(tmp_path: Path) -> None:
    source = made("meta_llama")
    frequencies = torch.ones(8, 4, dtype=torch.complex64)
    torch.save({"model": {**source.tensors, "freqs_cis": frequencies}}, tmp_path / "checkpoint.pt")
    assert written(tmp_path, "meta_llama", tmp_path / "checkpoint.pt", None, **source.arguments)


def test_no_base_of_the_rotary_embeddings_is_mixtrals(tmp_path: Path) -> None:
    source = made("mistral_mixtral")
    file = source.save(tmp_path, "*.pth")
    told = dict(source.arguments) | {"rope_theta": None}
    assert written(tmp_path, "mistral_mixtral", file, told)["rope_theta"] == 1000000.0


@pytest.mark.parametrize("spec", ["timm_vit", "whisper_whisper", "transformer_lens_gpt2", "mcore_llama"])
def test_the_way_back_asks_for_nothing_that_only_the_way_there_needs(tmp_path: Path, spec: str) -> None:
    """A fact that followed from an argument stands in the config now; what a requirement asked is answered."""
    source = made(spec)
    file = source.save(tmp_path, "*.pt")
    written(tmp_path, spec, file, None, **source.arguments)
    convert(load_program(spec), Request([tmp_path / "out"], reverse=True), tmp_path / "back.pth")
    assert image(torch.load(tmp_path / "back.pth", weights_only=True)) == image(source.tensors)


def test_no_activation(tmp_path: Path) -> None:
    program = load_program("qwen3")
    source = synthetic(program, 0, finite=True).save(tmp_path, "*.pth")
    for value in (None, "nonsense"):
        with pytest.raises(Refusal, match="must be an activation of Transformers"):
            prepare(program, Request([source], assigned={"hidden_act": value}))


@pytest.mark.parametrize("name", ["rope_base", "norm_eps", "block_size"])
def test_a_null_is_no_number(name: str, tmp_path: Path) -> None:
    """A config with an empty value would become a config.json in which the class's own default counts, or none."""
    program = load_program("litgpt_llama")
    made = synthetic(program, 1, finite=True)
    source = made.save(tmp_path, "*.pth")
    fields = {"n_head": 4, "rope_base": 777.0, "norm_eps": 1e-6, "block_size": 64, "rope_adjustments": None}
    (tmp_path / "model_config.yaml").write_text("".join(f"{n}: {json.dumps(value)}\n" for n, value in fields.items()))
    assert prepare(program, Request([source])).plan.config["rope_theta"] == 777.0
    (tmp_path / "model_config.yaml").write_text(
        "".join(f"{n}: {json.dumps(value) if n != name else ''}\n" for n, value in fields.items())
    )
    with pytest.raises(Refusal, match=r"is null \(model_config\.yaml\), but must be a") as refused:
        prepare(program, Request([source]))
    (diagnostic,) = refused.value.diagnostics
    assert (diagnostic.kind, diagnostic.hint) == ("config-value", f"--set {name}=VALUE")


def test_a_field_that_the_spec_turns_into_another_type() -> None:
    """Mistral AI's params.json has its window as a text, which the spec makes a number of."""
    case = Case(ORACLES / "mistral" / "consolidated")
    assert '"4096"' in (case.folder / "source" / "params.json").read_text()
    assert prepare(case.program, case.request).plan.config["sliding_window"] == 4096
