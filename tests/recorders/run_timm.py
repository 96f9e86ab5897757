"""Record timm's image models as classes of Transformers.

Each is a small model of timm's own code with seeded weights; the names of the target were written by hand, and the logits
are timm's. Of DINOv2, which has no head, the last hidden state is recorded.

Usage: python run_timm.py OUT [--seed N]; writes OUT/timm/CASE for each case.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

recording.import_torchvision()
T = r"(weight|bias)"
NAMES: dict[str, dict[str, str | tuple[str, ...]]] = {
    "dinov2": {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "reg_token": "embeddings.register_tokens",
        rf"patch_embed\.proj\.{T}": r"embeddings.patch_embeddings.projection.\1",
        rf"norm\.{T}": r"layernorm.\1",
        rf"blocks\.(\d+)\.norm([12])\.{T}": r"encoder.layer.\1.norm\2.\3",
        r"blocks\.(\d+)\.ls([12])\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
        rf"blocks\.(\d+)\.attn\.proj\.{T}": r"encoder.layer.\1.attention.output.dense.\2",
        rf"blocks\.(\d+)\.attn\.qkv\.{T}": (
            r"encoder.layer.\1.attention.attention.query.\2",
            r"encoder.layer.\1.attention.attention.key.\2",
            r"encoder.layer.\1.attention.attention.value.\2",
        ),
        rf"blocks\.(\d+)\.mlp\.fc([12])\.{T}": r"encoder.layer.\1.mlp.fc\2.\3",
    },
    "convnext": {
        rf"stem\.0\.{T}": r"convnext.embeddings.patch_embeddings.\1",
        rf"stem\.1\.{T}": r"convnext.embeddings.layernorm.\1",
        rf"stages\.(\d)\.downsample\.([01])\.{T}": r"convnext.encoder.stages.\1.downsampling_layer.\2.\3",
        rf"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.{T}": r"convnext.encoder.stages.\1.layers.\2.dwconv.\3",
        rf"stages\.(\d)\.blocks\.(\d+)\.norm\.{T}": r"convnext.encoder.stages.\1.layers.\2.layernorm.\3",
        rf"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc([12])\.{T}": r"convnext.encoder.stages.\1.layers.\2.pwconv\3.\4",
        r"stages\.(\d)\.blocks\.(\d+)\.gamma": r"convnext.encoder.stages.\1.layers.\2.layer_scale_parameter",
        rf"head\.norm\.{T}": r"convnext.layernorm.\1",
        rf"head\.fc\.{T}": r"classifier.\1",
    },
    "swin": {
        rf"patch_embed\.proj\.{T}": r"swin.embeddings.patch_embeddings.projection.\1",
        rf"patch_embed\.norm\.{T}": r"swin.embeddings.norm.\1",
        rf"layers\.(\d)\.blocks\.(\d+)\.norm1\.{T}": r"swin.encoder.layers.\1.blocks.\2.layernorm_before.\3",
        rf"layers\.(\d)\.blocks\.(\d+)\.norm2\.{T}": r"swin.encoder.layers.\1.blocks.\2.layernorm_after.\3",
        r"layers\.(\d)\.blocks\.(\d+)\.attn\.(relative_position_bias_table)": r"swin.encoder.layers.\1.blocks.\2.attention.self.\3",
        rf"layers\.(\d)\.blocks\.(\d+)\.attn\.proj\.{T}": r"swin.encoder.layers.\1.blocks.\2.attention.output.dense.\3",
        rf"layers\.(\d)\.blocks\.(\d+)\.attn\.qkv\.{T}": (
            r"swin.encoder.layers.\1.blocks.\2.attention.self.query.\3",
            r"swin.encoder.layers.\1.blocks.\2.attention.self.key.\3",
            r"swin.encoder.layers.\1.blocks.\2.attention.self.value.\3",
        ),
        rf"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc1\.{T}": r"swin.encoder.layers.\1.blocks.\2.intermediate.dense.\3",
        rf"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc2\.{T}": r"swin.encoder.layers.\1.blocks.\2.output.dense.\3",
        **{rf"layers\.{n + 1}\.downsample\.(.*)": rf"swin.encoder.layers.{n}.downsample.\1" for n in range(3)},
        rf"norm\.{T}": r"swin.layernorm.\1",
        rf"head\.fc\.{T}": r"classifier.\1",
    },
    "resnet": {
        r"conv1\.weight": "resnet.embedder.embedder.convolution.weight",
        r"bn1\.(.*)": r"resnet.embedder.embedder.normalization.\1",
        **{
            pattern: new
            for stage in range(4)
            for pattern, new in {
                **{
                    rf"layer{stage + 1}\.(\d+)\.{ours}{n + 1}\.(.*)": rf"resnet.encoder.stages.{stage}.layers.\1.layer.{n}.{theirs}.\2"
                    for n in range(3)
                    for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))
                },
                rf"layer{stage + 1}\.0\.downsample\.0\.(.*)": rf"resnet.encoder.stages.{stage}.layers.0.shortcut.convolution.\1",
                rf"layer{stage + 1}\.0\.downsample\.1\.(.*)": rf"resnet.encoder.stages.{stage}.layers.0.shortcut.normalization.\1",
            }.items()
        },
        rf"fc\.{T}": r"classifier.1.\1",
    },
    "beit": {
        "cls_token": "beit.embeddings.cls_token",
        rf"patch_embed\.proj\.{T}": r"beit.embeddings.patch_embeddings.projection.\1",
        rf"blocks\.(\d+)\.norm1\.{T}": r"beit.encoder.layer.\1.layernorm_before.\2",
        rf"blocks\.(\d+)\.norm2\.{T}": r"beit.encoder.layer.\1.layernorm_after.\2",
        r"blocks\.(\d+)\.gamma_([12])": r"beit.encoder.layer.\1.lambda_\2",
        r"blocks\.(\d+)\.attn\.q_bias": r"beit.encoder.layer.\1.attention.attention.query.bias",
        r"blocks\.(\d+)\.attn\.v_bias": r"beit.encoder.layer.\1.attention.attention.value.bias",
        r"blocks\.(\d+)\.attn\.(relative_position_bias_table)": r"beit.encoder.layer.\1.attention.attention.relative_position_bias.\2",
        rf"blocks\.(\d+)\.attn\.proj\.{T}": r"beit.encoder.layer.\1.attention.output.dense.\2",
        r"blocks\.(\d+)\.attn\.qkv\.weight": (
            r"beit.encoder.layer.\1.attention.attention.query.weight",
            r"beit.encoder.layer.\1.attention.attention.key.weight",
            r"beit.encoder.layer.\1.attention.attention.value.weight",
        ),
        rf"blocks\.(\d+)\.mlp\.fc1\.{T}": r"beit.encoder.layer.\1.intermediate.dense.\2",
        rf"blocks\.(\d+)\.mlp\.fc2\.{T}": r"beit.encoder.layer.\1.output.dense.\2",
        rf"fc_norm\.{T}": r"beit.pooler.layernorm.\1",
        rf"head\.{T}": r"classifier.\1",
    },
    "deit": {
        "cls_token": "deit.embeddings.cls_token",
        "dist_token": "deit.embeddings.distillation_token",
        "pos_embed": "deit.embeddings.position_embeddings",
        rf"patch_embed\.proj\.{T}": r"deit.embeddings.patch_embeddings.projection.\1",
        rf"norm\.{T}": r"deit.layernorm.\1",
        rf"blocks\.(\d+)\.norm1\.{T}": r"deit.encoder.layer.\1.layernorm_before.\2",
        rf"blocks\.(\d+)\.norm2\.{T}": r"deit.encoder.layer.\1.layernorm_after.\2",
        rf"blocks\.(\d+)\.attn\.proj\.{T}": r"deit.encoder.layer.\1.attention.output.dense.\2",
        rf"blocks\.(\d+)\.attn\.qkv\.{T}": (
            r"deit.encoder.layer.\1.attention.attention.query.\2",
            r"deit.encoder.layer.\1.attention.attention.key.\2",
            r"deit.encoder.layer.\1.attention.attention.value.\2",
        ),
        rf"blocks\.(\d+)\.mlp\.fc1\.{T}": r"deit.encoder.layer.\1.intermediate.dense.\2",
        rf"blocks\.(\d+)\.mlp\.fc2\.{T}": r"deit.encoder.layer.\1.output.dense.\2",
        rf"head\.{T}": r"cls_classifier.\1",
        rf"head_dist\.{T}": r"distillation_classifier.\1",
    },
}
NAMES["dinov2_gated"] = {
    rf"blocks\.(\d+)\.mlp\.fc1\.{T}": r"encoder.layer.\1.mlp.weights_in.\2",
    rf"blocks\.(\d+)\.mlp\.fc2\.{T}": r"encoder.layer.\1.mlp.weights_out.\2",
} | NAMES["dinov2"]


NAMES["convnextv2"] = {
    pattern: new.replace("convnext.", "convnextv2.")
    for pattern, new in NAMES["convnext"].items()
    if isinstance(new, str)
} | {rf"stages\.(\d)\.blocks\.(\d+)\.mlp\.grn\.{T}": r"convnextv2.encoder.stages.\1.layers.\2.grn.\3"}


def seeded(model: nn.Module, seed: int) -> nn.Module:
    """Weights and the statistics of batch norms, all of their own."""
    recording.seed_weights(model, seed)
    random = torch.Generator().manual_seed(seed + 1)
    for number, (name, buffer) in enumerate(model.named_buffers()):
        if name.endswith("running_mean"):
            buffer.copy_((0.3 * torch.randn(buffer.shape, generator=random)).half())
        elif name.endswith("running_var"):
            buffer.copy_((0.5 + torch.rand(buffer.shape, generator=random)).half())
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(number)
    return model


def keep(
    out: Path,
    name: str,
    case: Mapping[str, Any],
    model: nn.Module,
    seed: int,
    names: str,
    model_class: str,
    config: Mapping[str, Any],
    size: int,
    features: bool = False,
) -> None:
    import timm

    seeded(model, seed)
    state = recording.halves(model.state_dict())
    seen = recording.images(1, config.get("num_channels", 3), size, seed)
    with torch.no_grad():
        logits = model.forward_features(seen) if features else model(seen)  # type: ignore[operator]
    source = dict(state)
    added: dict[str, Tensor] = {}
    if "reg_token" in source:  # the sum that timm keeps, under the name of the position
        added["embeddings.position_embeddings"] = torch.cat((source.pop("cls_token"), source.pop("pos_embed")), 1)
        added["embeddings.cls_token"] = torch.zeros(1, 1, config["hidden_size"]).half()
        added["embeddings.mask_token"] = torch.zeros(1, config["hidden_size"]).half()
    target = recording.renamed(source, NAMES[names]) | added
    target |= {n: t[None, None, None] for n, t in target.items() if ".grn." in n}
    recording.record(
        out / "timm" / name,
        {"weights": "model.safetensors", "tolerance": 2e-5, **case},
        save=lambda place: save_file(state, place / "model.safetensors"),
        target=target,
        model_class=model_class,
        config=config,
        input_ids={"pixel_values": seen},
        logits=logits,
        notes={"original": f"timm {timm.__version__}"},
    )


def transformers_of_images(out: Path, seed: int) -> None:
    import timm.models.beit
    import timm.models.deit
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"image_size": 16, "patch_size": 8, "num_channels": 3, "qkv_bias": True, "hidden_act": "gelu"}
    common = {"img_size": 16, "patch_size": 8}
    plain = VisionTransformer(**common, embed_dim=32, depth=2, num_heads=4, init_values=1.0, num_classes=0)
    keep(out, "dinov2", {"spec": "timm_dinov2", "set": {"num_heads": 4}, "model_class": "AutoModel"}, plain, seed, "dinov2",
         "Dinov2Model", {**sizes, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "use_mask_token": False, "mlp_ratio": 4}, 16, features=True)  # fmt: skip
    gated = VisionTransformer(
        **common, embed_dim=24, depth=2, num_heads=3, init_values=1.0, num_classes=0, reg_tokens=5, no_embed_class=True,
        mlp_ratio=128 / 24, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip
    keep(out, "dinov2_reg5", {"spec": "timm_dinov2_with_registers", "set": {"num_heads": 3}, "model_class": "AutoModel"},
         gated, seed + 1, "dinov2_gated", "Dinov2WithRegistersModel",
         {**sizes, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_register_tokens": 5,
          "use_swiglu_ffn": True, "mlp_ratio": 4}, 16, features=True)  # fmt: skip
    beit = timm.models.beit.Beit(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=5, init_values=0.1,
        use_abs_pos_emb=False, use_rel_pos_bias=True,
    )  # fmt: skip
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
              "layer_norm_eps": 1e-6, "num_labels": 5}  # fmt: skip
    keep(out, "beit", {"spec": "timm_beit", "model_class": "AutoModelForImageClassification"}, beit, seed + 2, "beit",
         "BeitForImageClassification",
         {**vision, "image_size": 24, "patch_size": 8, "hidden_act": "gelu", "use_relative_position_bias": True}, 24)  # fmt: skip
    deit = timm.models.deit.VisionTransformerDistilled(
        **common, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=5
    )
    keep(out, "deit_distilled",
         {"spec": "timm_deit", "set": {"num_heads": 4}, "model_class": "DeiTForImageClassificationWithTeacher"},
         deit, seed + 3, "deit", "DeiTForImageClassificationWithTeacher", {**sizes, **vision}, 16)  # fmt: skip


def stages(out: Path, seed: int) -> None:
    """Models of four stages."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet
    from timm.models.swin_transformer import SwinTransformer

    classify = {"model_class": "AutoModelForImageClassification"}
    model: nn.Module = ConvNeXt(depths=(2, 1, 3, 1), dims=(8, 12, 16, 20), num_classes=5)
    keep(out, "convnext", {"spec": "timm_convnext", **classify}, model, seed + 4, "convnext",
         "ConvNextForImageClassification",
         {"depths": [2, 1, 3, 1], "hidden_sizes": [8, 12, 16, 20], "num_labels": 5,
          "layer_norm_eps": 1e-6}, 32)  # fmt: skip
    model = ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20), num_classes=5, use_grn=True, ls_init_value=None)
    keep(out, "convnextv2", {"spec": "timm_convnextv2", **classify}, model, seed + 8, "convnextv2",
         "ConvNextV2ForImageClassification",
         {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 12, 16, 20], "num_labels": 5, "layer_norm_eps": 1e-6}, 32)  # fmt: skip
    model = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=4, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=2, mlp_ratio=2,
        num_classes=5,
    )  # fmt: skip
    keep(out, "swin", {"spec": "timm_swin", "set": {"img_size": 32}, **classify}, model, seed + 5, "swin",
         "SwinForImageClassification",
         {"image_size": 32, "patch_size": 2, "embed_dim": 4, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 4, 8],
          "window_size": 2, "mlp_ratio": 2.0, "num_labels": 5}, 32)  # fmt: skip
    model = ResNet(Bottleneck, (2, 1, 1, 1), num_classes=5, channels=(4, 4, 8, 8))
    keep(out, "resnet_bottleneck", {"spec": "timm_resnet", **classify}, model, seed + 6, "resnet",
         "ResNetForImageClassification",
         {"depths": [2, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "embedding_size": 64, "num_labels": 5}, 48)  # fmt: skip
    model = ResNet(BasicBlock, (1, 2, 1, 1), num_classes=5, channels=(6, 8, 10, 12))
    keep(out, "resnet_basic", {"spec": "timm_resnet", **classify}, model, seed + 7, "resnet",
         "ResNetForImageClassification",
         {"depths": [1, 2, 1, 1], "hidden_sizes": [6, 8, 10, 12], "embedding_size": 64, "layer_type": "basic",
          "num_labels": 5}, 48)  # fmt: skip


def main() -> None:
    options = recording.arguments(__doc__ or "")
    transformers_of_images(options.out, options.seed)
    stages(options.out, options.seed)


if __name__ == "__main__":
    main()
