"""EoMT beside transformers' EomtForUniversalSegmentation and its DINOv3 variant, same random weights. About 8 s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pansight.data.loader import collate
from pansight.errors import PansightError
from pansight.models.queries.eomt import EoMT
from pansight.ops.queries.losses import point_set_loss
from pansight.ops.queries.targets import dense_masks, segment_targets
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Sample, Segment
from pansight.weights.huggingface import eomt as system
from pansight.weights.huggingface import load_folder, read_state
from pansight.weights.huggingface.decode import decode_like_transformers

pytestmark = pytest.mark.slow  # beside other code, on images of some size

STUFF = {3, 4}
SIDE = 64
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "num_blocks": 2,
    "num_queries": 12,
    "train_num_points": 160,
    "id2label": {i: f"class {i}" for i in range(5)},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "eomt": ("Eomt", {"mlp_ratio": 2}),
    "swiglu": ("Eomt", {"use_swiglu_ffn": True}),
    # 1e-6 is this class's default, 1e-5 DINOv3's; the random scaling of coordinates in training is left out
    "dinov3": ("EomtDinov3", {"intermediate_size": 64, "layer_norm_eps": 1e-5, "pos_embed_rescale": None}),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def reference(kind: str = "eomt", probs: float = 1.0, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**(SMALL | more | options))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForUniversalSegmentation")(config)
    with torch.no_grad():
        for key, tensor in model.named_parameters():  # no weight as it starts, where many are 0, 1 or all alike
            if ("norm" in key and key.endswith("weight")) or "lambda1" in key:
                tensor.uniform_(0.5, 1.5)
            elif key.endswith("bias") or "tokens" in key:
                tensor.normal_(0, 0.1)
            elif tensor.ndim == 2 and ("layers" in key or "mask_head" in key or "predictor" in key):
                tensor.normal_(0, 1.5 * tensor.shape[1] ** -0.5)
        model.attn_mask_probs.fill_(probs)
    return model.eval()


def loaded(model: Any, folder: Path) -> EoMT:
    model.save_pretrained(folder)
    ours, name, options = load_folder(folder)
    assert (name, options["size"], options["blocks"]) == ("eomt", SIDE, 2)
    ours.labels = LabelSpace(c._replace(is_thing=c.id not in STUFF) for c in ours.labels)
    return ours


def photos(count: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)


def all_masks(ours: EoMT, outputs: Any, layer: int = -1) -> Tensor:
    return torch.stack([ours.mask_logits(outputs, image, layer=layer) for image in range(len(outputs.extents))])


@pytest.mark.parametrize("probs", [0.0, 1.0], ids=["trained", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_masks(kind: str, probs: float, tmp_path: Path) -> None:
    theirs = reference(kind, probs)
    ours = loaded(theirs, tmp_path)
    with torch.inference_mode():
        outputs = ours(photos())
        expected = theirs(ours.input(photos()))
    masks = all_masks(ours, outputs)
    assert expected.masks_queries_logits.std() > 0.1  # else equal to anything
    torch.testing.assert_close(outputs.class_logits[0], expected.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(masks, expected.masks_queries_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_alone_or_beside_another(kind: str, tmp_path: Path) -> None:
    """transformers' result for one image is ours for the same image in a batch."""
    theirs = reference(kind)
    ours = loaded(theirs, tmp_path)
    with torch.inference_mode():
        outputs = ours(photos(3))
        expected = theirs(ours.input(photos(3)[2:]))
    torch.testing.assert_close(outputs.class_logits[0, 2:], expected.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mask_logits(outputs, 2)[None], expected.masks_queries_logits, rtol=1e-4, atol=1e-4)


def batch() -> Batch:
    """Three segments and two on noise; the second photo does not fill the square."""
    random = torch.Generator().manual_seed(1)
    samples: list[Sample] = []
    for index, (height, width) in enumerate([(SIDE, SIDE), (40, SIDE)]):
        ids = torch.zeros((height, width), dtype=torch.int32)
        ids[5:35, 10:60] = 1
        ids[36:39, :] = 2
        segments = [Segment(1, index), Segment(2, 3)]
        if index == 0:
            ids[40:60, 20:50] = 3
            segments.append(Segment(3, 2))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random)
        samples.append(Sample(image, PanopticSegmentation(ids, tuple(segments)), index, (height, width)))
    return collate(samples, SIDE)


def same_points(*shape: int, **_: Any) -> Tensor:
    """For (N, P, 2): the same P points N times, so that the order of the calls does not matter."""
    random = torch.Generator().manual_seed(shape[-2])
    return torch.zeros(()).new_empty(shape[-2:]).uniform_(generator=random).expand(shape).contiguous()


@pytest.mark.parametrize("kind", ["eomt", "dinov3"])
def test_every_layer_and_its_loss_in_training(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked attention in all blocks; matching and losses on the same points."""
    theirs = reference(kind)
    ours = loaded(theirs, tmp_path).train()
    data = batch()
    outputs = ours(data.images, data.valid)
    targets = segment_targets(data, ours.labels)
    found = point_set_loss(
        outputs.class_logits,
        outputs.mask_embeddings,
        outputs.features,
        targets,
        (SIDE, SIDE),
        ours.settings,
        draw=same_points,
    )

    layers: list[tuple[Tensor, Tensor]] = []
    losses: list[dict[str, Tensor]] = []
    predict, get_loss_dict = theirs.predict, theirs.get_loss_dict

    def noted_predict(tokens: Tensor) -> tuple[Tensor, Tensor]:
        layers.append(predict(tokens))
        return layers[-1]

    def noted_losses(**given: Any) -> dict[str, Tensor]:
        losses.append(get_loss_dict(**given))
        return losses[-1]

    monkeypatch.setattr(theirs, "predict", noted_predict)
    monkeypatch.setattr(theirs, "get_loss_dict", noted_losses)
    monkeypatch.setattr(torch, "rand", same_points)
    masks = [dense_masks(t, (SIDE, SIDE)) for t in targets]
    black = data.images * data.valid.unsqueeze(1)
    total = theirs.train()(ours.input(black), mask_labels=masks, class_labels=[t.categories for t in targets]).loss

    assert len(layers) == len(outputs.features) == 3
    for layer, (mask_logits, class_logits) in enumerate(layers):
        torch.testing.assert_close(outputs.class_logits[layer], class_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(all_masks(ours, outputs, layer), mask_logits, rtol=1e-4, atol=1e-4)
    names = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
    for name, theirs_name in names.items():
        expected = sum(loss[theirs_name] for loss in losses)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack(list(found.values())).sum(), total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("score", "overlap"), [(0.0, 0.1), (0.3, 0.3), (0.5, 0.5), (0.99, 0.8)])
def test_panoptic_map_of_its_image_processor(score: float, overlap: float, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = loaded(reference(), tmp_path)
    theirs = reference()
    sizes = [(100, 75), (48, 96)]
    processor = transformers.EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    valid = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for row, size in zip(valid, sizes, strict=True):
        height, width = ours.input.resize.target(*size)
        row[:height, :width] = True
    with torch.inference_mode():
        found = decode_like_transformers("eomt", ours, ours(photos(), valid), sizes, score, overlap=overlap)
        outputs = theirs(ours.input(photos() * valid.unsqueeze(1)))
        expected = processor.post_process_panoptic_segmentation(
            outputs, sizes, score, 0.5, overlap, stuff_classes=sorted(STUFF)
        )
    segments = 0
    for one, other in zip(found, expected, strict=True):
        different = one.ids != other["segmentation"].int() + 1  # theirs: from 0, -1 where nothing is
        assert different.sum() <= 2  # ties, where torch rounds as its number of threads has it
        rows = [(s.id - 1, s.category, round(s.score, 6)) for s in one.segments]
        assert rows == [(s["id"], s["label_id"], pytest.approx(s["score"], abs=2e-6)) for s in other["segments_info"]]
        segments += len(rows)
    assert segments >= (4 if score < 0.5 else 0)


def test_semantic_map_of_windows(tmp_path: Path) -> None:
    """Their processor cuts, their model looks, their processor joins; ours, from the same folder, does all of it."""
    transformers = pytest.importorskip("transformers")
    theirs = reference()
    size = {"shortest_edge": SIDE, "longest_edge": 8 * SIDE}
    processor = transformers.EomtImageProcessor(size=size, do_split_image=True, do_pad=False)
    processor.save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    ours, name, options = load_folder(tmp_path)
    assert (name, options["windows"], ours.window) == ("eomt", True, SIDE)
    assert ours.input.resize.target(100, 50) == (2 * SIDE, SIDE)
    random = torch.Generator().manual_seed(2)
    shapes = [(SIDE, 150), (170, SIDE), (SIDE, SIDE)]  # no resizing, whose last bits differ between libraries
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=random) for shape in shapes]
    nothing = PanopticSegmentation(torch.zeros((1, 1), dtype=torch.int32), ())
    batch = collate([Sample(image, nothing, 0, shape) for image, shape in zip(images, shapes, strict=True)], 16)
    sizes = [(90, 200), (170, SIDE), (31, 33)]
    with torch.inference_mode():
        outputs = ours(batch.images, batch.valid)
        found = ours.decode(outputs, sizes)
        inputs = processor(images, return_tensors="pt")
        answers = theirs(inputs["pixel_values"])
        # of each photo at the size of its file, as theirs joins at the size that the file gives
        weights = answers.class_queries_logits.softmax(-1)[..., :-1]
        masks = torch.nn.functional.interpolate(answers.masks_queries_logits, (SIDE, SIDE), mode="bilinear").sigmoid()
        scores = torch.einsum("nqc,nqhw->nchw", weights, masks)
        offsets = [tuple(row.tolist()) for row in inputs["patch_offsets"]]
        joined = processor.merge_image_patches(scores, offsets, shapes, size)
    assert [(w.image, w.top + w.left) for w in outputs.windows] == [(image, start) for image, start, _ in offsets]
    assert len(offsets) == 3 + 3 + 1
    for one, score, wanted in zip(found, joined, sizes, strict=True):
        expected = torch.nn.functional.interpolate(score[None], wanted, mode="bilinear")[0].argmax(0)
        assert len(expected.unique()) > 1  # else equal to anything
        assert one.panoptic is None
        assert one.semantic is not None
        assert (one.semantic != expected).sum() <= 2  # ties, where torch rounds as its number of threads has it
    with pytest.raises(PansightError, match="unknown task 'panoptic'; known: semantic"):
        ours.decode(outputs, sizes, task="panoptic")
    processor = system.export(ours, name, options)[2]
    assert (processor["do_split_image"], processor["do_pad"]) == (True, False)
    assert processor["size"] == size


def test_their_processor_prepares_a_photo_as_we_do(tmp_path: Path) -> None:
    """Long side to the size, black at the right and the bottom, then mean and deviation."""
    transformers = pytest.importorskip("transformers")
    ours = loaded(reference(), tmp_path)
    image = photos(1)[0, :, :40]  # 40 × 64: no resizing, whose last bits differ between libraries
    sample = Sample(image, PanopticSegmentation(torch.zeros((1, 1), dtype=torch.int32), ()), 0, (40, 64))
    assert ours.input.resize.target(40, 64) == (40, 64)
    data = collate([sample], ours.input.resize.divisor)
    seen: list[Tensor] = []
    ours.backbone.features.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ours(data.images, data.valid)
    processor = transformers.EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_a_bijection(kind: str, tmp_path: Path) -> None:
    """Every tensor read, none missing, and each written back under the name that it came from."""
    theirs = reference(kind, probs=0.5)
    ours = loaded(theirs, tmp_path)
    state = read_state(tmp_path)
    assert len(system.renamed(state, kind == "dinov3", "x")) == len(ours.state_dict())
    config, back, processor = system.export(ours, "eomt", {})
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    written = theirs.config.to_dict()
    assert {k: v for k, v in config.items() if k in written and written[k] != v} == {
        "layerscale_value": 1e-5  # where training starts, which weights do not tell
    }
    assert config["architectures"] == [type(theirs).__name__]
    assert processor["size"] == {"shortest_edge": SIDE, "longest_edge": SIDE}


def test_giants_of_transformers_4_pack_their_gate(tmp_path: Path) -> None:
    theirs = reference("swiglu")
    ours = loaded(theirs, tmp_path)
    old = dict(read_state(tmp_path))
    for layer in range(4):
        for part in ("weight", "bias"):
            mlp = f"layers.{layer}.mlp."
            old[f"{mlp}weights_in.{part}"] = torch.cat(
                [old.pop(f"{mlp}gate_proj.{part}"), old.pop(f"{mlp}up_proj.{part}")]
            )
            old[f"{mlp}weights_out.{part}"] = old.pop(f"{mlp}down_proj.{part}")
    found = system.renamed(old, False, "x")
    expected = ours.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("config_class", "more", "name"),
    [
        ("Eomt", {}, "eomt_large_640"),
        ("Eomt", {"image_size": 1280, "num_queries": 100}, "eomt_large_1280"),
        (
            "Eomt",
            {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "num_blocks": 5}
            | {"use_swiglu_ffn": True},
            "eomt_giant_640",
        ),
        (
            "Eomt",
            {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_blocks": 3},
            "eomt_small_640",
        ),
        ("EomtDinov3", {"layer_norm_eps": 1e-5}, "eomt_dinov3_large_640"),
    ],
)
def test_published_architectures_are_recognised(config_class: str, more: dict[str, Any], name: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = getattr(transformers, f"{config_class}Config")(num_labels=133, **more)
        theirs = getattr(transformers, f"{config_class}ForUniversalSegmentation")(config)
        labels = LabelSpace.from_names([f"class {i}" for i in range(133)])
        ours, found, options = system.load(config.to_dict(), theirs.state_dict(), labels, "x")
    assert (found, options) == (name, {"queries": 100} if "num_queries" in more else {})
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "config.json: expected hidden_act gelu, found 'relu'"),
        ({"image_size": [640, 480]}, r"config.json: expected a square image_size, found \[640, 480\]"),
    ],
)
def test_configs_that_our_vit_cannot_be(change: dict[str, Any], message: str) -> None:
    from pansight.errors import PansightError

    labels = LabelSpace.from_names(["a"])
    with pytest.raises(PansightError, match=message):
        system.load({"model_type": "eomt"} | change, {}, labels, "folder")
