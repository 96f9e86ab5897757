"""What Transformers expects of a model, tested on every rendered one: see docs/contract.md.

The models are tiny with random weights. The same tests run under several releases of transformers.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from support.custom_models import MODELS
from support.portion import ALL
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from compiler.render.remote_code.render import auto_map, render_custom

TOKENIZER = Path(__file__).parent.parent / "data" / "tokenizer"
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # so large that a wrong mask or position shows in the logits
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
YARN_DIALECT = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("minimind", GROUPED),
    "untied": ("minimind", GROUPED | {"tie_word_embeddings": False, "head_dim": 12}),
    "yarn": ("minimind", GROUPED | {"rope_scaling": YARN_DIALECT}),
    "moe": ("minimind", GROUPED | {"use_moe": True, "num_experts_per_tok": 2, "moe_intermediate_size": 40}),
    "dense2": ("minimind2", GROUPED),
    "moe_shared": ("minimind2", GROUPED | {"use_moe": True, "n_shared_experts": 2}),
    "gpt": ("nanogpt", {}),
    "gpt_no_bias": ("nanogpt", {"bias": False}),
    "always_sparse": ("sparse", {"num_experts_per_tok": 3, "num_experts": 5}),
    "layered": ("layered", GROUPED),
    "weightless": ("weightless", GROUPED),
    "windowed": ("windowed", GROUPED),
    "smeared": ("smeared", GROUPED | {"tie_word_embeddings": False}),
    "valued": ("valued", {"num_experts_per_tok": 2, "num_experts": 3}),
}
SPARSE = ("moe", "moe_shared", "always_sparse", "valued")
VALUE_EMBEDDINGS = ("smeared", "valued")  # they need token ids


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The rendered model modules, each in its own package."""
    root = tmp_path_factory.mktemp("rendered")
    for name, model in MODELS.items():
        package = root / f"rendered_{name}"
        package.mkdir()
        (package / "__init__.py").touch()
        for file, text in render_custom(model).items():
            (package / file).write_text(text)
    sys.path.insert(0, str(root))
    yield {name: importlib.import_module(f"rendered_{name}.model_{name}") for name in MODELS}
    sys.path.remove(str(root))


# The default run leaves out those that differ from another one in one choice.
USUAL = ("dense", "yarn", "moe_shared", "gpt", "layered", "windowed", "smeared", "valued")


@pytest.fixture(params=VARIANTS if ALL else USUAL)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(code: dict[str, ModuleType], variant: str) -> Callable[..., Any]:
    """Builds the variant's model in evaluation mode with fixed weights; keywords are config fields."""

    def build(**changes: Any) -> Any:
        name, sizes = VARIANTS[variant]
        attention = changes.pop("attn_implementation", "sdpa")
        module = code[name]
        config_class = getattr(module, MODELS[name].config_class)
        torch.manual_seed(0)
        config = config_class(**{**SIZES, **sizes, **changes})
        config._attn_implementation = attention
        return getattr(module, MODELS[name].model_class)(config).eval()

    return build


@pytest.fixture
def model(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which Transformers caches remote code."""
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("transformers_modules")}
    yield cache
    for name in set(sys.modules) - known:
        if name.startswith("transformers_modules"):
            del sys.modules[name]
    sys.modules.update(held)


def ids(batch: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(3, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, *args: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(*args, **kwargs).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def save(model: Any, folder: Path) -> Path:
    """Save a model with its code, as a user does."""
    type(model.config).register_for_auto_class()
    type(model).register_for_auto_class("AutoModelForCausalLM")
    model.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Tensors and files


def test_nothing_but_parameters(model: Any) -> None:
    """There are no buffers, and the state dict has exactly the parameters."""
    assert not list(model.named_buffers())
    assert model.state_dict().keys() == dict(model.named_parameters(remove_duplicate=False)).keys()


def test_round_trip(model: Any, tmp_path: Path) -> None:
    save(model, tmp_path / "saved")
    again, info = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    for (name, mine), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert torch.equal(logits(model, ids()), logits(again, ids()))


def test_tied_weights(make: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors import safe_open

    for tied in (True, False):
        model = make(tie_word_embeddings=tied)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        model.save_pretrained(tmp_path / str(tied))
        with safe_open(tmp_path / str(tied) / "model.safetensors", "pt") as file:
            assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118 - the handle is no mapping
        again = type(model).from_pretrained(tmp_path / str(tied))
        assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
        assert torch.equal(logits(model, ids()), logits(again, ids()))


def test_code_travels(model: Any, variant: str, tmp_path: Path, modules_cache: Path) -> None:
    """A saved folder has the code and its auto_map, and the auto classes load it without the original module."""
    folder = save(model, tmp_path / f"folder_{variant}")
    name, _ = VARIANTS[variant]
    written = json.loads((folder / "config.json").read_text())["auto_map"]
    assert written == {auto: auto_map(MODELS[name])[auto] for auto in ("AutoConfig", "AutoModelForCausalLM")}
    for file, text in render_custom(MODELS[name]).items():
        assert (folder / file).read_text() == text
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(again).__module__.startswith("transformers_modules")
    assert config.to_diff_dict() == again.config.to_diff_dict()
    close(logits(model, ids()), logits(again, ids()))
    # the loaded model saves its code again
    again.save_pretrained(tmp_path / f"twice_{variant}")
    assert (tmp_path / f"twice_{variant}" / f"model_{name}.py").read_text() == (folder / f"model_{name}.py").read_text()


def test_loading_initializes_everything(model: Any, tmp_path: Path) -> None:
    """With NaN in all memory that torch hands out uninitialised, loading gives the same logits."""
    model.save_pretrained(tmp_path / "saved")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(8).isnan().all(), "uninitialized memory is not NaN"
        again = type(model).from_pretrained(tmp_path / "saved", device_map={"": "cpu"})
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(logits(model, ids()), logits(again, ids()))


def test_from_meta(model: Any, make: Callable[..., Any]) -> None:
    """A model built on the meta device is complete after loading its state dict."""
    with torch.device("meta"):
        empty = make()
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(model, ids()), logits(empty, ids()))


def test_offload_to_disk(model: Any, tmp_path: Path) -> None:
    """`device_map` may put layers elsewhere; a layer is never split."""
    model.save_pretrained(tmp_path / "saved")
    base, layers = (
        model.base_model_prefix,
        next(n for n, m in model.base_model.named_children() if isinstance(m, torch.nn.ModuleList)),
    )
    places = {f"{base}.{name}": "cpu" for name, _ in model.base_model.named_children() if name != layers}
    places |= {f"{base}.{layers}.0": "cpu", f"{base}.{layers}.1": "disk", "lm_head": "cpu"}
    again = type(model).from_pretrained(tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offload")
    close(logits(model, ids()), logits(again, ids()))


def test_fresh_weights(make: Callable[..., Any]) -> None:
    model = make(hidden_size=128, num_attention_heads=4, initializer_range=0.02)
    scales = {name: module.start for name, module in model.named_modules() if hasattr(module, "start")}
    for name, parameter in model.named_parameters():
        if (start := scales.get(name.removesuffix(".weight"))) is not None:
            assert torch.equal(parameter, torch.full_like(parameter, start))
        elif "norm" in name or ".ln_" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0.01 < parameter.std() < 0.03, name


# ---------------------------------------------------------------------------------------------------------------------
# The forward pass


def test_causal(model: Any) -> None:
    changed = ids()
    changed[:, 5:] = 3 + (changed[:, 5:] - 3 + 1) % (SIZES["vocab_size"] - 3)
    before, after = logits(model, ids()), logits(model, changed)
    close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-2


def test_order_matters(model: Any) -> None:
    """The last logits depend on the order of earlier tokens."""
    swapped = ids()[:, [1, 0, *range(2, 9)]]
    assert (logits(model, ids())[:, -1] - logits(model, swapped)[:, -1]).abs().max() > 1e-3


def test_cache_in_parts(model: Any) -> None:
    """The sequence at once and in three parts with a cache give the same logits."""
    whole = logits(model, ids())
    cache, found = None, []
    for part in ids().split([4, 1, 4], dim=1):
        with torch.no_grad():
            output = model(part, past_key_values=cache, use_cache=True)
        cache = output[1]
        found.append(output.logits)
    close(whole, torch.cat(found, dim=1))


def test_both_names_of_the_cache(model: Any) -> None:
    with torch.no_grad():
        caches = [model(ids()[:, :4], use_cache=True)[1] for _ in range(2)]
        old = model(ids()[:, 4:], past_key_values=caches[0]).logits
        new = model(ids()[:, 4:], cache=caches[1]).logits
    assert torch.equal(old, new)
    assert model(ids(), use_cache=False, return_dict=False)[0].shape == (2, 9, SIZES["vocab_size"])


def test_padding(model: Any) -> None:
    """Left padding with matching positions changes no logits; neither does a mask of ones."""
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids()), dim=1)
    mask = (torch.arange(12) >= 3).long().expand(2, 12)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    close(logits(model, ids()), logits(model, padded, attention_mask=mask, position_ids=positions)[:, 3:])
    close(logits(model, ids()), logits(model, ids(), attention_mask=torch.ones_like(ids())))


def test_embeddings_as_input(model: Any, variant: str) -> None:
    if variant in VALUE_EMBEDDINGS:
        with pytest.raises(ValueError, match="pass input_ids: the value embeddings are looked up by token id"):
            model(inputs_embeds=model.get_input_embeddings()(ids()))
    else:
        assert torch.equal(logits(model, ids()), logits(model, inputs_embeds=model.get_input_embeddings()(ids())))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_logits_to_keep(model: Any) -> None:
    whole = logits(model, ids())
    close(whole[:, -2:], logits(model, ids(), logits_to_keep=2))
    close(whole[:, [1, 3]], logits(model, ids(), logits_to_keep=torch.tensor([1, 3])))


def test_recorded_outputs(make: Callable[..., Any]) -> None:
    model = make(attn_implementation="eager")
    with torch.no_grad():
        output = model(ids(), output_hidden_states=True, output_attentions=True)
        plain = model(ids(), return_dict=False)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 9, 32)] * 3
    head = model.lm_head(output.hidden_states[-1])
    if limit := getattr(model.config, "final_logit_softcapping", None):
        head = limit * torch.tanh(head / limit)
    assert torch.equal(head, output.logits)
    assert [tuple(a.shape) for a in output.attentions] == [(2, 4, 9, 9)] * 2
    for weights in output.attentions:
        close(weights.sum(-1), torch.ones(2, 4, 9))
        assert not weights.triu(1).any()
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output.logits)
    model.config.output_hidden_states = True
    assert len(model(ids()).hidden_states) == 3


def test_router_logits_of_the_base_model(make: Callable[..., Any], variant: str) -> None:
    """The base model returns them where the config or the caller asks for them; the caller wins."""
    model = make()
    base, sparse = model.base_model, variant in SPARSE
    assert getattr(base(ids()), "router_logits", None) is None
    if sparse:
        assert len(base(ids(), output_router_logits=True).router_logits) == 2
        model.config.output_router_logits = True
        assert len(base(ids()).router_logits) == len(model(ids()).router_logits) == 2
        assert base(ids(), output_router_logits=False).router_logits is None
        assert model(ids(), output_router_logits=False).router_logits is None


def test_the_same_function_as_a_standard_model(code: dict[str, ModuleType]) -> None:
    """Norms without weights, the negative rotation and capped logits are those of NanoChat in Transformers."""
    standard = pytest.importorskip("transformers.models.nanochat.modeling_nanochat")
    module = code["weightless"]
    sizes = {**SIZES, **GROUPED, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    torch.manual_seed(0)
    mine = module.MiniMindForCausalLM(module.MiniMindConfig(**sizes, rope_theta=1e4)).eval()
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = standard.NanoChatConfig(**sizes, final_logit_softcapping=15.0, rope_parameters=rope)
    theirs = standard.NanoChatForCausalLM(config).eval()
    names = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    state = {}
    for name, tensor in mine.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901
        state[name] = tensor
    theirs.load_state_dict(state, strict=True)
    close(logits(mine, ids()), logits(theirs, ids()))
    assert logits(mine, ids()).abs().max() > 4, "the cap has an effect"


def test_windows_are_those_of_a_standard_model(code: dict[str, ModuleType]) -> None:
    """As in Qwen3 with the same layer types, at once and token by token."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    module = code["windowed"]
    sizes = {**SIZES, **GROUPED, "rms_norm_eps": 1e-6, "head_dim": 8, "sliding_window": 4}
    kinds = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    mine = module.MiniMindForCausalLM(
        module.MiniMindConfig(**sizes, layer_types=kinds, tie_word_embeddings=False)
    ).eval()
    config = Qwen3Config(**sizes, layer_types=kinds, use_sliding_window=True, rope_theta=1e6, tie_word_embeddings=False)
    theirs = Qwen3ForCausalLM(config).eval()
    theirs.load_state_dict(mine.state_dict(), strict=True)
    close(logits(mine, ids()), logits(theirs, ids()))
    mine.config.sliding_window = 64
    wide = module.MiniMindForCausalLM(mine.config).eval()
    wide.load_state_dict(mine.state_dict())
    assert (logits(wide, ids())[:, -1] - logits(theirs, ids())[:, -1]).abs().max() > 1e-2
    longer = generate(theirs, ids())
    mine.config.sliding_window = 4
    assert torch.equal(generate(mine, ids()), longer)


HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")


@pytest.mark.parametrize("task", HEADS)
def test_heads(model: Any, code: dict[str, ModuleType], variant: str, task: str, tmp_path: Path) -> None:
    """A head loads the decoder of a saved model, computes a loss and saves itself; `auto_map` names its class."""
    name, _ = VARIANTS[variant]
    head_class = getattr(code[name], MODELS[name].model_class.replace("CausalLM", task))
    assert auto_map(MODELS[name])[f"AutoModelFor{task}"] == f"model_{name}.{head_class.__name__}"
    model.save_pretrained(tmp_path / "decoder")
    head, info = head_class.from_pretrained(tmp_path / "decoder", num_labels=3, output_loading_info=True)
    layer = "qa_outputs" if task == "QuestionAnswering" else "score"
    assert {key.partition(".")[0] for key in info["missing_keys"]} == {layer}
    head.eval()
    states = head.base_model(ids()).last_hidden_state
    assert torch.equal(states, model.base_model(ids()).last_hidden_state)
    if task == "QuestionAnswering":
        output = head(ids(), start_positions=torch.tensor([1, 2]), end_positions=torch.tensor([3, 4]))
        expected = head.qa_outputs(states)
        close(output.start_logits, expected[..., 0])
        close(output.end_logits, expected[..., 1])
    else:
        labels = torch.ones((2,) if task == "SequenceClassification" else (2, 9), dtype=torch.long)
        output = head(ids(), labels=labels)
        close(output.logits, head.score(states[:, -1] if task == "SequenceClassification" else states))
        close(output.loss, torch.nn.functional.cross_entropy(output.logits.view(-1, 3), labels.flatten()))
    head.train()
    head(ids()).to_tuple()[0].sum().backward()
    assert head.get_input_embeddings().weight.grad is not None
    head.save_pretrained(tmp_path / "head")
    again, info = head_class.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"]
    assert again.config.num_labels == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(make: Callable[..., Any], variant: str, dtype: torch.dtype) -> None:
    """Positions and norms are computed in float32 for any dtype of the weights."""
    model = make().to(dtype)
    exact = copy.deepcopy(model).float()
    # Rotary positions are relative, so an offset changes nothing; in bfloat16, 1000 to 1008 are only three values.
    learned = MODELS[VARIANTS[variant][0]].blocks.get("embedding", {}).get("positions") == "learned"
    positions = torch.arange(9)[None] + (0 if learned else 1000)
    found, reference = logits(model, ids(), position_ids=positions), logits(exact, ids())
    assert found.dtype == dtype
    assert (found.float() - reference).abs().max() < 0.4
    if variant in VALUE_EMBEDDINGS:
        return
    # The square of 300 is beyond float16.
    large = (300 * torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))).to(dtype)
    apart = logits(model, inputs_embeds=large).float() - logits(exact, inputs_embeds=large.float())
    assert apart.abs().max() < 0.4


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def test_eager_and_sdpa_agree(make: Callable[..., Any]) -> None:
    mask = torch.ones_like(ids())
    mask[0, :3] = 0
    for attention_mask in (None, mask):
        eager, sdpa = (
            logits(make(attn_implementation=a), ids(), attention_mask=attention_mask) for a in ("eager", "sdpa")
        )
        seen = slice(None) if attention_mask is None else mask.bool()
        close(eager[seen], sdpa[seen])


def test_attention_is_dispatched(make: Callable[..., Any]) -> None:
    """An attention registered with Transformers is called with the arguments that Flash Attention needs."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []

    def recorded(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        calls.append((query.shape, key.shape, kwargs))
        assert module.is_causal
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("recorded", recorded)
    ALL_MASK_ATTENTION_FUNCTIONS.register("recorded", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = make()
    assert model._supports_flash_attn
    expected = logits(model, ids())
    model.set_attn_implementation("recorded")
    close(expected, logits(model, ids()))
    assert len(calls) == 2
    query, key, kwargs = calls[0]
    heads = model.config.num_attention_heads
    assert (query[1], key[1]) == (heads, getattr(model.config, "num_key_value_heads", heads))
    assert kwargs["scaling"] == pytest.approx(model.config.head_dim**-0.5)
    assert kwargs.get("dropout", 0.0) == 0.0
    assert "position_ids" in kwargs


def test_attention_weights_need_eager(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys.modules[type(model).__module__].logger, "warning_once", said.append)
    model(ids(), output_attentions=True)
    assert "eager" in said[0]


# ---------------------------------------------------------------------------------------------------------------------
# Generation


def generate(model: Any, prompt: Tensor, **kwargs: Any) -> Tensor:
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | kwargs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(prompt, **options)


def test_caches_agree(model: Any) -> None:
    uncached = generate(model, ids(), use_cache=False)
    assert uncached.shape == (2, 21)
    assert torch.equal(uncached, generate(model, ids(), use_cache=True))
    assert torch.equal(uncached, generate(model, ids(), cache_implementation="static"))
    cache = StaticCache(config=model.config, max_batch_size=2, max_cache_len=32)
    assert torch.equal(uncached, generate(model, ids(), past_key_values=cache))


def test_batch_of_unequal_prompts(model: Any) -> None:
    short, long = ids(1, 4, seed=1), ids(1, 9, seed=2)
    batch = torch.cat((torch.cat((torch.zeros(1, 5, dtype=torch.long), short), dim=1), long))
    found = generate(model, batch, attention_mask=(batch != 0).long())
    assert torch.equal(found[0, 5:], generate(model, short)[0])
    assert torch.equal(found[1], generate(model, long)[0])


def test_beams(model: Any) -> None:
    beams = {"num_beams": 3, "max_new_tokens": 6}
    assert torch.equal(generate(model, ids(), **beams), generate(model, ids(), use_cache=False, **beams))
    several = generate(model, ids(), num_return_sequences=2, **beams)
    assert several.shape == (4, 15)


def test_sampling_and_records(make: Callable[..., Any]) -> None:
    model = make(attn_implementation="eager")
    torch.manual_seed(0)
    found = generate(
        model, ids(), do_sample=True, num_return_sequences=2, max_new_tokens=3, return_dict_in_generate=True,
        output_scores=True, output_attentions=True, output_hidden_states=True,
    )  # fmt: skip
    assert found.sequences.shape == (4, 12)
    assert len(found.attentions) == len(found.hidden_states) == 3
    assert found.attentions[1][-1].shape == (4, 4, 1, 10)


def test_pipeline(make: Callable[..., Any]) -> None:
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    speak = pipeline("text-generation", model=make(vocab_size=len(tokenizer)), tokenizer=tokenizer, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = speak("Once upon a time", max_new_tokens=4, do_sample=False)
    assert found[0]["generated_text"].startswith("Once upon a time")


# ---------------------------------------------------------------------------------------------------------------------
# Training


def gradients(model: Any, **kwargs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids(), labels=ids(), **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss(model: Any) -> None:
    labels = ids().clone()
    labels[:, :3] = -100
    output = model(ids(), labels=labels)
    shifted = output.logits[:, 2:-1].reshape(-1, SIZES["vocab_size"])
    close(output.loss, torch.nn.functional.cross_entropy(shifted, labels[:, 3:].flatten()))
    # as Trainer calls it: the sum over the batch, divided by the number of tokens of several batches
    close(model(ids(), labels=labels, num_items_in_batch=24).loss, output.loss * 12 / 24)


def test_every_weight_learns(model: Any, variant: str) -> None:
    model.train()
    found = gradients(model)
    for name, parameter in model.named_parameters():
        if variant in SPARSE and ".experts." in name:
            continue  # an expert that got no token has no gradient
        assert name in found, name
        assert found[name].abs().sum() > 0 or parameter.numel() == 0, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(model: Any, reentrant: bool) -> None:
    model.train()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    runs: list[Any] = []
    blocks = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    for block in blocks:
        block.register_forward_hook(lambda *args: runs.append(args))
    found = gradients(model)
    assert len(runs) == 2 * len(blocks), "each layer runs again for its gradients"
    output = model(ids(), use_cache=True)
    assert output.get(sys.modules[type(model).__module__].CACHE) is None
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(gradient, found[name], 1e-4)


def test_dropout_acts_in_training_only(make: Callable[..., Any], variant: str) -> None:
    model = make(dropout=0.5)
    if not any(isinstance(module, torch.nn.Dropout) for module in model.modules()):
        assert "dropout" not in MODELS[VARIANTS[variant][0]].fields
        return
    assert torch.equal(logits(model, ids()), logits(make(), ids()))
    model.train()
    assert not torch.equal(logits(model, ids()), logits(model, ids()))


def balance(probabilities: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """Load balancing loss: sum over experts of share of choices times mean probability, times the number of experts."""
    share = torch.stack([(chosen == i).float().mean() for i in range(experts)])
    return (share * probabilities.mean(0)).sum() * experts


def test_load_balancing_loss(make: Callable[..., Any], variant: str) -> None:
    model = make()
    output = model(ids(), labels=ids())
    if variant not in SPARSE:
        assert getattr(output, "aux_loss", None) is None
        return
    assert output.aux_loss is None
    asked = model(ids(), labels=ids(), output_router_logits=True)
    model.train()
    training = model(ids(), labels=ids())
    close(asked.aux_loss, training.aux_loss)
    close(training.loss, output.loss + training.aux_loss)
    experts = model.config.num_experts
    assert [tuple(r.shape) for r in asked.router_logits] == [(18, experts)] * 2

    config, expected = model.config, torch.zeros(())
    for router in asked.router_logits:
        probabilities = router.softmax(-1)
        chosen = probabilities.topk(config.num_experts_per_tok).indices
        if variant == "moe_shared":  # a mean over sequences of nine
            parts = zip(probabilities.split(9), chosen.split(9), strict=True)
            expected = expected + torch.stack([balance(p, c, experts) for p, c in parts]).mean()
        else:  # of the batch, and each of a token's choices counts for one
            expected = expected + balance(probabilities, chosen, experts) * config.num_experts_per_tok
    close(asked.aux_loss, expected * config.router_aux_loss_coef)
    if variant == "moe_shared":
        config.seq_aux = False
        assert (model(ids()).aux_loss - asked.aux_loss).abs() > 1e-6


def test_experts_are_those_of_a_plain_loop(make: Callable[..., Any], variant: str) -> None:
    """The mixture equals one that runs every expert on every token."""
    model = make()
    if variant not in SPARSE:
        assert not hasattr(next(m for n, m in model.named_modules() if n.endswith(".mlp")), "experts")
        return
    block, config = model.model.layers[0].mlp, model.config
    states = torch.randn(2, 9, 32)
    probabilities = block.gate(states).softmax(-1)
    weights, chosen = probabilities.topk(config.num_experts_per_tok)
    if config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.zeros_like(states)
    for i, expert in enumerate(block.experts):
        expected += expert(states) * (weights * (chosen == i)).sum(-1, keepdim=True)
    for expert in getattr(block, "shared_experts", ()):
        expected += expert(states)
    close(block(states)[0], expected)


def test_idle_experts_are_not_called(make: Callable[..., Any], variant: str) -> None:
    model = make()
    if variant not in SPARSE:
        return
    block = model.model.layers[0].mlp
    called = []
    for i, expert in enumerate(block.experts):
        expert.register_forward_hook(lambda *args, i=i: called.append(i))
    _, router = block(torch.randn(1, 1, 32))
    assert sorted(called) == sorted(router.topk(model.config.num_experts_per_tok).indices.flatten().tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Tools


@pytest.mark.parametrize("size", [80, 128])
def test_resize_token_embeddings(model: Any, size: int, tmp_path: Path) -> None:
    before = logits(model, ids().clamp(max=79))
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == size
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is model.config.tie_word_embeddings
    close(logits(model, ids().clamp(max=79))[..., :80], before[..., :80])
    model.save_pretrained(tmp_path / "resized")
    again = type(model).from_pretrained(tmp_path / "resized")
    assert torch.equal(logits(model, ids().clamp(max=79)), logits(again, ids().clamp(max=79)))


def test_compile(model: Any) -> None:
    """The model is one graph, with and without experts."""
    assert type(model)._can_compile_fullgraph != hasattr(
        model.base_model, "smear_scale"
    )  # which makes a layer of the cache
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    close(logits(model, ids()), logits(compiled, ids(), use_cache=False))


def test_export(model: Any) -> None:
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(
        model,
        (),
        {"input_ids": ids(), "use_cache": False},
        dynamic_shapes={"input_ids": {1: length}, "use_cache": None},
        strict=False,
    )
    longer = ids(2, 13)
    close(logits(model, longer), program.module()(input_ids=longer, use_cache=False).logits)


def test_lora(model: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    expected = logits(model, ids())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4))
    names = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert any(re.search(r"(q_proj|c_attn|qkv_proj)\.lora_A", name) for name in names)
    close(logits(adapted, ids()), expected)
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        adapted(input_ids=ids(), labels=ids()).loss.backward()
        optimizer.step()
    adapted.eval()
    changed = logits(adapted, ids())
    assert (changed - expected).abs().max() > 1e-3
    with adapted.disable_adapter():
        close(logits(adapted, ids()), expected)
    adapted.save_pretrained(tmp_path / "adapter")
    base = adapted.unload()
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    close(logits(again, ids()), changed)
    close(logits(again.merge_and_unload(), ids()), changed, 1e-4)


def test_trainer(model: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in ids(4)]
    before = copy.deepcopy(model.state_dict())
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[], use_cpu=True,
        learning_rate=1e-2, save_strategy="no", disable_tqdm=True, gradient_checkpointing=True,
    )  # fmt: skip
    done = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert done.training_loss > 0
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value.cpu(), before[name])]
    assert "lm_head.weight" in changed
    assert len(changed) > len(before) / 2
    # and it can be asked for an evaluation and predictions
    arguments.prediction_loss_only = False
    predictions = Trainer(model=model, args=arguments, eval_dataset=rows).predict(rows).predictions
    assert predictions.shape == (4, 9, SIZES["vocab_size"])


def test_parallel_plans(model: Any, variant: str) -> None:
    """Every entry of a plan names existing modules, and the pipeline parts are in running order."""
    config = model.config
    modules = dict(model.base_model.named_modules())
    for pattern, style in config.base_model_tp_plan.items():
        assert style in ("colwise", "rowwise")
        regex = re.escape(pattern).replace(r"\*", r"\d+")
        found = [m for name, m in modules.items() if re.fullmatch(regex, name)]
        assert found, pattern
        assert all(isinstance(m, torch.nn.Linear) for m in found), pattern
    if config.base_model_pp_plan is None:  # a layer needs more than the output of the one before it
        assert variant in VALUE_EMBEDDINGS
        return
    assert [name for name, _ in model.base_model.named_children() if name in config.base_model_pp_plan] == list(
        config.base_model_pp_plan
    )
    assert set(config.base_model_pp_plan) | {"dropout", "drop"} >= {
        name for name, _ in model.base_model.named_children()
    }


def test_copies(model: Any) -> None:
    assert torch.equal(logits(copy.deepcopy(model), ids()), logits(model, ids()))


# ---------------------------------------------------------------------------------------------------------------------
# Configurations


def rotary(code: dict[str, ModuleType]) -> Any:
    return code["minimind"].MiniMindConfig


def test_dialects_of_rope(code: dict[str, ModuleType]) -> None:
    """`rope_theta` and `rope_scaling`, or both in `rope_parameters`: the same configuration."""
    config_class = rotary(code)
    old = config_class(**SIZES, rope_theta=5e5, rope_scaling=YARN_DIALECT)
    new = config_class(**SIZES, rope_parameters={**YARN_DIALECT, "rope_theta": 5e5})
    both = config_class(
        **SIZES, rope_theta=5e5, rope_scaling=YARN_DIALECT, rope_parameters={**YARN_DIALECT, "rope_theta": 5e5}
    )
    assert old.to_dict() == new.to_dict() == both.to_dict()
    assert old.rope_parameters == {**YARN_DIALECT, "rope_theta": 5e5}
    plain = config_class(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert plain.to_dict() == config_class(**SIZES, rope_theta=5e5).to_dict()


UNSUPPORTED = {
    "rope_type must be one of default, linear, dynamic, yarn, not 'llama3'": {"rope_type": "llama3", "factor": 2.0},
    "missing parameters of rope_type 'linear': factor": {"rope_type": "linear"},
    "missing parameters of rope_type 'yarn': factor": {"rope_type": "yarn", "beta_fast": 32.0},
    "unsupported parameters of rope_type 'yarn': mscale": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7},
    "unsupported parameters of rope_type 'default': partial_rotary_factor": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_unsupported_rope_is_rejected_wherever_it_is_set(
    code: dict[str, ModuleType], message: str, tmp_path: Path
) -> None:
    """In the constructor, by `from_pretrained`, as an attribute, and in the dict of a config that exists."""
    config_class, model_class = rotary(code), code["minimind"].MiniMindForCausalLM
    rope = UNSUPPORTED[message]
    config = config_class(**SIZES)
    config.save_pretrained(tmp_path)
    for keyword in ("rope_scaling", "rope_parameters"):
        with pytest.raises(ValueError, match=message):
            config_class(**SIZES, **{keyword: rope})
        with pytest.raises(ValueError, match=message):
            setattr(config, keyword, rope)
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path, rope_parameters=rope)
    model_class(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        model_class.from_pretrained(tmp_path, rope_parameters=rope)
    config.rope_parameters.update(rope)
    with pytest.raises(ValueError, match=message):
        model_class(config)


def test_rope_set_later_is_complete(code: dict[str, ModuleType], tmp_path: Path) -> None:
    """Theta is kept, and YaRN gets the defaults of its paper."""
    config = rotary(code)(**SIZES, rope_theta=5e5)
    config.save_pretrained(tmp_path)
    loaded = rotary(code).from_pretrained(tmp_path, rope_parameters={"rope_type": "yarn", "factor": 4.0})
    attention_factor = pytest.approx(0.1 * math.log(4.0) + 1)
    expected = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": attention_factor, "factor": 4.0}
    assert loaded.rope_parameters == expected | {"rope_type": "yarn", "rope_theta": 5e5}
    config.rope_theta = 1e4
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_frequencies_are_those_of_transformers(code: dict[str, ModuleType], kind: str) -> None:
    """As a standard model of the same sizes has them, within and beyond the trained context."""
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    sizes = {**SIZES, "head_dim": 64, "max_position_embeddings": 64}
    rope = {"rope_type": kind, "factor": 4.0}
    config = rotary(code)(**sizes, rope_theta=1e4, rope_scaling=rope)
    longest = {"original_max_position_embeddings": 64} if kind == "yarn" else {}
    standard = Qwen3RotaryEmbedding(Qwen3Config(**sizes, rope_theta=1e4, rope_scaling=rope | longest))
    for length in (16, 96):
        positions = torch.arange(length)[None]
        cos, sin = code["minimind"].rotary_embedding(config, positions)
        expected = standard(torch.zeros(1), positions)
        close(cos[:, 0], expected[0])
        close(sin[:, 0], expected[1])


def test_scaling_needs_a_longer_context(code: dict[str, ModuleType]) -> None:
    """YaRN applies only where the context is longer than the trained one, and leaves the fastest channels unchanged."""
    module = code["minimind"]
    found = {}
    for longest in (32, 128):
        config = rotary(code)(
            **{**SIZES, "max_position_embeddings": longest, "head_dim": 64}, rope_scaling=YARN_DIALECT
        )
        found[longest], _ = module.rotary_frequencies(config, torch.arange(4)[None])
    assert torch.equal(found[32], 1 / 1e6 ** (torch.arange(0, 64, 2) / 64))
    close(found[128][-1], found[32][-1] / 4)
    assert found[128][0] == found[32][0]


def test_computed_defaults(code: dict[str, ModuleType]) -> None:
    config = rotary(code)(hidden_size=512)
    assert (config.head_dim, config.intermediate_size, config.moe_intermediate_size) == (64, 1664, 1664)
    assert rotary(code)(hidden_size=512, intermediate_size=100).moe_intermediate_size == 100
    assert rotary(code)(inference_rope_scaling=True).rope_parameters["factor"] == 16.0


def test_this_release(code: dict[str, ModuleType]) -> None:
    """The rendered code detects how this release names the cache."""
    import inspect

    from transformers.modeling_outputs import BaseModelOutputWithPast

    assert code["minimind"].CACHE in inspect.signature(BaseModelOutputWithPast).parameters
    assert tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 57)
