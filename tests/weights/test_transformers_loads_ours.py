"""Every system, exported: transformers finds each tensor, gives the same logits, and has an image processor for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CASES

from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import load_model, save_model
from pansight.weights.huggingface.export import write_folder

LABELS = LabelSpace.from_json(
    [
        {"id": 3, "name": "bolt", "isthing": 1, "color": [1, 2, 3]},
        {"id": 7, "name": "nut", "isthing": 1, "color": [4, 5, 6]},
        {"id": 9, "name": "floor", "isthing": 0, "color": [7, 8, 9]},
    ]
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_exported_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    expected, options = CASES[name]
    model = build(name, LABELS, **options).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    assert write_folder(folder, model, name, options, "test", "", None) == expected

    auto: Any = transformers.AutoModelForUniversalSegmentation
    if expected == "DetrForObjectDetection":
        auto = transformers.AutoModelForObjectDetection
    theirs, report = auto.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == expected
    assert {key: value for key, value in report.items() if value} == {}
    assert theirs.config.id2label == {0: "bolt", 1: "nut", 2: "floor"}
    assert theirs.config.num_labels == 3

    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = processor(images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)  # the model's own rule leaves it as it is
    with torch.inference_mode():
        logits = model(image[None]).class_logits
        outputs = theirs.eval()(pixel_values=inputs["pixel_values"])
    found = outputs.logits if expected.startswith("Detr") else outputs.class_queries_logits
    ours = logits[-1] if logits.ndim == 4 else logits  # EoMT: one for each of the last blocks
    assert (ours - found).abs().max() <= 1e-4

    rule = model.input.resize._replace(rounding="transformers", filter="antialias")
    if name in ("maskformer", "mask2former"):  # theirs stretch photos to multiples of 32, ours are padded to them
        rule = rule._replace(multiple=32, divisor=1 if name == "maskformer" else 32)
    again, its_name, its_options = load_model(folder)
    save_model(tmp_path / "native", again, its_name, its_options)  # what was read can be built again
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20MB")  # most need several files then
    processor.save_pretrained(tmp_path / "theirs")
    for loaded in (again, load_model(tmp_path / "native")[0], load_model(tmp_path / "theirs")[0]):
        assert loaded.labels == LABELS
        assert loaded.input.resize == rule
        assert torch.equal(loaded.input.mean, model.input.mean)
        with torch.inference_mode():
            assert torch.equal(loaded(image[None]).class_logits, logits)
