"""What known weights may be used for is said when they are loaded, once, by the logger "pansight"."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
from fake_system import CONFIG, install, state
from safetensors.torch import save_file

from pansight.models import MODELS
from pansight.weights import licences, load_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    licences.show.cache_clear()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(state(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("hub_id", "expected"),
    [
        ("facebook/detr-resnet-50-panoptic", "Apache-2.0"),
        ("facebook/maskformer-swin-base-coco", "CC BY-NC 4.0 (not for commercial use)"),
        ("facebook/mask2former-swin-large-cityscapes-panoptic", "CC BY-NC 4.0 (not for commercial use)"),
        ("tue-mps/coco_panoptic_eomt_large_640", "MIT"),
        ("tue-mps/eomt-dinov3-coco-panoptic-large-640", str(licences.LICENCES["dinov3"])),
        ("someone/mask2former-bolts", None),
        ("facebook/sam-vit-base", None),
    ],
)
def test_hub_ids(hub_id: str, expected: str | None) -> None:
    found = licences.of_hub(hub_id)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: cc-by-nc-4.0\ntags: [a]\n---\n# x", "CC BY-NC 4.0 (not for commercial use)"),
        ('---\ntags: [a]\nlicense: "mit"\n---\n', "MIT"),
        ("---\r\nlicense: openrail\r\n---\r\n", "openrail"),
        ("---\nlicense: other\n---\n", "terms of its own (see its model card)"),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("# license: mit", None),
        ("", None),
    ],
)
def test_model_cards(card: str, expected: str | None) -> None:
    found = licences.of_card(card)
    assert (None if found is None else str(found)) == expected


def test_every_published_model_has_one() -> None:
    assert {entry.licence for entry in MODELS.values()} <= {"", *licences.LICENCES}
    without = [name for name, entry in MODELS.items() if entry.variant_of and not entry.licence]
    assert [name for name in without if not name.endswith("_smp")] == []  # a library without weights of its own
    expected = {"mask_rcnn_r50_tv": "BSD-3-Clause", "mask_rcnn_r50_d2": "CC BY-SA 3.0", "detr_r50": "Apache-2.0"}
    expected |= {"mask2former": "CC BY-NC 4.0", "eomt_large_640": "MIT", "eomt_dinov3_large_640": "DINOv3 License"}
    for name, licence in expected.items():
        assert licences.of_published(name).name == licence
    assert licences.of_published("mask_rcnn") is None


def test_shown_on_loading_once(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    for _ in range(2):
        load_model("facebook/mask2former-swin-tiny-coco-panoptic")
    name = "facebook/mask2former-swin-tiny-coco-panoptic"
    line = f"licence    {name}: under CC BY-NC 4.0 (not for commercial use)"
    assert caplog.record_tuples == [("pansight", logging.WARNING, line)]


def test_a_folder_says_what_its_card_says(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(folder)
    assert caplog.messages == []  # nothing is known of it
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    load_model(folder)
    assert caplog.messages == [f"licence    {folder}: under Apache-2.0"]
    (folder / "README.md").write_bytes(b"\xff\xfe---")
    load_model(folder)


def test_official_files(caplog: pytest.LogCaptureFixture) -> None:
    licences.show.cache_clear()
    licences.show_file("model_final_cafdb1.pkl", "detectron2", "panoptic_fpn_r101_d2")
    licences.show_file("mine.pth", "unheard of", "panoptic_fpn")  # nothing was published for it
    line = "model_final_cafdb1.pkl: weights published in this layout (detectron2) are under CC BY-SA 3.0 (share alike)"
    assert caplog.messages == [f"licence    {line}"]
