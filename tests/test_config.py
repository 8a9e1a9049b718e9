"""Settings: TOML and dotted keys in, an equal file out, every mistake named."""

from __future__ import annotations

import pytest

from pansight.config import Config, TrainConfig, override, read_config
from pansight.errors import PansightError


def test_file_round_trip(tmp_path):
    config = override(
        Config(),
        {
            "train": {"steps": 7, "freeze": ["backbone", "fpn"], "lr": 1},
            "model.options.anchor_sizes": "[8, 16]",
            "model.options.roi_op": "pool",
            "augment.scale": "0.5,2",
        },
    )
    assert config.train.freeze == ("backbone", "fpn")
    assert config.train.lr == 1.0
    assert isinstance(config.train.lr, float)
    assert config.model.options == {"anchor_sizes": [8, 16], "roi_op": "pool"}
    assert config.augment.scale == (0.5, 2.0)
    config.save(tmp_path / "config.toml", "made by a test\ntwice")
    assert (tmp_path / "config.toml").read_text().startswith("# made by a test\n# twice\n")
    assert read_config(tmp_path / "config.toml") == config


def test_overrides_merge_options_and_leave_the_original():
    first = override(Config(), {"data": {"options": {"count": 3, "seed": 1}}})
    second = override(first, {"data.options.seed": "2"})
    assert first.data.options == {"count": 3, "seed": 1}
    assert second.data.options == {"count": 3, "seed": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.stepz": 1}, r"train.stepz: unknown key 'stepz' \(did you mean 'steps'\?\); known: steps, batch_size"),
        ({"model.first": "a"}, r"model.first: unknown key 'first' \(did you mean 'first_recipe'\?\); known: name"),
        ({"trian": {"steps": 1}}, r"trian.steps: unknown key 'trian' \(did you mean 'train'\?\); known: model, data"),
        ({"train": 3}, r"train: expected settings as train.NAME, found 3"),
        ({"train.steps": "many"}, r"train.steps: expected a whole number, found 'many'"),
        ({"train.steps": 1.5}, r"train.steps: expected a whole number, found 1.5"),
        ({"train.steps": True}, r"train.steps: expected a whole number, found True"),
        ({"train.lr": "nan"}, r"train.lr: expected a number, found 'nan'"),
        ({"train.steps": -1}, r"train.steps: expected 0 or more, found -1"),
        ({"train.channels_last": "maybe"}, r"train.channels_last: expected true or false, found 'maybe'"),
        ({"train.schedule": "linear"}, r"unknown train.schedule 'linear'; known: constant, cosine, poly, step"),
        ({"train.freeze": 3}, r"train.freeze: expected a text, found 3"),
        ({"train.milestones": [0.9, 0.5]}, r"train.milestones: expected rising shares"),
        ({"train.steps.more": 1}, r"train.steps.more: unknown key; train.steps is a single value"),
        ({"augment.scale": [2, 1]}, r"augment.scale: expected two positive factors"),
        ({"augment.hflip": 1.5}, r"augment.hflip: expected a probability, found 1.5"),
        ({"model.options": 3}, r"model.options: expected options as model.options.NAME, found 3"),
        ({"evaluate.precision": "int4"}, r"unknown evaluate.precision 'int4'"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(PansightError, match=message):
        override(Config(), values)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(PansightError, match=r"recipe.toml: no such file"):
        read_config(path)
    path.write_text("[train\n")
    with pytest.raises(PansightError, match=r"recipe.toml: expected TOML"):
        read_config(path)
    path.write_text("[train]\nstepz = 3\n")
    with pytest.raises(PansightError, match=r"recipe.toml: train.stepz: unknown key"):
        read_config(path)


def test_every_field_is_documented():
    import ast
    import inspect

    from pansight import config

    for node in ast.parse(inspect.getsource(config)).body:
        if not isinstance(node, ast.ClassDef) or node.name == "Config":
            continue
        for statement, following in zip(node.body, node.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{node.name}: {ast.unparse(statement)}"
    assert TrainConfig().steps == 0


def test_the_conventions_of_miou_are_those_of_the_metric():
    from pansight.config import MIOU
    from pansight.metrics.semantic_iou import CONVENTIONS

    assert MIOU == CONVENTIONS


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\nsteps = 5\n")
    assert read_config(path).train.steps == 5
