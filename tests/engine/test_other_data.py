"""Recipes on anyone's data: what belongs to their own source is dropped and said; two steps on data of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pansight.apps.cli import main
from pansight.config import Config, override, read_config, read_recipe
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.engine.automatic.recipes import for_other_data
from pansight.errors import PansightError
from pansight.types import LabelSpace, PanopticSegmentation, Sample, Segment

THINGS, STUFF = ("ball", "box"), ("sky", "grass")


class Pictures:
    """Noise of given sizes, the upper half sky, two balls in it; `things` or stuff may be left out."""

    def __init__(self, sizes: list[tuple[int, int]], labels: LabelSpace):
        self.sizes, self.labels = sizes, labels

    def __len__(self) -> int:
        return len(self.sizes)

    def image_id(self, index: int) -> int:
        return index + 1

    def file_name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        height, width = self.sizes[index]
        rng = np.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 255, (3, height, width)).astype(np.uint8))
        ids = torch.zeros((height, width), dtype=torch.int32)
        segments: list[Segment] = []
        if self.labels.stuff:
            ids[: height // 2] = 1
            segments.append(Segment(1, self.labels.stuff[index % len(self.labels.stuff)].id))
        for n, left in enumerate((4, 20)) if self.labels.things else ():
            ids[4:14, left : left + 10] = n + 2
            segments.append(Segment(n + 2, self.labels.things[(index + n) % len(self.labels.things)].id))
        return Sample(image, PanopticSegmentation(ids, tuple(segments)), index + 1, (height, width))


def write(folder: Path, things: tuple[str, ...] = THINGS, stuff: tuple[str, ...] = STUFF, count: int = 6) -> Path:
    sizes = [(40 + 8 * (n % 3), 48) for n in range(count)]
    export_coco_panoptic(Pictures(sizes, LabelSpace.from_names(things, stuff)), folder, "train")
    return folder


QUICK = ["--backbone", "resnet10t", "--model.pretrained", "none", "--train.steps", "1", "--train.batch-size", "2"]
QUICK += ["--train.evaluate-every", "0", "--train.trackers", "", "--evaluate.limit", "2", "--evaluate.sheet", "1"]
QUICK += ["--train.precision", "fp32", "--model.options.channels", "32", "--model.options.hidden", "32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("things", "stuff"),
    [
        (THINGS, STUFF),
        (THINGS, ()),
        ((), STUFF),
        (tuple(f"t{n}" for n in range(40)), tuple(f"s{n}" for n in range(25))),
    ],
    ids=["both", "things", "stuff", "65 classes"],
)
def test_two_steps_train_on_data_of_every_kind(tmp_path, capsys, things, stuff):
    data, out = write(tmp_path / "data", things, stuff), tmp_path / "run"
    assert main(["train", "--recipe", "custom/detr_step2", "--data", str(data), "--out", str(out), *QUICK]) == 0
    first = read_config(out / "first" / "config.toml").model
    assert (first.name, first.options["stuff"], first.options["short"]) == ("detr", True, 0)
    said = capsys.readouterr().out
    assert "warning" not in said
    assert json.loads((out / "evaluation.json").read_text())["All"]["n"] >= 1


@pytest.mark.slow
def test_the_first_step_is_taught_stuff_by_every_recipe(tmp_path):
    """A first recipe that says nothing of it."""
    (tmp_path / "one.toml").write_text('[model]\nname = "detr"\n')
    (tmp_path / "two.toml").write_text(f'[model]\nname = "detr_panoptic"\nfirst_recipe = "{tmp_path / "one.toml"}"\n')
    out, data = tmp_path / "run", write(tmp_path / "data")
    command = ["train", "--recipe", str(tmp_path / "two.toml"), "--data", str(data), "--out", str(out)]
    assert main([*command, *QUICK, "--train.freeze", "class_embed"]) == 0
    assert read_config(out / "first" / "config.toml").model.options["stuff"] is True


@pytest.mark.slow
def test_a_recipe_drops_what_belongs_to_its_own_source(tmp_path, capsys):
    data, out = write(tmp_path / "data"), tmp_path / "run"
    assert main(["train", "--recipe", "shapes/detr_step2", "--data", str(data), "--out", str(out), *QUICK]) == 0
    said = capsys.readouterr().out
    dropped = "shapes/detr_step2 has settings of its own data that do not hold for"
    assert f"recipe     {dropped} {data}: data.options, data.validation_options dropped" in said
    assert "model.options.queries" in said
    for folder in (out, out / "first"):
        config = read_config(folder / "config.toml")
        assert (config.data.options, config.data.validation_options) == ({}, {})
        assert config.model.options["channels"] == 32


def test_a_refused_training_leaves_the_run_that_stands_there(tmp_path, capsys):
    data, out = write(tmp_path / "data"), tmp_path / "run"
    command = ["train", "--model", "detr", "--data", str(data), "--out", str(out), *QUICK]
    assert main(command) == 0
    for freeze in ("spine", "backbone,input_proj,transformer,query_embed,class_embed,bbox_embed"):
        assert main([*command, "--overwrite", "--train.freeze", *freeze.split(",")]) == 2
        assert (out / "report.html").is_file()


def test_options_that_are_given_are_never_dropped(tmp_path, capsys):
    data = write(tmp_path / "data")
    command = ["train", "--recipe", "shapes/mask_rcnn", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*command, "--data.options.count", "3"]) == 2
    assert "unknown option of coco_panoptic" in capsys.readouterr().err


def test_settings_of_the_same_format_hold(tmp_path):
    recipe = override(Config(), {"data": {"source": "a", "format": "coco_panoptic", "options": {"images": "photos"}}})
    data = write(tmp_path / "data")
    kept, lines = for_other_data(recipe, {"data.source": str(data)}, "mine.toml")
    assert (kept.data.options, lines) == ({"images": "photos"}, [])
    here = override(Config(), {"data": {"source": str(data), "options": {"images": "photos"}}})
    for source in (f"{data}/../data", str(write(tmp_path / "more"))):  # the same folder, and another of its format
        assert for_other_data(here, {"data.source": source}, "mine.toml")[0].data.options == {"images": "photos"}
    nuclei, lines = for_other_data(read_recipe("nuclei/mask_rcnn"), {"data.source": str(data)}, "nuclei/mask_rcnn")
    assert nuclei.data.options == {}
    assert "data.options dropped" in lines[0]
    assert nuclei.augment.crop == 256  # photos like those of the user
    same = read_recipe("shapes/mask_rcnn")
    assert for_other_data(same, {"data.source": "shapes"}, "shapes/mask_rcnn") == (same, [])
    with pytest.raises(PansightError, match="expected a data folder"):
        for_other_data(same, {"data.source": str(tmp_path / "nowhere")}, "shapes/mask_rcnn")


def test_sizes_of_generated_images_are_chosen_anew(tmp_path):
    recipe, _ = for_other_data(read_recipe("shapes/panoptic_fpn"), {"data.source": str(write(tmp_path / "d"))}, "it")
    assert not {"short", "anchor_sizes", "detections", "min_stuff_area"} & set(recipe.model.options)
    assert (recipe.augment.crop, recipe.model.options["fpn_channels"]) == (-1, 96)


@pytest.mark.parametrize("crowds", [False, True])
def test_a_training_without_an_object_says_so(tmp_path, capsys, crowds):
    data, note = write(tmp_path / "data", ("ball",), ("sky",), 4), "the training images have no object to learn"
    file = next((data / "annotations").glob("*.json"))
    content = json.loads(file.read_text())
    things = {row["id"] for row in content["categories"] if row["isthing"]}
    for segment in (s for row in content["annotations"] for s in row["segments_info"]):
        segment["iscrowd"] = int(crowds and segment["category_id"] in things)
    file.write_text(json.dumps(content))
    options = ["--model.options.heads", "2", "--model.options.layers", "1", "--model.options.queries", "6"]
    arguments = ["train", "--model", "maskformer", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*arguments, *QUICK, *options]) == 0
    assert (note in capsys.readouterr().out) == crowds


def test_a_training_that_finds_nothing_says_what_the_threshold_took_away(tmp_path, capsys):
    data = write(tmp_path / "data", ("ball",), ("sky",), 4)
    options = ["--model.options.heads", "2", "--model.options.layers", "1", "--model.options.queries", "6"]
    options += ["--evaluate.decode.score-threshold", "1"]
    arguments = ["train", "--model", "maskformer", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*arguments, *QUICK, *options]) == 0
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["All"]["pq"] == 0
    (note,) = [line for line in said.splitlines() if line.startswith("note  ")]
    assert "threshold" in note  # so many segments pass it, or none is predicted whatever it is
