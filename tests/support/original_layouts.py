"""Checkpoints of vision, audio and protein models in the layouts of their original repositories, as names and shapes.

Each `Layout` states a target class, a small config and how the original calls each of the target's tensors. The names
follow the original repositories and the conversion scripts of Transformers (`convert_*.py` of each model).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.draft.config_fields import TargetClass
from compiler.program.inverse import TensorShape

Shape = tuple[int, ...]
Part = tuple[str, int, int]  # the rows of a source tensor from one to another
QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Layout:
    """`renames`: patterns of target names and what the original writes instead, applied in this order; a name that ends in
    `@n/m` is part n of m that are stored one after another in the rows of one tensor. `more`: tensors that no target has."""

    target: str
    config: Mapping[str, Any]
    renames: tuple[tuple[str, str], ...]
    more: Mapping[str, Shape] = field(default_factory=dict)

    def original(self, name: str) -> str:
        """The original's name of a target tensor."""
        for pattern, text in self.renames:
            name = re.sub(pattern, text, name)
        return re.sub(r"<(\d+)>", lambda found: str(int(found[1]) + 1), name)  # numbers that count from 1

    def checkpoint(self) -> tuple[dict[str, TensorShape], dict[str, Part]]:
        """The tensors of the original, and for each target the rows that become it."""
        shapes: dict[str, Shape] = {}
        truth: dict[str, Part] = {}
        for target, shape in TargetClass(self.target).signature(self.config).shapes.items():
            if "*" in target:  # not a name: one release of Transformers writes it so
                continue
            name, _, place = self.original(target).partition("@")
            number, count = map(int, place.split("/")) if place else (0, 1)
            high = shape[0] if shape else 1
            truth[target] = (name, number * high, (number + 1) * high)
            shapes[name] = (count * high, *shape[1:]) if shape else ()
        return {n: TensorShape(tuple(s), "float32") for n, s in (shapes | dict(self.more)).items()}, truth


LAYOUTS = {
    # github.com/facebookresearch/segment-anything
    "segment_anything": Layout(
        "SamModel",
        {
            "vision_config": {"hidden_size": 24, "mlp_dim": 96, "num_hidden_layers": 4, "num_attention_heads": 3,
                              "global_attn_indexes": [1, 3], "image_size": 64, "patch_size": 8, "window_size": 3,
                              "output_channels": 16, "num_pos_feats": 8},
            "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
            "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                                    "iou_head_depth": 3, "iou_head_hidden_dim": 12},
        },
        (
            (r"(iou_prediction_head|mlps\.\d)\.layers\.0", r"\1.layers.1"),
            (r"(iou_prediction_head|mlps\.\d)\.proj_in", r"\1.layers.0"),
            (r"(iou_prediction_head|mlps\.\d)\.proj_out", r"\1.layers.2"),
            (r"upscale_conv1", "output_upscaling.0"),
            (r"upscale_layer_norm", "output_upscaling.1"),
            (r"upscale_conv2", "output_upscaling.3"),
            (r"mask_embed\.conv1", "mask_downscaling.0"),
            (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
            (r"mask_embed\.conv2", "mask_downscaling.3"),
            (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
            (r"mask_embed\.conv3", "mask_downscaling.6"),
            (r"\.point_embed\.", ".point_embeddings."),
            (r"^shared_image_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
            (r"^vision_encoder", "image_encoder"),
            (r"neck\.conv1", "neck.0"),
            (r"neck\.layer_norm1", "neck.1"),
            (r"neck\.conv2", "neck.2"),
            (r"neck\.layer_norm2", "neck.3"),
            (r"patch_embed\.projection", "patch_embed.proj"),
            (r"\.layer_norm_final", ".norm_final"),
            (r"\.layer_norm", ".norm"),
            (r"image_encoder\.layers", "image_encoder.blocks"),
        ),
    ),
    # github.com/NVlabs/SegFormer
    "segformer": Layout(
        "SegformerForSemanticSegmentation",
        {"depths": [2, 3, 2, 2], "hidden_sizes": [4, 8, 12, 16], "decoder_hidden_size": 10, "num_labels": 5,
         "num_attention_heads": [1, 2, 3, 4]},
        (SEGFORMER := (
            (r"attention\.self\.query", "attn.q"),
            (r"attention\.self\.key", "attn.kv@0/2"),
            (r"attention\.self\.value", "attn.kv@1/2"),
            (r"(kv)(@\d/2)(\.\w+)$", r"\1\3\2"),
            (r"attention\.output\.dense", "attn.proj"),
            (r"attention\.self", "attn"),
            (r"layer_norm_?", "norm"),
            (r"dense([12])", r"fc\1"),
            (r"(patch_embeddings|block|linear_c)\.(\d)", r"\1<\2>"),
            (r"patch_embeddings", "patch_embed"),
            (r"encoder\.norm\.(\d)", r"encoder.norm<\1>"),
            (r"classifier", "linear_pred"),
            (r"linear_fuse", "linear_fuse.conv"),
            (r"batch_norm", "linear_fuse.bn"),
            (r"segformer\.encoder", "backbone"),
        )),
        {"decode_head.conv_seg.weight": (5, 10, 1, 1), "decode_head.conv_seg.bias": (5,)},
    ),
    "segformer_classifier": Layout(
        "SegformerForImageClassification",
        {"depths": [2, 3, 2, 2], "hidden_sizes": [4, 8, 12, 16], "num_labels": 5, "num_attention_heads": [1, 2, 3, 4]},
        ((r"^classifier", "head"), *SEGFORMER, (r"^backbone\.", "")),
    ),
    # github.com/facebookresearch/encodec
    "encodec": Layout(
        "EncodecModel",
        {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "num_lstm_layers": 1},
        (
            (r"\.layers\.(\d+)\.codebook", r".vq.layers.\1._codebook"),
            (r"coder\.layers", "coder.model"),
            (r"(decoder\.model\.(?:3|6|9|12))\.conv", r"\1.convtr.convtr"),
            (r"(?<!convtr)\.conv\.", ".conv.conv."),
            (r"parametrizations\.weight\.original0", "weight_g"),
            (r"parametrizations\.weight\.original1", "weight_v"),
        ),
    ),
    # github.com/facebookresearch/dinov2
    "dinov2": Layout(
        "Dinov2Model",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 3, "image_size": 28, "patch_size": 7},
        (
            *((rf"attention\.attention\.{name}\.(\w+)", rf"attn.qkv.\1@{n}/3") for n, name in enumerate(QKV)),
            (r"attention\.output\.dense", "attn.proj"),
            (r"encoder\.layer\.", "blocks."),
            (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"^embeddings\.", ""),
            (r"^layernorm", "norm"),
        ),
    ),
    # github.com/huggingface/pytorch-image-models
    "vit": Layout(
        "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 28,
         "patch_size": 7, "num_labels": 5},
        (
            *((rf"attention\.attention\.{name}\.(\w+)", rf"attn.qkv.\1@{n}/3") for n, name in enumerate(QKV)),
            (r"attention\.output\.dense", "attn.proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"vit\.encoder\.layer\.", "blocks."),
            (r"vit\.embeddings\.position_embeddings", "pos_embed"),
            (r"vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"vit\.embeddings\.", ""),
            (r"vit\.layernorm", "norm"),
            (r"^classifier", "head"),
        ),
    ),
    # github.com/facebookresearch/fairseq, examples/hubert
    "hubert": Layout(
        "HubertModel",
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "conv_dim": [6, 6, 10],
         "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        (
            (r"feature_projection\.projection", "post_extract_proj"),
            (r"feature_projection\.layer_norm", "layer_norm"),
            (r"masked_spec_embed", "mask_emb"),
            (r"pos_conv_embed\.conv", "pos_conv.0"),
            (r"parametrizations\.weight\.original0", "weight_g"),
            (r"parametrizations\.weight\.original1", "weight_v"),
            (r"\.attention\.", ".self_attn."),
            (r"(layers\.\d)\.layer_norm", r"\1.self_attn_layer_norm"),
            (r"feed_forward\.intermediate_dense", "fc1"),
            (r"feed_forward\.output_dense", "fc2"),
            (r"(conv_layers\.\d)\.conv", r"\1.0"),
            (r"(conv_layers\.\d)\.layer_norm", r"\1.2"),
        ),
        {"label_embs_concat": (7, 9), "final_proj.weight": (9, 24), "final_proj.bias": (9,)},
    ),
    # github.com/facebookresearch/esm
    "esm2": Layout(
        "EsmForMaskedLM",
        {"vocab_size": 33, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
         "position_embedding_type": "rotary", "token_dropout": True, "pad_token_id": 1, "mask_token_id": 32},
        (
            (r"LayerNorm\.gamma", "LayerNorm.weight"),
            (r"LayerNorm\.beta", "LayerNorm.bias"),
            (r"lm_head\.decoder\.weight", "lm_head.weight"),
            (r"esm\.embeddings\.word_embeddings", "embed_tokens"),
            (r"esm\.encoder\.emb_layer_norm_after", "emb_layer_norm_after"),
            (r"esm\.encoder\.layer\.", "layers."),
            (r"esm\.contact_head", "contact_head"),
            (r"attention\.self\.query", "self_attn.q_proj"),
            (r"attention\.self\.key", "self_attn.k_proj"),
            (r"attention\.self\.value", "self_attn.v_proj"),
            (r"attention\.self\.rotary_embeddings", "self_attn.rot_emb"),
            (r"attention\.output\.dense", "self_attn.out_proj"),
            (r"attention\.LayerNorm", "self_attn_layer_norm"),
            (r"intermediate\.dense", "fc1"),
            (r"output\.dense", "fc2"),
            (r"(\d)\.LayerNorm", r"\1.final_layer_norm"),
        ),
    ),
    # github.com/state-spaces/mamba
    "mamba": Layout(
        "MambaForCausalLM",
        {"vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 6, "time_step_rank": 3, "conv_kernel": 4,
         "intermediate_size": 48, "tie_word_embeddings": False},
        ((r"backbone\.embeddings", "backbone.embedding"),),
    ),
}  # fmt: skip
