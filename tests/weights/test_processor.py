"""From a JPEG file to logits, beside the image processors of transformers and its models: every setting they have."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fake_system import Fake
from PIL import Image
from small_models import CASES
from torch import Tensor

from pansight.data.dataset import image_tensor
from pansight.data.images import read_image
from pansight.engine.infer import views_of
from pansight.errors import PansightError
from pansight.models import build
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace
from pansight.weights import load_model
from pansight.weights.huggingface.export import write_folder
from pansight.weights.huggingface.processor import apply_processor

pytestmark = pytest.mark.slow  # photos of full size

LABELS = LabelSpace.from_names(["bolt", "nut"], ["floor"])
NAMES = ("detr", "maskformer", "mask2former", "eomt")
SIZES = {"landscape": (90, 123), "portrait": (131, 80)}

Pair = tuple[Any, Path]  # (model of transformers, folder that both read)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny layers: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Pair] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in NAMES:
            torch.manual_seed(0)
            expected, options = CASES[name]
            folder = tmp_path_factory.mktemp(name)
            write_folder(folder, build(name, LABELS, **options).eval(), name, options, "test", "", None)
            found[name] = (getattr(transformers, expected).from_pretrained(folder).eval(), folder)
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Smooth shapes under fine texture, which averaging takes away and picking single pixels keeps."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        y, x = np.mgrid[:height, :width]
        smooth = [128 + 80 * np.sin(x / 9) + 40 * np.cos(y / 7), 60 + x, 200 - y + 30 * np.sin(x * y / 50)]
        pixels = np.stack(smooth, -1) + rng.normal(0, 25, (height, width, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{name}.jpg", quality=92)
    return {name: folder / f"{name}.jpg" for name in SIZES}


def configured(pair: Pair, settings: dict[str, Any], to: Path) -> Path:
    """A folder of links to the model's files with other settings in its preprocessor_config.json."""
    to.mkdir()
    for file in pair[1].iterdir():
        (to / file.name).symlink_to(file)
    old = json.loads((pair[1] / "preprocessor_config.json").read_text())
    (to / "preprocessor_config.json").unlink()
    (to / "preprocessor_config.json").write_text(json.dumps(old | settings))
    return to


def our_input(model: Any, path: Path) -> tuple[Tensor, Tensor]:
    """(images, valid): what evaluation and prediction give the model for one file."""
    (view,) = views_of([image_tensor(read_image(path))], model.input.resize)
    return view.images, view.valid


def class_logits(outputs: Any) -> Tensor:
    """Ours or theirs, (B, Q, C + 1)."""
    if isinstance(outputs, tuple):
        logits = outputs.class_logits  # type: ignore[attr-defined]
        return logits[-1] if logits.ndim == 4 else logits
    return outputs.class_queries_logits if "class_queries_logits" in outputs else outputs.logits


def assert_same(pair: Pair, folder: Path, path: Path, backend: str = "", filter: str = "antialias") -> None:
    """Tensor for tensor, then logit for logit."""
    ours = load_model(folder)[0]
    ours.input.resize = ours.input.resize._replace(filter=filter)
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    processor = getattr(transformers, kind + backend).from_pretrained(folder)
    with Image.open(path) as photo:
        given = processor(images=photo.convert("RGB"), return_tensors="pt")
    pixels = given["pixel_values"].float()
    images, valid = our_input(ours, path)
    found = ours.input(images, valid)
    assert found.shape == pixels.shape
    assert pixels.std() > 0.1 * (pixels.max() - pixels.min())  # a photo, not a plain colour
    torch.testing.assert_close(found, pixels, rtol=1e-5, atol=2e-5 * float(pixels.abs().max()))
    with torch.inference_mode():
        masks = {"pixel_mask": given["pixel_mask"]} if "pixel_mask" in given else {}
        expected = class_logits(pair[0](pixel_values=pixels, **masks))
        logits = class_logits(ours(images, valid))
    assert expected.std() > 0.01
    # Pixels that a processor leaves unscaled reach a thousand, and the rounding of the network grows with them.
    size = max(1.0, float(pixels.abs().max()) / 4)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * size)


SHAPES: dict[str, dict[str, Any]] = {
    "shrunk": {"size": {"shortest_edge": 48, "longest_edge": 80}},
    "to the limit": {"size": {"shortest_edge": 64, "longest_edge": 77}},
    "enlarged": {"size": {"shortest_edge": 160, "longest_edge": 333}},
    "stretched": {"size": {"height": 40, "width": 72}},
    "box": {"size": {"max_height": 50, "max_width": 60}},
    "square of 384": {"size": {"height": 384, "width": 384}},
    "number": {"size": 48, "max_size": 80},
    "list": {"size": [44, 77]},
    "never a square": {"size": 48, "max_size": 80, "default_to_square": True},
    "unscaled": {"size": {"height": 40, "width": 72}, "do_rescale": False, "image_mean": [127.5] * 3},
    "not normalised": {"size": {"height": 40, "width": 72}, "do_normalize": False},
    "other factor": {"size": {"height": 40, "width": 72}, "rescale_factor": 1 / 128, "image_mean": [0.9, 1, 1.1]},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("photo", SIZES)
@pytest.mark.parametrize("name", ["detr", "maskformer", "mask2former"])
def test_sizes_and_pixels(
    name: str, photo: str, shape: str, pairs: dict[str, Pair], photos: dict[str, Path], tmp_path: Path
) -> None:
    assert_same(pairs[name], configured(pairs[name], SHAPES[shape], tmp_path / "x"), photos[photo])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("detr", {"do_resize": False}),
        ("maskformer", {"do_resize": False}),
        ("maskformer", {"size_divisor": 0}),
        ("maskformer", {"size_divisor": 24}),
        ("mask2former", {"size_divisor": 64}),
        ("mask2former", {"size": {"height": 640, "width": 640}}),
        ("eomt", {}),
        ("eomt", {"size": {"height": 64, "width": 64}, "do_pad": False}),
        ("eomt", {"size": 64, "default_to_square": True, "do_pad": False}),
        ("eomt", {"size": [64, 64], "do_pad": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
        ("eomt", {"do_split_image": True, "do_pad": False, "size": {"shortest_edge": 64, "longest_edge": None}}),
        ("eomt", {"do_split_image": True, "do_pad": False, "size": {"shortest_edge": 64}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("photo", SIZES)
def test_settings_of_one_model(
    name: str, settings: dict[str, Any], photo: str, pairs: dict[str, Pair], photos: dict[str, Path], tmp_path: Path
) -> None:
    folder = configured(pairs[name], settings, tmp_path / "x")
    if not settings.get("do_split_image"):
        assert_same(pairs[name], folder, photos[photo])
        return
    ours = load_model(folder)[0]  # windows: theirs are cut by the processor, ours by the model
    processor: Any = transformers.EomtImageProcessor.from_pretrained(folder)
    with Image.open(photos[photo]) as opened:
        given = processor(images=opened.convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        expected = class_logits(pairs[name][0](pixel_values=given["pixel_values"]))
        logits = class_logits(ours(*our_input(ours, photos[photo])))
    assert len(expected) == 2
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edge", [48, 160], ids=["shrunk", "enlarged"])
@pytest.mark.parametrize("name", ["detr", "maskformer", "mask2former"])
def test_processors_of_pillow(
    name: str, edge: int, pairs: dict[str, Pair], photos: dict[str, Path], tmp_path: Path
) -> None:
    """Where transformers is told to take Pillow, the same rule with that filter is the same."""
    settings = {"size": {"shortest_edge": edge, "longest_edge": 400}}
    folder = configured(pairs[name], settings, tmp_path / "x")
    assert_same(pairs[name], folder, photos["landscape"], "Pil", "pillow")


# --- rules, without a model ------------------------------------------------------------------------------------------


class FakeViT(Fake):
    """What apply_processor looks at in an EoMT."""

    def __init__(self, labels: LabelSpace):
        super().__init__(labels)
        self.backbone.patch = 16  # type: ignore[assignment]
        self.input.resize = ResizeRule(640, 640, 640, "eomt")


def rule_of(processor: dict[str, Any], model_type: str = "detr") -> ResizeRule:
    labels = LabelSpace.from_names(["a"])
    model = FakeViT(labels) if model_type.startswith("eomt") else Fake(labels)
    apply_processor(model, processor, model_type, "x")
    return model.input.resize


def of_transformers(short: int = 800, long: int = 1333, **more: Any) -> ResizeRule:
    return ResizeRule(short, long, rounding="transformers", filter="antialias")._replace(**more)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, of_transformers(480, 640)),
        ({"size": {"shortest_edge": 128, "longest_edge": 128}}, of_transformers(128, 128)),
        ({"size": 600, "max_size": 1000}, of_transformers(600, 1000)),
        ({"size": 600}, of_transformers(600, 1333)),
        ({"size": {"shortest_edge": 600}, "max_size": 1000}, of_transformers(600, 1000)),
        ({"size": {"shortest_edge": 512, "longest_edge": None}}, of_transformers(512, 2**16)),
        ({"size": {"height": 512, "width": 256}}, of_transformers(height=512, width=256, stretched=True)),
        ({"size": {"max_height": 512, "max_width": 256}}, of_transformers(height=512, width=256)),
        ({"do_resize": False, "size": {"height": 512, "width": 512}}, of_transformers(0, 0)),
        ({}, of_transformers()),
    ],
    ids=str,
)
def test_rules(processor: dict[str, Any], expected: ResizeRule) -> None:
    assert rule_of(processor) == expected


def test_rules_of_the_others() -> None:
    square = {"size": {"height": 384, "width": 384}}
    assert rule_of(square, "mask2former").target(480, 640) == (384, 384)
    assert rule_of(square, "maskformer")[2:] == (1, "transformers", "antialias", 384, 384, True, 32)
    assert rule_of({"max_size": 1000}, "mask2former").target(100, 200) == (512, 1024)  # 500 × 1000, stretched
    assert rule_of({"size": {"shortest_edge": 512, "longest_edge": 512}, "do_pad": True}, "eomt").divisor == 512
    assert rule_of({"size": {"shortest_edge": 512, "longest_edge": 512}}, "eomt_dinov3").divisor == 16


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({"resample": 3}, "resample 3: photos are resized bilinearly"),
        ({"pad_size": {"height": 800, "width": 800}}, "pad_size: has no effect here"),
        ({"do_center_crop": True, "crop_size": 224}, "do_center_crop: has no effect here"),
        ({"do_thumbnail": True, "do_align_long_axis": False}, "do_align_long_axis, do_thumbnail: not known"),
    ],
)
def test_what_is_not_followed_is_said(processor: dict[str, Any], said: str) -> None:
    with pytest.warns(UserWarning, match=f"^x: {said}"):
        rule_of(processor)


def test_padding_that_transformers_leaves_out_is_said() -> None:
    with pytest.warns(UserWarning, match="padded to multiples of 32 here"):
        rule_of({"size": {"shortest_edge": 480, "longest_edge": 640}, "size_divisor": 0}, "mask2former")
    with pytest.warns(UserWarning, match="padded to multiples of 32 here"):
        rule_of({"do_resize": False}, "mask2former")


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_writes_is_known(name: str, tmp_path: Path) -> None:
    kind = {"detr": "Detr", "maskformer": "MaskFormer", "mask2former": "Mask2Former", "eomt": "Eomt"}[name]
    getattr(transformers, f"{kind}ImageProcessor")().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule_of(json.loads((tmp_path / "preprocessor_config.json").read_text()), name)


@pytest.mark.parametrize(
    ("processor", "model_type"),
    [
        ({"size": {"longest_edge": 640}}, "detr"),
        ({"size": {"height": 640}}, "detr"),
        ({"size": {"min_pixels": 10, "max_pixels": 1000}}, "detr"),
        ({"size": {"shortest_edge": 0, "longest_edge": 640}}, "detr"),
        ({"size": "large"}, "detr"),
        ({"size": [1, 2, 3]}, "detr"),
        ({"size_divisor": "x"}, "maskformer"),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}, "do_pad": True}, "eomt"),
        ({"size": {"max_height": 480, "max_width": 640}, "do_pad": True}, "eomt"),
    ],
    ids=str,
)
def test_sizes_that_are_none(processor: dict[str, Any], model_type: str) -> None:
    with pytest.raises(PansightError, match=r"^x: expected image_mean, image_std and size as an image processor has"):
        rule_of(processor, model_type)
