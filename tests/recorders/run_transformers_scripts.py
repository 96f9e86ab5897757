"""Records what the conversion scripts of transformers 4.46.3 make of small checkpoints; later releases ship none of them.

Run in an environment of its own, in which `make test-oracles` installs transformers 4.46.3 and what its scripts import:
`python run_transformers_scripts.py OUT`.
The source of each case is written in the original layout: under the original's names, with weights of its own in every
tensor. The target is what the script and `save_pretrained` make of it; the logits are those of the loaded class in
float32, those of Whisper, ViT and CLIP the original package's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from recording import import_torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VOCABULARY, LENGTH, KEPT = 128, 24, 12


class Seeded:
    """Tensors of its own for every name: norms near 1, biases that count, all exact in float16."""

    base = 0  # what the command line says

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(1000 * self.base + seed)

    def __call__(self, *shape: int, around: float = 0.0) -> Tensor:
        spread = 0.3 if len(shape) == 1 else 1.2 * shape[-1] ** -0.5
        return (around + spread * torch.randn(shape, generator=self.random)).half()


def linear(seeded: Seeded, name: str, out: int, into: int) -> dict[str, Tensor]:
    return {f"{name}.weight": seeded(out, into), f"{name}.bias": seeded(out)}


def norm(seeded: Seeded, name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": seeded(width, around=1.0), f"{name}.bias": seeded(width)}


def keep(
    out: Path,
    family: str,
    name: str,
    case: Mapping[str, Any],
    source: Callable[[Path], None],
    model: nn.Module,
    golden: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one case. `source` fills its folder; `model` is the class with what the script made; `golden` are the
    inputs and the logits of the original's own model, where it runs."""
    folder = out / family / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "source").mkdir(parents=True)
    (folder / "expected").mkdir()
    source(folder / "source")
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place, safe_serialization=True)
        shutil.copy(Path(place) / "config.json", folder / "expected/config.json")
        written = load_file(Path(place) / "model.safetensors")
    manifest = {
        key: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        for key, tensor in sorted(written.items())
    }
    text(folder / "expected/manifest.json", manifest)
    if golden:
        save_file({n: t.contiguous() for n, t in golden.items()}, folder / "expected/golden_logits.safetensors")
    else:
        ids = torch.randint(VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = model.float().eval()(input_ids=ids).logits[:, -KEPT:].contiguous()
        save_file({"input_ids": ids, "logits_fp32": logits}, folder / "expected/golden_logits.safetensors")
    text(folder / "case.json", {"tolerance": 2e-5, **case})
    print(f"{family}/{name}: {len(manifest)} tensors")


def text(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def nested(flat: Mapping[str, Tensor], depth: int) -> dict[str, Any]:
    """A state_dict whose first `depth` words are dicts in dicts, as Megatron saves it."""
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        *words, last = name.split(".", depth)
        place = tree
        for word in words:
            place = place.setdefault(word, {})
        place[last] = tensor
    return tree


# ---------------------------------------------------------------------------------------------------------------------


def megatron_gpt2(out: Path) -> None:
    from transformers.models.megatron_gpt2.convert_megatron_gpt2_checkpoint import convert_megatron_checkpoint

    width, heads, positions = 32, 4, 32
    for version, stack, attention in ((0.0, "transformer", "attention"), (1.0, "transformer", "attention"),
                                      (3.0, "encoder", "self_attention")):  # fmt: skip
        seeded = Seeded(int(version))
        layers: dict[str, Tensor] = {}
        for i in range(2):
            at = f"layers.{i}."
            layers |= norm(seeded, at + "input_layernorm", width)
            layers |= linear(seeded, at + attention + ".query_key_value", 3 * width, width)
            layers |= linear(seeded, at + attention + ".dense", width, width)
            layers |= norm(seeded, at + "post_attention_layernorm", width)
            layers |= linear(seeded, at + "mlp.dense_h_to_4h", 4 * width, width)
            layers |= linear(seeded, at + "mlp.dense_4h_to_h", width, 4 * width)
        layers |= norm(seeded, "final_layernorm", width)
        embedding = {
            "word_embeddings": {"weight": seeded(VOCABULARY, width)},
            "position_embeddings": {"weight": seeded(positions, width)},
        }
        checkpoint: dict[str, Any] = {
            "model": {"language_model": {"embedding": embedding, stack: layers}},
            "iteration": 7,
        }
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=positions, n_embd=width, n_layer=2, n_head=heads, n_inner=4 * width,
            activation_function="gelu", bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        if version:
            checkpoint["checkpoint_version"] = version
        if version >= 3:
            checkpoint["args"] = argparse.Namespace(
                num_layers=2, hidden_size=width, num_attention_heads=heads, ffn_hidden_size=4 * width,
                max_position_embeddings=positions, padded_vocab_size=VOCABULARY, tokenizer_type="GPT2BPETokenizer",
                bias_gelu_fusion=False, openai_gelu=False,
            )  # fmt: skip
        made = convert_megatron_checkpoint(None, checkpoint, config)
        model = transformers.GPT2LMHeadModel(config).half()
        made = {n: t for n, t in made.items() if not n.endswith((".attn.bias", ".attn.masked_bias"))}
        model.load_state_dict({n: t.contiguous() for n, t in made.items()}, strict=True)
        given = {"bos_token_id": 1, "eos_token_id": 2} | (
            {} if version >= 3 else {"num_attention_heads": heads, "bias_gelu_fusion": False}
        )
        given |= {"checkpoint_version": version} | ({"modern": False} if stack == "transformer" else {})
        case = {"spec": "megatron_gpt2", "set": given, "weights": "model_optim_rng.pt"}
        keep(out, "megatron_gpt2", f"version_{int(version)}", case,
             lambda place, c=checkpoint: torch.save(c, place / "model_optim_rng.pt"), model)  # fmt: skip


def opt(out: Path) -> None:
    from transformers.models.opt.convert_opt_original_pytorch_checkpoint_to_pytorch import load_checkpoint

    width, heads = 32, 4
    for name, words in (("pre_norm", width), ("projected_post_norm", 16)):
        seeded, before = Seeded(len(name)), name == "pre_norm"
        state = {"decoder.version": torch.tensor([3.0])}
        state["decoder.embed_tokens.weight"] = seeded(VOCABULARY, words)
        state["decoder.embed_positions.weight"] = seeded(34, width)
        if words != width:
            state["decoder.project_in_dim.weight"] = seeded(width, words)
            state["decoder.project_out_dim.weight"] = seeded(words, width)
        for i in range(2):
            at = f"decoder.layers.{i}."
            state |= linear(seeded, at + "self_attn.qkv_proj", 3 * width, width)
            state |= linear(seeded, at + "self_attn.out_proj", width, width)
            state |= norm(seeded, at + "self_attn_layer_norm", width)
            state |= linear(seeded, at + "fc1", 48, width) | linear(seeded, at + "fc2", width, 48)
            state |= norm(seeded, at + "final_layer_norm", width)
        if before:
            state |= norm(seeded, "decoder.layer_norm", width)
        state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
        config = transformers.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=2, ffn_dim=48, max_position_embeddings=32,
            num_attention_heads=heads, word_embed_proj_dim=words, do_layer_norm_before=before,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as place:
            torch.save({"model": state}, Path(place) / "model.pt")
            made = load_checkpoint(Path(place) / "model.pt")
        model = transformers.OPTForCausalLM(config).half()
        model.model.load_state_dict(made, strict=True)
        given = {"decoder_attention_heads": heads, "decoder_normalize_before": before}
        case = {"spec": "opt_opt", "set": given, "weights": "restored.pt"}
        keep(out, "opt", name, case, lambda place, s=state: torch.save({"model": s}, place / "restored.pt"), model)


def rwkv(out: Path) -> None:
    from transformers.models.rwkv.convert_rwkv_checkpoint_to_hf import convert_state_dict

    seeded, width = Seeded(5), 32
    state = {"emb.weight": seeded(VOCABULARY, width)}
    for i in range(2):
        at = f"blocks.{i}."
        if i == 0:
            state |= norm(seeded, at + "ln0", width)
        state |= norm(seeded, at + "ln1", width) | norm(seeded, at + "ln2", width)
        state |= {at + "att.time_decay": seeded(width), at + "att.time_first": seeded(width)}
        for mix in ("att.time_mix_k", "att.time_mix_v", "att.time_mix_r", "ffn.time_mix_k", "ffn.time_mix_r"):
            state[at + mix] = seeded(1, 1, width).abs()
        for gate in ("att.key", "att.value", "att.receptance", "att.output", "ffn.receptance"):
            state[f"{at}{gate}.weight"] = seeded(width, width)
        state |= {at + "ffn.key.weight": seeded(4 * width, width), at + "ffn.value.weight": seeded(width, 4 * width)}
    state |= norm(seeded, "ln_out", width) | {"head.weight": seeded(VOCABULARY, width)}
    config = transformers.RwkvConfig(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=2)
    model = transformers.RwkvForCausalLM(config).half()
    model.load_state_dict(convert_state_dict(dict(state)), strict=True)
    keep(out, "rwkv4", "two_blocks", {"spec": "rwkv4_rwkv", "weights": "rwkv.pth"},
         lambda place: torch.save(state, place / "rwkv.pth"), model)  # fmt: skip


def persimmon(out: Path) -> None:
    from transformers.models.persimmon.convert_persimmon_weights_to_hf import rename_state_dict

    seeded, width, heads = Seeded(6), 64, 4
    state = {"language_model.embedding.word_embeddings.weight": seeded(VOCABULARY, width)}
    for i in range(2):
        at = f"language_model.encoder.layers.{i}."
        state |= norm(seeded, at + "input_layernorm", width) | norm(seeded, at + "post_attention_layernorm", width)
        state |= linear(seeded, at + "self_attention.query_key_value", 3 * width, width)
        state |= linear(seeded, at + "self_attention.dense", width, width)
        state |= norm(seeded, at + "self_attention.q_layernorm", width // heads)
        state |= norm(seeded, at + "self_attention.k_layernorm", width // heads)
        state |= linear(seeded, at + "mlp.dense_h_to_4h", 96, width)
        state |= linear(seeded, at + "mlp.dense_4h_to_h", width, 96)
        state[at + "self_attention.rotary_emb.inv_freq"] = torch.ones(4)
    state |= norm(seeded, "language_model.encoder.final_layernorm", width)
    state["word_embeddings_for_head.weight"] = seeded(VOCABULARY, width)
    config = transformers.PersimmonConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=96, num_hidden_layers=2, num_attention_heads=heads,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.PersimmonForCausalLM(config).half()
    model.load_state_dict(rename_state_dict(state), strict=True)
    given = {"num_attention_heads": heads, "bos_token_id": 1, "eos_token_id": 2}
    keep(out, "persimmon", "two_layers",
         {"spec": "persimmon_persimmon", "set": given, "weights": "model_optim_rng.pt", "tolerance": 1e-4},
         lambda place: torch.save({"model": nested(state, 2)}, place / "model_optim_rng.pt"), model)  # fmt: skip


def mistral(out: Path) -> None:
    from transformers.models.mistral.convert_mistral_weights_to_hf import write_model

    seeded, width, heads, groups, inner = Seeded(7), 32, 4, 2, 48
    state = {"tok_embeddings.weight": seeded(VOCABULARY, width)}
    for i in range(2):
        at = f"layers.{i}."
        key = groups * width // heads
        for part, rows in (("wq", width), ("wk", key), ("wv", key), ("wo", width)):
            state[f"{at}attention.{part}.weight"] = seeded(rows, width)
        state[at + "feed_forward.w1.weight"], state[at + "feed_forward.w3.weight"] = (
            seeded(inner, width),
            seeded(inner, width),
        )
        state[at + "feed_forward.w2.weight"] = seeded(width, inner)
        state[at + "attention_norm.weight"] = seeded(width, around=1.0)
        state[at + "ffn_norm.weight"] = seeded(width, around=1.0)
    state |= {"norm.weight": seeded(width, around=1.0), "output.weight": seeded(VOCABULARY, width)}
    state = {name: tensor.bfloat16() for name, tensor in state.items()}  # the script writes nothing else
    params = {"dim": width, "n_layers": 2, "head_dim": width // heads, "hidden_dim": inner, "n_heads": heads,
              "n_kv_heads": groups, "norm_eps": 1e-5, "vocab_size": VOCABULARY, "sliding_window": "4096"}  # fmt: skip

    def source(place: Path) -> None:
        torch.save(state, place / "consolidated.00.pth")
        text(place / "params.json", params)

    with tempfile.TemporaryDirectory() as place:
        source(Path(place))
        # The script asks the tokenizer for the size of the vocabulary, or takes that of the 7B model.
        import transformers.models.mistral.convert_mistral_weights_to_hf as script

        class Tokenizer:
            vocab_size = VOCABULARY

            def __init__(self, path: str) -> None: ...
            def save_pretrained(self, path: str) -> None: ...

        script.tokenizer_class = Tokenizer
        write_model(str(Path(place) / "out"), place, "7B", tokenizer_path="none")
        model = transformers.MistralForCausalLM.from_pretrained(Path(place) / "out", torch_dtype=torch.bfloat16)
    keep(
        out,
        "mistral",
        "consolidated",
        {"spec": "mistral_mistral", "set": {"rope_theta": 10000.0}, "weights": "."},
        source,
        model,
    )


def whisper(out: Path) -> None:
    from transformers.models.whisper.convert_openai_to_hf import rename_keys
    from whisper.model import ModelDimensions, Whisper

    seeded, width = Seeded(8), 32
    dims = {"n_mels": 8, "n_audio_ctx": 12, "n_audio_state": width, "n_audio_head": 4, "n_audio_layer": 2,
            "n_vocab": VOCABULARY, "n_text_ctx": 10, "n_text_state": width, "n_text_head": 4, "n_text_layer": 3}  # fmt: skip
    state = {"encoder.positional_embedding": seeded(12, width), "decoder.positional_embedding": seeded(10, width)}
    state |= {"encoder.conv1.weight": seeded(width, 8, 3), "encoder.conv1.bias": seeded(width)}
    state |= {"encoder.conv2.weight": seeded(width, width, 3), "encoder.conv2.bias": seeded(width)}
    state["decoder.token_embedding.weight"] = seeded(VOCABULARY, width)

    def attention(at: str) -> Iterator[tuple[str, Tensor]]:
        for part in ("query", "key", "value", "out"):
            yield f"{at}.{part}.weight", seeded(width, width)
            if part != "key":
                yield f"{at}.{part}.bias", seeded(width)

    for side, depth in (("encoder", 2), ("decoder", 3)):
        for i in range(depth):
            at = f"{side}.blocks.{i}."
            for kind in ("attn", "cross_attn")[: 1 + (side == "decoder")]:
                state |= dict(attention(at + kind)) | norm(seeded, f"{at}{kind}_ln", width)
            state |= linear(seeded, at + "mlp.0", 4 * width, width) | linear(seeded, at + "mlp.2", width, 4 * width)
            state |= norm(seeded, at + "mlp_ln", width)
    state |= norm(seeded, "encoder.ln_post", width) | norm(seeded, "decoder.ln", width)
    end = 50
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=8, d_model=width, encoder_layers=2, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        max_source_positions=12, max_target_positions=10, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=end + 1,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).half()
    model.model.load_state_dict(rename_keys(dict(state)), strict=True)
    theirs = Whisper(ModelDimensions(**dims)).eval()
    theirs.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    random = torch.Generator().manual_seed(1)
    heard, said = torch.randn(1, 8, 24, generator=random), torch.randint(VOCABULARY, (1, 10), generator=random)
    with torch.no_grad():
        golden = {"input_features": heard, "decoder_input_ids": said, "logits_fp32": theirs(heard, said)}
    case = {"spec": "whisper_whisper", "set": {"eos_token_id": end}, "weights": "tiny.pt",
            "model_class": "AutoModelForSpeechSeq2Seq"}  # fmt: skip
    keep(out, "whisper", "tiny", case,
         lambda place: torch.save({"dims": dims, "model_state_dict": state}, place / "tiny.pt"), model, golden)  # fmt: skip


def vit(out: Path) -> None:
    import timm
    from transformers.models.vit.convert_vit_timm_to_pytorch import create_rename_keys, read_in_q_k_v

    seeded = Seeded(9)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=5
    )
    state = {name: seeded(*tensor.shape) for name, tensor in theirs.state_dict().items()}
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=8,
        num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    made = dict(state)
    for old, new in create_rename_keys(config):
        made[new] = made.pop(old)
    read_in_q_k_v(made, config)
    model = transformers.ViTForImageClassification(config).half()
    model.load_state_dict({name: tensor.contiguous() for name, tensor in made.items()}, strict=True)
    theirs.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    seen = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        golden = {"pixel_values": seen, "logits_fp32": theirs.eval()(seen)}
    case = {"spec": "timm_vit", "set": {"num_heads": 4}, "weights": "model.safetensors",
            "model_class": "AutoModelForImageClassification"}  # fmt: skip
    keep(out, "timm", "vit", case, lambda place: save_file(state, place / "model.safetensors"), model, golden)


def clip(out: Path) -> None:
    from clip.model import CLIP
    from transformers.models.clip import convert_clip_original_pytorch_to_hf as script

    seeded = Seeded(10)
    theirs = CLIP(
        embed_dim=16, image_resolution=16, vision_layers=2, vision_width=64, vision_patch_size=8, context_length=10,
        vocab_size=VOCABULARY, transformer_width=64, transformer_heads=1, transformer_layers=1,
    ).float()  # fmt: skip
    state = {name: seeded(*tensor.shape) if tensor.shape else tensor for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    shared = {"num_attention_heads": 1, "hidden_size": 64, "intermediate_size": 256, "projection_dim": 16}
    text_config = {"vocab_size": VOCABULARY, "max_position_embeddings": 10, "num_hidden_layers": 1, "eos_token_id": 2,
                   "bos_token_id": 0, **shared}  # fmt: skip
    vision_config = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 2, **shared}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(projection_dim=16, text_config=text_config, vision_config=vision_config)
    )
    script.copy_text_model_and_projection(model, theirs)
    script.copy_vison_model_and_projection(model, theirs)
    model.logit_scale = theirs.logit_scale
    theirs.load_state_dict({name: tensor.half().float() for name, tensor in state.items()})  # as they are stored
    random = torch.Generator().manual_seed(1)
    seen, said = (
        torch.randn(2, 3, 16, 16, generator=random),
        torch.randint(1, VOCABULARY - 1, (3, 10), generator=random),
    )
    said[:, 6] = VOCABULARY - 1  # the original takes the place of the largest id for the end of the text
    with torch.no_grad():
        golden = {"pixel_values": seen, "input_ids": said, "logits_fp32": theirs.eval()(seen, said)[0]}
    keep(out, "clip", "vit", {"spec": "clip_clip", "set": {"hidden_act": "quick_gelu"}, "weights": "clip.pt", "model_class": "AutoModel"},
         lambda place: torch.save({n: t.half() for n, t in state.items()}, place / "clip.pt"), model.half(), golden)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out, Seeded.base = options.out, options.seed
    torch.set_num_threads(1)
    import_torchvision()
    for record in (megatron_gpt2, opt, rwkv, persimmon, mistral, whisper, vit, clip):
        record(out)


if __name__ == "__main__":
    main()
