"""Record OpenCLIP's SigLIP as SiglipModel.

A small model of OpenCLIP's own code, whose vision model is timm's, with seeded weights; the target was made by hand, the
logits are OpenCLIP's: of two images and three texts.

Usage: python run_open_clip.py OUT [--seed N]; writes OUT/open_clip/siglip.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import recording
import torch
from safetensors.torch import save_file

recording.import_torchvision()
T = r"(weight|bias)"
TEXT, VISION = r"text_model.encoder.layers.\1.", r"vision_model.encoder.layers.\1."
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
BLOCK, TRUNK = r"text\.transformer\.resblocks\.(\d+)\.", r"visual\.trunk\.blocks\.(\d+)\."
NAMES: dict[str, str | tuple[str, ...]] = {
    r"logit_(scale|bias)": r"logit_\1",
    r"text\.token_embedding\.weight": "text_model.embeddings.token_embedding.weight",
    r"text\.positional_embedding": "text_model.embeddings.position_embedding.weight",
    rf"text\.ln_final\.{T}": r"text_model.final_layer_norm.\1",
    rf"text\.text_projection\.{T}": r"text_model.head.\1",
    rf"{BLOCK}ln_([12])\.{T}": rf"{TEXT}layer_norm\2.\3",
    rf"{BLOCK}attn\.in_proj_{T}": tuple(rf"{TEXT}{part}.\2" for part in QKV),
    rf"{BLOCK}attn\.out_proj\.{T}": rf"{TEXT}self_attn.out_proj.\2",
    rf"{BLOCK}mlp\.c_fc\.{T}": rf"{TEXT}mlp.fc1.\2",
    rf"{BLOCK}mlp\.c_proj\.{T}": rf"{TEXT}mlp.fc2.\2",
    rf"visual\.trunk\.patch_embed\.proj\.{T}": r"vision_model.embeddings.patch_embedding.\1",
    r"visual\.trunk\.pos_embed": "vision_model.embeddings.position_embedding.weight",
    rf"visual\.trunk\.norm\.{T}": r"vision_model.post_layernorm.\1",
    rf"{TRUNK}norm([12])\.{T}": rf"{VISION}layer_norm\2.\3",
    rf"{TRUNK}attn\.qkv\.{T}": tuple(rf"{VISION}{part}.\2" for part in QKV),
    rf"{TRUNK}attn\.proj\.{T}": rf"{VISION}self_attn.out_proj.\2",
    rf"{TRUNK}mlp\.fc([12])\.{T}": rf"{VISION}mlp.fc\2.\3",
    r"visual\.trunk\.attn_pool\.latent": "vision_model.head.probe",
    rf"visual\.trunk\.attn_pool\.(q|kv)\.{T}": r"\1 of \2",
    rf"visual\.trunk\.attn_pool\.proj\.{T}": r"vision_model.head.attention.out_proj.\1",
    rf"visual\.trunk\.attn_pool\.norm\.{T}": r"vision_model.head.layernorm.\1",
    rf"visual\.trunk\.attn_pool\.mlp\.fc([12])\.{T}": r"vision_model.head.mlp.fc\1.\2",
}


def main() -> None:
    import timm.models.vision_transformer as trunk
    from open_clip.model import CustomTextCLIP
    from timm.models import register_model

    options = recording.arguments(__doc__ or "")

    def vit_recorded_siglip(pretrained: bool = False, **given: Any) -> Any:
        given.pop("cache_dir", None)
        sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "class_token": False,
                 "global_pool": "map", "img_size": 16}  # fmt: skip
        names = ("img_size", "num_classes", "global_pool")
        return trunk.VisionTransformer(**{**sizes, **{n: v for n, v in given.items() if n in names}})

    vit_recorded_siglip.__module__ = trunk.__name__
    register_model(vit_recorded_siglip)
    vision = {"image_size": 16, "timm_model_name": "vit_recorded_siglip", "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": 10, "vocab_size": recording.VOCABULARY, "width": 24, "heads": 3, "layers": 2,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"}}  # fmt: skip
    model = CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, init_logit_bias=-10)
    recording.seed_weights(model, options.seed)
    state = recording.halves(model.state_dict())
    images = recording.images(2, 3, 16, options.seed)
    input_ids = torch.randint(recording.VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(options.seed))
    with torch.no_grad():
        logits, _ = model.get_logits(images, input_ids)
    target = recording.renamed(state, NAMES)
    for part in ("weight", "bias"):
        pooled = [target.pop(f"{name} of {part}") for name in ("q", "kv")]
        target[f"vision_model.head.attention.in_proj_{part}"] = torch.cat(pooled)
    target["vision_model.embeddings.position_embedding.weight"] = target[
        "vision_model.embeddings.position_embedding.weight"
    ][0]
    target |= {name: target[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    recording.record(
        options.out / "open_clip" / "siglip",
        {"spec": "open_clip_siglip", "weights": "open_clip_model.safetensors", "tolerance": 2e-5, "model_class": "AutoModel",
         "set": {"text_heads": 3, "vision_heads": 4, "text_act": "gelu_pytorch_tanh", "vision_act": "gelu"}},
        save=lambda place: save_file(state, place / "open_clip_model.safetensors"),
        target=target,
        model_class="SiglipModel",
        config={
            "text_config": {"vocab_size": recording.VOCABULARY, "hidden_size": 24, "intermediate_size": 96,
                            "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 10,
                            "projection_size": 32, "hidden_act": "gelu_pytorch_tanh"},
            "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "image_size": 16, "patch_size": 8, "hidden_act": "gelu"},
        },
        input_ids={"pixel_values": images, "input_ids": input_ids},
        logits=logits,
        notes={"original": f"open-clip-torch {version('open-clip-torch')}"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
