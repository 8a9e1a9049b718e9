"""Which file reads an official checkpoint: exactly one for each layout, none for what only looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.weights import ORIGINS, load_model

RESNET = "stem.conv1.weight stem.conv1.norm.weight res2.0.shortcut.weight res2.0.conv1.norm.running_var"
SWIN = "patch_embed.proj.weight layers.0.blocks.0.attn.qkv.weight layers.0.downsample.reduction.weight norm0.weight"
FPN = "layer_4.weight layer_4.norm.weight adapter_1.weight layer_1.norm.bias mask_features.weight"
DECODER = "class_embed.weight mask_embed.layers.0.weight query_embed.weight"
DETR = (
    "backbone.0.body.conv1.weight backbone.0.body.layer1.0.bn1.running_mean input_proj.weight query_embed.weight "
    "transformer.encoder.layers.0.self_attn.in_proj_weight transformer.decoder.layers.0.multihead_attn.out_proj.bias "
    "transformer.decoder.norm.weight class_embed.weight bbox_embed.layers.0.weight"
)
DINOV2 = "cls_token reg_token pos_embed patch_embed.proj.weight blocks.0.attn.qkv.weight blocks.0.ls1.gamma norm.weight"
DINOV3 = (
    "patch_embed.cls_token patch_embed.register_tokens patch_embed.patch_embeddings.weight norm.weight "
    "blocks.0.attention.q_proj.weight blocks.0.layer_scale1.lambda1 blocks.0.mlp.up_proj.weight"
)
EOMT = "network.q.weight network.class_head.weight network.mask_head.0.weight network.upscale.0.conv1.weight "
MASKED = (
    "transformer_cross_attention_layers.0.multihead_attn.in_proj_weight transformer_ffn_layers.0.linear1.weight "
    "transformer_self_attention_layers.0.self_attn.in_proj_weight decoder_norm.weight level_embed.weight"
)


def under(prefix: str, keys: str) -> str:
    return " ".join(prefix + key for key in keys.split())


PREDICTOR, PIXEL = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
DEFORMABLE = under(PIXEL, "transformer.level_embed input_proj.0.0.weight mask_features.weight adapter_1.weight")
QUERIES = under(PREDICTOR, f"{DECODER} transformer.decoder.layers.0.self_attn.in_proj_weight")
LAYOUTS = {
    "torchvision": ("torchvision", "backbone.body.conv1.weight backbone.fpn.inner_blocks.0.weight rpn.head.conv.bias"),
    "torchvision's FCN": (
        "torchvision's FCN",
        "backbone.conv1.weight backbone.layer1.0.conv1.weight "
        "classifier.0.weight classifier.1.running_mean classifier.4.weight",
    ),
    "Caffe, FCN": ("Caffe's FCN or SegNet", "conv1_1.weight conv1_1.bias fc6.weight score_fr.weight upscore.weight"),
    "Caffe, SegNet": ("Caffe's FCN or SegNet", "conv1_1.weight conv1_1_bn.bias conv1_1_D.weight conv1_2_D_bn.weight"),
    "detectron2": ("detectron2", under("backbone.bottom_up.", RESNET) + " sem_seg_head.p2.0.weight"),
    "Caffe2": ("detectron2", "conv1_w res2_0_branch2a_w"),
    "DETR": ("detr", DETR),
    "DETR panoptic": ("detr", under("detr.", DETR) + " bbox_attention.q_linear.weight mask_head.lay1.weight"),
    "MaskFormer, ResNet": ("maskformer", f"{under('backbone.', RESNET)} {under(PIXEL, FPN)} {QUERIES}"),
    "MaskFormer, Swin": ("maskformer", f"{under('backbone.', SWIN)} {under(PIXEL, FPN)} {QUERIES}"),
    "MaskFormer, first version": (
        "maskformer",
        f"{under('backbone.', SWIN)} {under('sem_seg_head.', FPN)} {QUERIES} criterion.empty_weight",
    ),
    "Mask2Former, ResNet": (
        "mask2former",
        f"{under('backbone.', RESNET)} {DEFORMABLE} {under(PREDICTOR, f'{DECODER} {MASKED} query_feat.weight')}",
    ),
    "Mask2Former, Swin, first version": (
        "mask2former",
        f"{under('backbone.', SWIN)} {DEFORMABLE} {under(PREDICTOR, f'{DECODER} {MASKED} static_query.weight')}",
    ),
    "DeepLab, torchvision": (
        "torchvision's DeepLab",
        "backbone.conv1.weight backbone.layer1.0.conv1.weight classifier.0.convs.0.0.weight classifier.4.bias",
    ),
    "DeepLabV3, detectron2": (
        "detectron2's DeepLab",
        under("backbone.", RESNET) + " backbone.stem.conv3.weight "
        "sem_seg_head.aspp.convs.0.weight sem_seg_head.predictor.weight",
    ),
    "DeepLabV3+, detectron2": (
        "detectron2's DeepLab",
        under("backbone.", RESNET) + " backbone.stem.conv3.weight "
        "sem_seg_head.decoder.res5.project_conv.convs.0.weight sem_seg_head.predictor.weight",
    ),
    "PSPNet, semseg": (
        "semseg",
        "layer0.0.weight layer1.0.conv1.weight ppm.features.0.1.weight cls.4.weight aux.4.bias",
    ),
    "PSPNet, smp": (
        "segmentation_models_pytorch",
        "encoder.conv1.weight encoder.layer1.0.conv1.weight decoder.psp.blocks.0.pool.1.0.weight "
        "segmentation_head.0.weight",
    ),
    "DeepLabV3+, smp": (
        "segmentation_models_pytorch",
        "encoder.conv1.weight encoder.layer1.0.conv1.weight decoder.aspp.0.convs.0.0.weight segmentation_head.0.weight",
    ),
    "UPSNet": (
        "UPSNet",
        "resnet_backbone.conv1.conv1.weight resnet_backbone.res2.layers.0.bn1.bias fpn.fpn_p5_1x1.weight "
        "rpn.conv_proposal.0.weight rcnn.fc6.0.weight mask_branch.mask_conv1.0.bias fcn_head.score.weight",
    ),
    "EfficientPS": (
        "EfficientPS",
        "backbone.conv_stem.weight neck.lateral_convs_top.0.conv.weight rpn_head.rpn_conv.weight "
        "bbox_head.fc_cls.weight mask_head.conv_logits.bias semantic_head.lateral_convs_ss.0.conv.bn.weight "
        "semantic_head.conv_logits.weight",
    ),
    "Panoptic-DeepLab, detectron2": (
        "detectron2's Panoptic-DeepLab",
        "backbone.stem.conv3.weight backbone.res2.0.conv1.weight sem_seg_head.decoder.res5.project_conv.convs.0.weight "
        "sem_seg_head.predictor.weight ins_embed_head.center_predictor.weight ins_embed_head.offset_predictor.bias",
    ),
    "Panoptic-DeepLab": (
        "Panoptic-DeepLab",
        "backbone.conv1.weight decoder.semantic_decoder.aspp.convs.0.0.weight "
        "decoder.semantic_head.classifier.semantic.1.weight decoder.instance_head.classifier.center.1.weight",
    ),
    "Panoptic FCN": (
        "Panoptic FCN",
        "backbone.bottom_up.stem.conv1.weight backbone.fpn_lateral2.weight backbone.top_block.p6.weight "
        "semantic_fpn.p2.0.weight position_head.out_inst.weight kernel_head.out_conv.weight "
        "feature_encoder.encode_head.encode_head_head_1.weight thing_generator.embed_extractor.weight",
    ),
    "EoMT": ("eomt", under("network.encoder.backbone.", DINOV2) + " " + EOMT),
    "EoMT, DINOv3": ("eomt", under("network.encoder.backbone.", DINOV3) + " " + EOMT),
    "Unet of segmentation_models_pytorch": (
        "segmentation_models_pytorch's Unet",
        "encoder.conv1.weight decoder.blocks.0.conv1.0.weight decoder.blocks.0.conv1.1.bias segmentation_head.0.weight",
    ),
}
FOREIGN = {
    "transformers' DETR": "model.backbone.conv_encoder.model.conv1.weight model.encoder.layers.0.self_attn.q_proj.bias",
    "transformers' MaskFormer": "model.pixel_level_module.encoder.model.embeddings.norm.weight class_predictor.weight",
    "transformers' EoMT": "query.weight embeddings.cls_token layers.0.attention.q_proj.weight class_predictor.bias",
    "timm": "conv1.weight bn1.weight layer1.0.conv1.weight fc.weight",
    "U-Net": "encoder1.0.weight decoder4.conv.bias head.weight",
}


def state(keys: str) -> dict[str, Tensor]:
    return {key: torch.zeros(1) for key in keys.split()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_one_origin_recognises_it(layout: str) -> None:
    expected, keys = LAYOUTS[layout]
    assert [name for name, origin in ORIGINS.items() if origin.recognises(state(keys))] == [expected]


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_architectures_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    torch.save(state(FOREIGN[kind]), tmp_path / "x.pth")
    with pytest.raises(
        PansightError, match=r"x\.pth: expected a checkpoint of torchvision or .*found tensors"
    ) as error:
        load_model(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_of_a_layout_is_refused_in_one_line(layout: str, tmp_path: Path) -> None:
    """The first keys of each kind are no model: the file that recognises them says what is missing or wrong."""
    torch.save({"model": state(LAYOUTS[layout][1])}, tmp_path / "x.pth")
    with pytest.raises(PansightError, match=r"x\.pth: ") as error:
        load_model(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


def test_every_layout_is_tried() -> None:
    assert {origin for origin, _ in LAYOUTS.values()} == set(ORIGINS)
