"""What a sweep varies: reading it, refusing it in one line, variants, names, and the words of the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pansight.apps import cli, commands
from pansight.apps.sweeping import plan_of
from pansight.apps.sweeping.checks import check_plan
from pansight.apps.sweeping.grid import (
    LONGEST_NAME,
    Axis,
    Range,
    Variant,
    label_of,
    make_axis,
    parse_varied,
    runs_of,
    short_names,
    variants,
)
from pansight.apps.sweeping.measures import measures_of
from pansight.apps.sweeping.plan import Plan, check_numbers, check_same, read_plan, studies, write_plan
from pansight.apps.sweeping.runs import flags
from pansight.config import Config, flatten, override
from pansight.engine.assemble import check_model
from pansight.errors import PansightError


def values(text: str) -> list:
    axis = parse_varied(text)
    assert isinstance(axis, Axis)
    return [point.settings[axis.name] for point in axis.points]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=1e-4,1e-3", [1e-4, 1e-3]),
        ("train.lr = 1e-4 , 1e-3 ", [1e-4, 1e-3]),
        ("train.batch-size=4,8", [4, 8]),
        ("train.lr=0.1", [0.1]),
        ("model.backbone=resnet18,convnext_atto", ["resnet18", "convnext_atto"]),
        ("train.milestones=[0.5,0.8];[0.6,0.9]", [[0.5, 0.8], [0.6, 0.9]]),
        ("train.milestones=[0.5,0.8],[0.6,0.9]", [[0.5, 0.8], [0.6, 0.9]]),
        ("train.milestones=0.5,0.8;0.6", [[0.5, 0.8], [0.6]]),
        ("train.freeze=[],[backbone],[backbone, neck]", [[], ["backbone"], ["backbone", "neck"]]),
        ('train.freeze=[];["backbone"]', [[], ["backbone"]]),
        ("train.freeze=backbone,neck", [["backbone"], ["neck"]]),
        ("augment.rot90=true,false", [True, False]),
        ("model.options.class_hidden=[128, 64],[]", [[128, 64], []]),
        ("model.options.loss=focal,cross_entropy+lovasz", ["focal", "cross_entropy+lovasz"]),
        ('model.weights="a,b.pt",c.pt', ["a,b.pt", "c.pt"]),
    ],
)
def test_values_are_read(text, expected):
    found = values(text)
    if text.startswith("model.weights"):
        found = [value.strip('"') for value in found]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_ranges_are_read():
    assert parse_varied("train.lr=1e-5..1e-3:log") == Range("train.lr", 1e-5, 1e-3, True, False)
    assert parse_varied("train.batch_size=64..256") == Range("train.batch_size", 64, 256, False, True)
    assert parse_varied("train.weight_decay=0..0.1") == Range("train.weight_decay", 0.0, 0.1, False, False)
    assert parse_varied("model.options.queries=50..100") == Range("model.options.queries", 50, 100, False, True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("train.lr", "--vary: expected KEY=VALUE"),
        ("=3", "--vary: expected KEY=VALUE"),
        ("train.lrr=1", "unknown key 'lrr' (did you mean 'lr'?)"),
        ("lr=1", "unknown key 'lr'"),
        ("train=1", "expected settings as train.NAME"),
        ("train.lr.x=1", "unknown key"),
        ("train.lr=", "at least one value"),
        ("train.lr=1,x", "expected a number, found 'x'"),
        ("train.lr=1,,2", "expected a number, found ''"),
        ("train.lr=1,1.0", "expected each value once"),
        ("train.lr=-1", "0 or more"),
        ("train.optimizer=adamw,adamx", "adamx"),
        ("train.seed=0,1", "--seeds"),
        ("train.milestones=[0.8,0.5]", "rising shares"),
        ("train.lr=1e-3..1e-5", "the lower end first"),
        ("train.lr=0..1:log", "above 0"),
        ("train.batch_size=1.5..3", "a whole number"),
        ("train.optimizer=1..2", "optimizer"),
    ],
)
def test_what_cannot_be_varied_is_one_line(text, complaint):
    with pytest.raises(PansightError) as caught:
        parse_varied(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bundles_change_settings_together():
    axis = make_axis("augmentation", {"none": {}, "flip": {"augment": {"hflip": 1}, "train.lr": "0.1"}})
    assert [point.label for point in axis.points] == ["none", "flip"]
    assert axis.points[1].settings == {"augment.hflip": 1.0, "train.lr": 0.1}
    with pytest.raises(PansightError, match="flop"):
        make_axis("augmentation", {"none": {}, "flip": {"augment.flop": 1}})
    with pytest.raises(PansightError, match="a table of settings"):
        make_axis("augmentation", {"none": 3})


def test_variants_are_every_combination_or_one_change_at_a_time():
    axes = [parse_varied("train.lr=1,2,3"), parse_varied("train.batch_size=4,8")]
    assert len(variants(axes)) == 6
    labels = [variant.label for variant in variants(axes, one_at_a_time=True)]
    assert labels == ["lr=1, batch_size=4", "lr=2, batch_size=4", "lr=3, batch_size=4", "lr=1, batch_size=8"]
    assert variants([]) == [Variant("", {})]
    with pytest.raises(PansightError, match=r"train\.lr twice"):
        variants([*axes, make_axis("both", {"a": {"train.lr": 5}})])


def test_names_are_short_where_they_are_clear():
    assert short_names(["train.lr", "model.backbone"]) == ["lr", "backbone"]
    assert short_names(["train.precision", "evaluate.precision", "train.lr"]) == [
        "train.precision",
        "evaluate.precision",
        "lr",
    ]


def test_names_of_runs_are_readable_safe_and_unlike_each_other():
    chosen = variants([parse_varied("model.backbone=resnet18,convnext_atto"), parse_varied("train.lr=0.0001")])
    names = [run.name for run in runs_of(chosen, (0, 1))]
    assert names == [
        "backbone=resnet18,lr=0.0001,seed=0",
        "backbone=convnext_atto,lr=0.0001,seed=0",
        "backbone=resnet18,lr=0.0001,seed=1",
        "backbone=convnext_atto,lr=0.0001,seed=1",
    ]
    odd = [Variant(label, {}) for label in ("a/../b", "a b", "A b", "a:b", "x" * 400, "x" * 401, "")]
    names = [run.name for run in runs_of(odd, (7,))]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name) <= LONGEST_NAME and "/" not in name and ":" not in name for name in names)
    assert names[-1] == "seed=7"


def test_values_that_look_alike_keep_labels_of_their_own():
    axis = make_axis("train.lr", [0.12345678, 0.12345679])
    assert len({point.label for point in axis.points}) == 2
    assert label_of([0.5, 0.8]) == "0.5+0.8"
    assert label_of([]) == "none"
    assert label_of("folder/weights.pt") == "weights.pt"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", 1e-5),
        ("train.evaluate_every", -1),
        ("augment.rot90", True),
        ("augment.rot90", False),
        ("train.milestones", [0.5, 0.8]),
        ("train.freeze", []),
        ("train.freeze", ["backbone"]),
        ("train.trackers", []),
        ("model.backbone", "resnet18"),
        ("model.weights", ""),
        ("model.options.class_hidden", [128, 64]),
        ("model.options.class_hidden", []),
        ("model.options.loss", "focal"),
        ("model.options.name", "1"),
        ("model.options.name", "true"),
        ("model.options.name", 'a "b" c'),
        ("model.options.flag", False),
        ("model.options.number", -0.5),
        ("evaluate.decode.task", "all"),
        ("data.options.things", ["a b", "c"]),
    ],
)
def test_a_setting_survives_the_command_line(key, value, monkeypatch):
    given: list[dict] = []
    monkeypatch.setattr(commands, "train", lambda *all: given.append(all[-1]) or commands.Run(Path(), {}))
    assert cli.main(["train", *flags(key, value)]) == 0
    assert flatten(override(Config(), given[0]).to_dict())[key] == value


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[train]\nsteps = 3\n")
    vary = ["train.milestones=[0.5,0.8];[0.6]", "model.backbone=resnet18,resnet34", "train.lr=1e-5..1e-3:log"]
    given = {"train.batch_size": "4", "model.options.x": "[1, 2]", "data": {"source": str(tmp_path)}}
    plan, folder = plan_of(recipe, vary, 3, "tpe", 12, None, given)
    assert folder is None
    assert plan.seeds == (0, 1, 2)
    assert plan.settings == {"train.batch_size": 4, "model.options.x": [1, 2], "data.source": str(tmp_path.resolve())}
    out = tmp_path / "sweep"
    write_plan(plan, out, "a heading\nof two lines")
    again, folder = read_plan(out)
    assert folder == out
    assert again == Plan(str(out / "recipe.toml"), plan.settings, plan.varied, plan.seeds, False, "tpe", 12)
    assert (out / "recipe.toml").read_text() == recipe.read_text()
    check_same(again, plan, out)
    write_plan(again, out, "once more")  # from the folder itself
    assert read_plan(out)[0] == again


def test_bundles_survive_the_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        "[sweep]\nseeds = [3, 5]\none_at_a_time = true\n[settings.train]\nlr = 0.1\n[vary]\n"
        '"train.batch_size" = [1, 2]\n[vary.kind.a]\n[vary.kind.b]\n"augment.hflip" = 1\n'
    )
    plan, folder = read_plan(path)
    assert folder is None
    assert plan.one_at_a_time
    assert plan.seeds == (3, 5)
    assert [run.name for run in plan.runs()][:3] == [
        "batch_size=1,kind=a,seed=3",
        "batch_size=2,kind=a,seed=3",
        "batch_size=1,kind=b,seed=3",
    ]
    write_plan(plan, tmp_path / "out", "")
    assert read_plan(tmp_path / "out")[0] == plan


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[sweep]\nseed = 1\n", "seed"),
        ("[sweep]\n[train]\nlr = 1\n", "train: expected the sections sweep, vary, settings and study"),
        ("[sweep]\nseeds = 0\n", "--seeds"),
        ("[sweep]\nseeds = [1, 1]\n", "--seeds"),
        ('[sweep]\nseeds = "many"\n', "--seeds"),
        ("[sweep]\nseeds = true\n", "--seeds"),
        ('[sweep]\nsearch = "grid"\n', "grid"),
        ("[sweep]\ntrials = -1\n", "--trials"),
        ("[sweep]\none_at_a_time = 1\n", "true or false"),
        ("[sweep]\n[settings]\n'train.lrr' = 1\n", "lrr"),
        ("[sweep]\n[vary]\n'train.lr' = 1\n", "a list of values"),
        ("[sweep]\n[vary]\n'train.lr' = []\n", "at least one value"),
        ("sweep = 3\n", "a section"),
    ],
)
def test_a_wrong_plan_is_one_line_with_its_file(tmp_path, text, complaint):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(PansightError) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.slow
def test_numbers_that_do_not_belong_together():
    axis = parse_varied("train.lr=1,2")
    for plan, complaint in [
        (Plan(varied=(axis,), trials=3), "--search tpe"),
        (Plan(varied=(axis,), search="tpe"), "--trials N"),
        (Plan(search="tpe", trials=3), "something to search over"),
        (Plan(varied=(axis,), search="tpe", trials=3, one_at_a_time=True), "a grid"),
    ]:
        with pytest.raises(PansightError, match=complaint):
            check_numbers(plan)
    with pytest.raises(PansightError, match="at most 10,000 runs"):
        Plan(varied=(parse_varied("train.lr=" + ",".join(map(str, range(2000)))),), seeds=tuple(range(6))).runs()
    with pytest.raises(PansightError, match="--search tpe --trials N draws from ranges"):
        Plan(varied=(parse_varied("train.lr=1..2"),)).runs()


def test_given_and_varied_at_once_is_refused():
    with pytest.raises(PansightError, match="expected a setting that is not given"):
        plan_of(None, ["train.lr=1,2"], settings={"train.lr": 3})
    with pytest.raises(PansightError, match="each setting once"):
        plan_of(None, ["train.lr=1,2", "train.lr=3"])


def test_the_seed_that_is_given_is_the_first():
    assert plan_of(None, ["train.lr=1,2"], 2, settings={"train.seed": 7})[0].seeds == (7, 8)
    assert plan_of(None, ["train.lr=1,2"], settings={"train.seed": 7})[0].seeds == (7,)


def test_another_sweep_in_the_folder_is_refused_and_more_values_are_not(tmp_path):
    plan = plan_of(None, ["train.lr=1,2"], 2, settings={"train.steps": 5})[0]
    more = plan_of(None, ["train.lr=1,2,3"], 3, settings={"train.steps": 5})[0]
    check_same(plan, more, tmp_path)
    for settings in ({"train.steps": 6}, {}, {"train.steps": 5, "train.batch_size": 2}):
        with pytest.raises(PansightError, match="as the sweep began"):
            check_same(plan, plan_of(None, ["train.lr=1,2"], 2, settings=settings)[0], tmp_path)
    with pytest.raises(PansightError, match="recipe"):
        check_same(plan, plan_of("shapes/panoptic_fpn", ["train.lr=1,2"], settings={"train.steps": 5})[0], tmp_path)


def test_unknown_targets_are_one_line(tmp_path):
    with pytest.raises(PansightError, match=r"unknown recipe or study 'shapes/panoptic_fnp'.*did you mean"):
        read_plan("shapes/panoptic_fnp")
    with pytest.raises(PansightError, match="no such file"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(PansightError, match="or the folder of a sweep"):
        read_plan(tmp_path)


STUDIES = {
    "studies/cityscapes_detr": 10,
    "studies/cityscapes_detr_repaired": 33,
    "studies/rare_shapes": 18,
    "studies/rare_camvid": 18,
    "studies/kernel_fusion": 1,
    "studies/coord": 12,
    "studies/dice_k": 18,
    "studies/upsnet_head": 1,
    "studies/roi_ops": 9,
    "studies/panoptic_fpn_joint": 4,
}
"""name → runs."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), STUDIES.items())
def test_the_shipped_studies(name, count):
    assert set(studies()) == set(STUDIES)
    head = studies()[name].read_text().split("\n[")[0]
    assert all(f"# {word}" in head for word in ("command", "hardware", "time", "measured"))
    assert f"pansight sweep {name}" in head or f"pansight study {name.removeprefix('studies/')}" in head
    plan, _ = read_plan(name)
    runs = plan.runs()
    assert len(runs) == count
    assert f"{count} run{'s' if count > 1 else ''}" in head
    assert plan.study.title.endswith("?")
    assert plan.study.columns
    rows = {run.variant for run in [*runs, *measures_of(plan.study, runs)]}
    assert set(plan.study.published.rows) <= rows
    for run in runs:
        recipe = plan.recipe or None
        config, _ = commands.training_settings(recipe, plan.settings | run.settings | {"data.source": "shapes"})
        check_model(config.model, config.evaluate.decode)
        for decode in plan.study.evaluate.values():
            check_model(config.model, {**config.evaluate.decode, **decode})


@pytest.mark.slow
def test_a_study_of_generated_shapes_can_start():
    """By the check of a sweep itself, which opens the data; the other studies need data of their own."""
    plan, _ = plan_of("studies/rare_shapes")
    check_plan(plan)
    for split, share in (("options", 0.02), ("validation_options", 0.5)):
        assert plan.settings[f"data.{split}.triangles"] == share


def test_the_full_grid_of_the_repaired_study():
    plan, _ = plan_of("studies/cityscapes_detr_repaired", one_at_a_time=False)
    assert len(plan.runs()) == 576
    assert Path(studies()["studies/cityscapes_detr_repaired"]).read_text().count("576 runs") == 1
