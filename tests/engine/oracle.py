"""A model that knows the truth and says it badly: what evaluation is tested with, for every kind of result."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pansight.data.dataset import Dataset
from pansight.nn.input import Input
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import boxes_of_ids, semantic_map
from pansight.types import IGNORE, Instances, Prediction, Sample


class Seen(NamedTuple):
    images: Tensor


class Oracle(nn.Module):
    """kind: semantic, boxes or masks. skill: the share of classes or objects that it names right."""

    def __init__(self, dataset: Dataset, kind: str, skill: float, seed: int = 0):
        super().__init__()
        self.labels, self.kind, self.skill, self.seed = dataset.labels, kind, skill, seed
        self.input = Input(ResizeRule(0, 0, 1))
        samples = [dataset[index] for index in range(len(dataset))]
        self.known = {self.key(sample.image): (index, sample) for index, sample in enumerate(samples)}
        self.runs = 0

    @staticmethod
    def key(image: Tensor) -> int:
        return hash(image.contiguous().numpy().tobytes())

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Seen:
        self.runs += len(images)
        return Seen(images)

    def decode(self, outputs: Seen, sizes: list[tuple[int, int]]) -> list[Prediction]:
        return [self.answer(*self.known[self.key(image)]) for image in outputs.images]

    def answer(self, index: int, sample: Sample) -> Prediction:
        rng = np.random.default_rng((self.seed, index))
        if self.kind == "semantic":
            found = semantic_map(sample.truth, range(len(self.labels)))
            wrong = torch.from_numpy(rng.random(found.shape) > self.skill)
            found[wrong] = torch.from_numpy(rng.integers(0, len(self.labels), found.shape))[wrong]
            found[:2] = IGNORE
            return Prediction(semantic=found)
        things = [s for s in sample.truth.segments if self.labels[s.category].is_thing]
        numbers = torch.tensor([s.id for s in things], dtype=torch.int64)
        masks = torch.stack([sample.truth.ids == s.id for s in things]) if things else None
        right = rng.random(len(things)) < self.skill
        labels = [s.category if ok else (s.category + 1) % 3 for s, ok in zip(things, right)]
        scores = 0.3 + 0.6 * rng.random(len(things)) + 0.1 * right
        order = np.argsort(-scores)
        boxes = boxes_of_ids(sample.truth.ids, numbers)[order]
        kept = masks[order] if self.kind == "masks" and masks is not None else None
        if self.kind == "masks" and kept is None:
            kept = torch.zeros((0, *sample.truth.size), dtype=torch.bool)
        result = torch.tensor(labels, dtype=torch.int64)[order], torch.from_numpy(scores[order]).float()
        return Prediction(instances=Instances(boxes, *result, kept))
