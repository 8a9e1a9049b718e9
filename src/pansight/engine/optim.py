"""The optimizer: frozen parameters, parameter groups, learning rate schedules as pure functions, a moving average."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pansight.config import TrainConfig
from pansight.engine.clock import warmup_at
from pansight.errors import PansightError
from pansight.models.contract import RateGroups, TrainingDefaults
from pansight.nn.statistics import running_statistics

CHOSEN_BY_MODEL = ("backbone_lr_factor", "layer_decay", "weight_decay", "clip_norm")
"""Settings in which -1 asks for the model's own value."""


def settled(config: TrainConfig) -> TrainConfig:
    """`config` with the values of a model without customs of its own for those that were left open; without a choice of
    its own, evaluations may take any time.
    """
    common = TrainingDefaults()
    open_values = {n: getattr(common, n) for n in CHOSEN_BY_MODEL if getattr(config, n) == -1}
    return replace(config, **open_values, evaluate_share=max(config.evaluate_share, 0.0))


def freeze(model: nn.Module, prefixes: Sequence[str]) -> list[nn.Module]:
    """Stop training the parameters named by dotted prefixes; returns the modules that must stay in eval mode.

    "backbone" freezes ``backbone.*`` but not ``backbone2.*``; "fpn.lateral.0.weight" a single tensor.
    Raises PansightError for a prefix that no parameter has, listing the children of the model.
    """
    frozen: list[nn.Module] = []
    for prefix in prefixes:
        names = [n for n, _ in model.named_parameters() if n == prefix or n.startswith(prefix + ".")]
        if not names:
            known = ", ".join(name for name, child in model.named_children() if any(True for _ in child.parameters()))
            raise PansightError(
                f"no parameter's name starts with {prefix!r}", where="train.freeze", hint=f"the model has {known}"
            )
        for name in names:
            model.get_parameter(name).requires_grad_(False)
        frozen += [module for name, module in model.named_modules() if name == prefix]
    return frozen


SLOW = 0.1


def parameter_groups(
    model: nn.Module,
    config: TrainConfig,
    rates: RateGroups = RateGroups(),  # noqa: B008 (immutable)
) -> list[dict[str, Any]]:
    """Every parameter that is trained, exactly once, by its share of the learning rate and by whether it decays.

    rates: of the model's entry, which says what is backbone, block and embedding.
    ``decay`` "weights": normalisation layers and embeddings (both known by their type, some embeddings by their name)
    and other vectors and scalars, mostly biases, never decay; "biases": those do; "everything" leaves nothing out.
    Shares: `backbone_lr_factor` for the backbone, and for block i of its N ``layer_decay ** (N - 1 - i)``; what feeds
    the first block has that block's share, what is above the last 1; SLOW times that for what is slow. Empty groups are
    left out. Raises PansightError where nothing is left to train, or where `layer_decay` has no blocks to act on.
    """
    config = settled(config)
    norms = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm
    fixed = {
        id(p) for m in model.modules() if isinstance(m, (*norms, nn.Embedding)) for p in m.parameters(recurse=False)
    }
    depths = _depths([name for name, _ in model.named_parameters()], rates)
    if config.layer_decay != 1 and not (rates.block and any(re.match(rates.block, name) for name in depths)):
        raise PansightError(
            where="train.layer_decay", expected="a plain ViT of several blocks", found="another backbone"
        )
    groups: dict[tuple[bool, float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():  # a shared parameter comes once
        if parameter.requires_grad:
            # timm has normalisation layers of its own, which are known by their vectors alone
            weight = id(parameter) not in fixed and not name.endswith(rates.embeddings)
            weight = weight and (parameter.ndim > 1 or config.decay == "biases")
            backbone = name in depths
            share = config.backbone_lr_factor * config.layer_decay ** depths[name] if backbone else 1.0
            share *= SLOW if rates.slow and re.search(rates.slow, name) else 1.0
            groups.setdefault((backbone, share, weight or config.decay == "everything"), []).append(parameter)
    if not groups:
        raise PansightError(
            where="train.freeze", expected="something left to train", found=f"none beside {config.freeze}"
        )
    return [
        {
            "params": parameters,
            "name": f"{'backbone' if backbone else 'rest'}, {'decay' if decays else 'no decay'}, rate × {share:.4g}",
            "lr": config.lr * share,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (backbone, share, decays), parameters in groups.items()
    ]


def _depths(names: Sequence[str], rates: RateGroups) -> dict[str, int]:
    """Of each parameter of the backbone: how many blocks lie above its own."""
    backbone = [name for name in names if name.startswith(rates.backbone)]
    found = {name: match for name in backbone if rates.block and (match := re.match(rates.block, name))}
    last = max((int(match[1]) for match in found.values()), default=0)
    blocks = {name: int(found[name][1]) if name in found else 0 for name in backbone}
    return {name: 0 if name.startswith(rates.above_blocks) else last - block for name, block in blocks.items()}


def make_optimizer(
    model: nn.Module,
    config: TrainConfig,
    rates: RateGroups = RateGroups(),  # noqa: B008 (immutable)
) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over `parameter_groups`; each group keeps its peak learning rate as "peak_lr"."""
    groups = parameter_groups(model, config, rates)
    for group in groups:
        group["peak_lr"] = group["lr"]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")  # one pass over the weights; not on every device
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def lr_factor(config: TrainConfig, step: int, progress: float, backbone: bool = False) -> float:
    """The share of the peak learning rate at `step` (from 0). progress: the share of the run that is over, 0 … 1, by
    steps or by the clock, whichever is ahead.

    Warm-up multiplies the schedule, as in detectron2: linear from `warmup_factor` to 1 over `warmup_steps`.
    backbone: the backbone's share, which differs where `backbone_delay` is given.
    """
    progress = min(max(progress, 0.0), 1.0)
    low = config.final_lr_factor
    if config.schedule == "cosine":
        factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "poly":
        factor = low + (1 - low) * (1 - progress) ** config.power
    elif config.schedule == "step":
        factor = config.gamma ** sum(progress >= m for m in config.milestones)
    else:
        factor = 1.0
    at, start, length = warmup_at(config, step, progress, backbone)
    if at < start:
        return 0.0
    if at < start + length:
        factor *= config.warmup_factor + (1 - config.warmup_factor) * (at - start) / length
    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, progress: float) -> None:
    """Every group's rate at `step`, by its peak rate and `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_factor(config, step, progress, group["name"].startswith("backbone"))


class MovingAverage:
    """Exponential moving average of the trained parameters and of the running statistics of BatchNorm.

    The statistics are averaged because those of the weights as they stand do not fit their average. All other buffers
    (counters, constants, what follows a schedule) are the model's own. The decay rises with the steps,
    min(decay, (1 + n) / (10 + n)), so that a short run is not held back by its start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        trained = [p for p in model.parameters() if p.requires_grad]
        self.raw = trained + [s for s in running_statistics(model) if s.is_floating_point()]
        self.average = [tensor.detach().clone() for tensor in self.raw]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.average, [tensor.detach() for tensor in self.raw], step)

    def restore(self, raw: Sequence[Tensor]) -> None:
        """After loading a checkpoint, whose model file holds the averages: take them, then put the raw values back."""
        for average, own, tensor in zip(self.average, self.raw, raw, strict=True):
            average.copy_(own.detach())
            own.data.copy_(tensor)

    def into_model(self) -> None:
        """The average becomes the model's weights and statistics."""
        for own, average in zip(self.raw, self.average, strict=True):
            own.data.copy_(average)


@contextmanager
def averaged(average: MovingAverage | None) -> Iterator[list[Tensor] | None]:
    """Inside, the model has the averaged weights and statistics; yields the raw ones.

    Does nothing where there is no average.
    """
    if average is None:
        yield None
        return
    raw = [tensor.detach().clone() for tensor in average.raw]
    try:
        average.into_model()
        yield raw
    finally:
        for own, tensor in zip(average.raw, raw, strict=True):
            own.data.copy_(tensor)
