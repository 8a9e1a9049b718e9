"""The optimizer: parameter groups, frozen parameters, learning rate schedules, moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pansight.config import TrainConfig
from pansight.engine.optim import (
    MovingAverage,
    averaged,
    freeze,
    lr_factor,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
    settled,
)
from pansight.errors import PansightError
from pansight.models import MODELS
from pansight.models.contract import RateGroups
from pansight.nn.queries.annealing import MaskAnnealing


class ViT(nn.Module):
    """The names of a timm ViT with three blocks behind our Backbone, and a head with learned queries."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.features = features = nn.Module()
        features.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        features.patch_embed = nn.Conv2d(3, 2, 1)
        features.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        features.norm = nn.LayerNorm(2)
        self.q = nn.Embedding(5, 2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.head = nn.Linear(2, 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 4)
        self.norm = nn.LayerNorm((2, 2))  # a normalisation layer whose weight is no vector
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.head.weight


def names_in(model: nn.Module, group: dict) -> set[str]:
    return {n for n, p in model.named_parameters() if any(p is q for q in group["params"])}


def test_groups_cover_each_trained_parameter_once():
    model = Net()
    freeze(model, ["backbone.0"])
    groups = parameter_groups(model, TrainConfig(lr=0.1, backbone_lr_factor=0.5, weight_decay=0.2))
    every = [id(p) for g in groups for p in g["params"]]
    assert len(every) == len(set(every))
    assert set(every) == {id(p) for p in model.parameters() if p.requires_grad}
    found = {(g["lr"], g["weight_decay"]): names_in(model, g) for g in groups}
    assert found == {
        (0.05, 0.0): {"backbone.1.weight", "backbone.1.bias"},
        (0.1, 0.2): {"head.weight"},
        (0.1, 0.0): {"head.bias", "norm.weight", "norm.bias", "tied.bias"},
    }


def test_biases_decay_on_request_but_norms_never():
    model = Net()
    groups = parameter_groups(model, TrainConfig(lr=0.1, decay="biases", weight_decay=0.2))
    decayed = {n for g in groups if g["weight_decay"] for n in names_in(model, g)}
    assert decayed == {"backbone.0.weight", "backbone.0.bias", "head.weight", "head.bias", "tied.bias"}
    groups = parameter_groups(model, TrainConfig(lr=0.1, decay="everything", weight_decay=0.2))
    assert {g["weight_decay"] for g in groups} == {0.2}


def test_embeddings_decay_only_with_everything():
    model = ViT()
    for decay, spared in (("weights", 4), ("biases", 4), ("everything", 0)):
        groups = parameter_groups(model, TrainConfig(lr=1.0, decay=decay, weight_decay=0.2))
        kept = {n for g in groups if not g["weight_decay"] for n in names_in(model, g)}
        embeddings = {"backbone.features.pos_embed", "q.weight", "relative_position_bias_table"}
        norm = {"backbone.features.norm.weight", "backbone.features.norm.bias"}
        assert (embeddings | norm <= kept) == bool(spared)
        assert ("head.bias" in kept) == (decay == "weights")
        assert "head.weight" not in kept


def test_layer_decay_counts_from_the_top_of_the_backbone():
    model = ViT()
    config = TrainConfig(lr=1.0, layer_decay=0.5, backbone_lr_factor=0.1)
    rates = MODELS["eomt"].rates
    groups = parameter_groups(model, config, rates)
    every = [id(p) for g in groups for p in g["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())  # each once
    rate = {n: g["lr"] for g in groups for n in names_in(model, g)}
    features = "backbone.features"
    expected = {"blocks.2.weight": 0.1, "blocks.1.weight": 0.05, "blocks.0.bias": 0.025, "pos_embed": 0.025}
    expected |= {"patch_embed.weight": 0.025, "norm.weight": 0.1}
    for name, value in expected.items():
        assert math.isclose(rate[f"{features}.{name}"], value), name
    assert rate["q.weight"] == rate["head.weight"] == 1.0
    assert {g["lr"] for g in parameter_groups(model, TrainConfig(lr=1.0))} == {1.0}
    other = r"train.layer_decay: expected a plain ViT .*, found another backbone"
    with pytest.raises(PansightError, match=other):
        parameter_groups(Net(), config, rates)
    with pytest.raises(PansightError, match=other):  # blocks that no entry speaks of, as EfficientNet's
        parameter_groups(model, config, MODELS["mask2former"].rates)


def test_offsets_learn_slowly():
    model = nn.ModuleDict({"conv": nn.ModuleDict({"offset": nn.Linear(2, 2)}), "offsets": nn.Linear(2, 2)})
    groups = parameter_groups(model, TrainConfig(lr=1.0), RateGroups(slow=r"conv\.offset\."))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert found == {"conv.offset.weight": 0.1, "conv.offset.bias": 0.1, "offsets.weight": 1.0, "offsets.bias": 1.0}


def test_open_values_are_plain_ones():
    config = settled(TrainConfig())
    found = config.backbone_lr_factor, config.layer_decay, config.weight_decay, config.clip_norm
    assert found == (1.0, 1.0, 1e-4, 0.0)
    assert settled(TrainConfig(clip_norm=0.1, weight_decay=0.0)).weight_decay == 0.0


def test_the_backbone_may_wait_and_warm_up_by_itself():
    config = TrainConfig(schedule="constant", warmup_steps=4, warmup_factor=0.0, backbone_delay=(4, 10), lr=2.0)
    assert [lr_factor(config, step, 0.0) for step in (0, 2, 4, 9)] == [0.0, 0.5, 1.0, 1.0]
    assert [lr_factor(config, step, 0.0, backbone=True) for step in (0, 3, 4, 9, 14)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    optimizer = make_optimizer(Net(), config)
    set_learning_rate(optimizer, config, 9, 0.0)
    rates = {g["name"].split(",")[0]: g["lr"] for g in optimizer.param_groups}
    assert rates == {"backbone": 1.0, "rest": 2.0}
    assert lr_factor(TrainConfig(warmup_steps=4), 2, 0.0) == lr_factor(TrainConfig(warmup_steps=4), 2, 0.0, True)


def test_freezing():
    model = Net()
    assert freeze(model, ["backbone"]) == [model.backbone]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        f"backbone.{k}.{w}" for k in (0, 1) for w in ("weight", "bias")
    }
    with pytest.raises(PansightError, match=r"no parameter's name starts with 'back'; the model has backbone, head, "):
        freeze(model, ["back"])
    freeze(model, ["head", "norm", "tied"])
    with pytest.raises(PansightError, match=r"something left to train"):
        parameter_groups(model, TrainConfig())


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"schedule": "constant"}, {0: 1.0, 50: 1.0, 99: 1.0}),
        ({"schedule": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0}),
        ({"schedule": "cosine", "final_lr_factor": 0.1}, {0: 1.0, 50: 0.55, 100: 0.1}),
        ({"schedule": "poly", "power": 2.0}, {0: 1.0, 50: 0.25, 100: 0.0}),
        ({"schedule": "step", "milestones": (0.5, 0.75)}, {49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01}),
        ({"schedule": "constant", "warmup_steps": 10, "warmup_factor": 0.1}, {0: 0.1, 5: 0.55, 10: 1.0}),
    ],
)
def test_schedules(settings, factors):
    config = TrainConfig(**settings)
    for step, factor in factors.items():
        assert math.isclose(lr_factor(config, step, step / 100), factor, abs_tol=1e-12), step


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizers_step(name):
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, lr=0.1))
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


def test_moving_average():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = MovingAverage(model, 0.5)
    model.weight.data.fill_(3.0)
    average.update(step=0)  # decay min(0.5, 1/10)
    assert math.isclose(average.average[0].item(), 0.1 * 1 + 0.9 * 3, rel_tol=1e-6)
    average.update(step=100)
    expected = 0.5 * 2.8 + 0.5 * 3
    assert math.isclose(average.average[0].item(), expected, rel_tol=1e-6)
    with averaged(average) as raw:
        assert math.isclose(model.weight.item(), expected, rel_tol=1e-6)
        assert raw is not None
        assert raw[0].item() == 3.0
    assert model.weight.item() == 3.0


def test_moving_average_of_statistics():
    """BatchNorm's mean and variance are averaged like weights; its counter and a schedule's state are the model's."""
    model = nn.Sequential(nn.BatchNorm2d(2), MaskAnnealing([0.0], [1.0]))
    norm, annealing = model
    average = MovingAverage(model, 0.5)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(3.0)
    norm.num_batches_tracked.fill_(7)
    annealing.probs.fill_(0.25)
    average.update(step=100)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    with averaged(average):
        assert norm.running_mean.tolist() == [1.0, 1.0]  # from 0
        assert norm.running_var.tolist() == [2.0, 2.0]  # from 1
        assert norm.num_batches_tracked.item() == 7
        assert annealing.probs.item() == 0.25
        saved = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(raw[name], value) for name, value in model.state_dict().items())

    resumed = nn.Sequential(nn.BatchNorm2d(2), MaskAnnealing([0.0], [1.0]))
    resumed.load_state_dict(saved)
    again = MovingAverage(resumed, 0.5)
    again.restore([tensor.detach() for tensor in average.raw])
    assert all(torch.equal(a, b) for a, b in zip(again.average, average.average, strict=True))
    assert all(torch.equal(raw[name], value) for name, value in resumed.state_dict().items())
