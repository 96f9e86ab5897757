"""What people do with a converted folder, done by the programs that they use: `make test-ecosystem`.

Not in the default run, since it installs more than mapspec needs. One MiniMind-3 of 533 thousand parameters is
converted with its tokenizer; each program gets that folder and nothing else. `docs/ecosystem.md` has the versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program

DATA = Path(__file__).parent.parent / "data"
CASE = DATA / "oracles" / "minimind" / "dense_trained"
MESSAGES = [{"role": "user", "content": "What is 1+1?"}]
TEXTS = ["def main():\n    return 1", "the cat sat on the mat", "import os\nprint(os.getcwd())", "hello, world"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ecosystem") / "model"
    config = CASE / "source" / "minimind_config_resolved.json"
    request = Request([CASE / "source" / "model.pth"], config=config, tokenizer=DATA / "tokenizer")
    convert(load_program("qwen3"), request, out)
    return out


def load(folder: Path, **words: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **words}).eval()


def tokens_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def batches(tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    found = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        found.append({"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0]), "labels": ids[0]})
    return found


def greedy(model: Any, prompt: torch.Tensor, count: int = 16) -> list[int]:
    with torch.no_grad():
        return model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False)[0].tolist()


def test_a_chat_by_pipeline(folder: Path) -> None:
    """The template is found, and generation stops at the token that ends a turn."""
    from transformers import pipeline

    speak = pipeline("text-generation", model=str(folder), device="cpu", dtype=torch.float32)
    said = speak(MESSAGES, max_new_tokens=32, do_sample=False)[0]["generated_text"]
    assert said[0] == MESSAGES[0]
    assert said[-1]["role"] == "assistant"
    tokenizer = tokens_of(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert speak.model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert prompt.input_ids[0, 0] == tokenizer.bos_token_id


def test_a_fine_tuning_by_peft(folder: Path, tmp_path: Path) -> None:
    """Five steps lower the loss; the adapter is saved, loaded and merged, with the same logits."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(load(folder), config).train()
    batch = {name: value[None] for name, value in batches(tokens_of(folder))[0].items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load(folder), tmp_path).eval()
    with torch.no_grad():
        wanted = model(batch["input_ids"]).logits
        assert torch.allclose(loaded(batch["input_ids"]).logits, wanted, atol=1e-5)
        assert torch.allclose(loaded.merge_and_unload()(batch["input_ids"]).logits, wanted, atol=1e-3)


def test_a_step_by_trainer(folder: Path, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=1, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=load(folder), args=arguments, train_dataset=batches(tokens_of(folder)))  # type: ignore[arg-type]
    result = trainer.train()
    assert result.global_step == 4
    assert 0 < result.training_loss < 20
    trainer.save_model(str(tmp_path / "saved"))
    assert load(tmp_path / "saved").config.model_type == "qwen3"


def test_a_step_by_trl(folder: Path, tmp_path: Path) -> None:
    """Supervised fine-tuning on conversations: the folder's template writes them, and what is saved loads again."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    talks = [[*MESSAGES, {"role": "assistant", "content": text}] for text in TEXTS]
    words = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": []}
    args = SFTConfig(str(tmp_path / "out"), learning_rate=1e-3, save_strategy="no", seed=0, max_length=64, **words)
    trainer = SFTTrainer(
        str(folder), args=args, train_dataset=Dataset.from_list([{"messages": talk} for talk in talks])
    )
    tokenizer = trainer.processing_class
    seen = tokenizer.decode(next(iter(trainer.get_train_dataloader()))["input_ids"][0])
    assert seen.startswith(tokenizer.bos_token)
    assert "What is 1+1?" in seen
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert 0 < trainer.train().training_loss < 20
    assert any(not before[name].equal(tensor) for name, tensor in trainer.model.state_dict().items())
    trainer.save_model(str(tmp_path / "trained"))
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        assert load(tmp_path / "trained")(ids).logits.allclose(trainer.model.float()(ids).logits, atol=1e-5)


def test_int8_by_torchao(folder: Path) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    ids = load_file(CASE / "expected" / "golden_logits.safetensors")["input_ids"]
    model = load(folder)
    with torch.no_grad():
        wanted = model(ids).logits
        before = type(model.model.layers[0].mlp.gate_proj.weight)
        quantize_(model, Int8WeightOnlyConfig())
        got = model(ids).logits
    assert type(model.model.layers[0].mlp.gate_proj.weight) is not before
    assert 0 < (got - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert (got.argmax(-1) == wanted.argmax(-1)).double().mean() > 0.9


def test_the_same_tokens_by_ctranslate2(folder: Path, tmp_path: Path) -> None:
    """Converted by its own converter, which goes by the names of the class and of config.json."""
    ctranslate2 = pytest.importorskip("ctranslate2")

    ctranslate2.converters.TransformersConverter(str(folder), load_as_float16=False).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    tokenizer, model = tokens_of(folder), load(folder)
    prompt = tokenizer("def main", return_tensors="pt").input_ids
    text = tokenizer.convert_ids_to_tokens(prompt[0].tolist())
    made = generator.generate_batch(
        [text], max_length=16, min_length=16, sampling_topk=1, include_prompt_in_result=False
    )
    assert made[0].sequences_ids[0] == greedy(model, prompt)[-16:]
    # A model this small repeats itself, which says little; the logits of a text say more.
    ids = load_file(CASE / "expected" / "golden_logits.safetensors")["input_ids"][:1]
    got = torch.tensor(numpy.array(generator.forward_batch([tokenizer.convert_ids_to_tokens(ids[0].tolist())])))
    with torch.no_grad():
        assert (got - model(ids).logits).abs().max() < 1e-3


def test_the_same_logits_by_gguf(folder: Path, tmp_path: Path) -> None:
    """Named by the `gguf` package's own table, written by its writer, and read by Transformers."""
    gguf = pytest.importorskip("gguf")

    model = load(folder)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in load_file(folder / "model.safetensors").items():
        known = names.get_name(name, try_suffixes=(".weight",))
        assert known is not None, name
        writer.add_tensor(known, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = load_file(CASE / "expected" / "golden_logits.safetensors")["input_ids"]
    with torch.no_grad():
        got = load(tmp_path, gguf_file="model.gguf", config=config, attn_implementation="eager")(ids).logits
        wanted = load(folder, attn_implementation="eager")(ids).logits
    assert (got - wanted).abs().max() < 1e-4
