"""The loss of a map of class logits: what every semantic head is trained by, chosen by an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pansight.errors import PansightError, choice_error
from pansight.ops.semantic.losses import (
    dice,
    hard_pixels,
    lovasz_softmax,
    ohem,
    pixel_cross_entropy,
    pixel_focal,
    weights_of,
)
from pansight.types import IGNORE, Batch

LOSSES = ("cross_entropy", "focal", "dice", "lovasz", "ohem", "hard_pixels")
"""The terms that may be added up: ``cross_entropy+lovasz``."""
OF_PIXELS = ("cross_entropy", "focal", "ohem", "hard_pixels")
"""Those that weights of classes and pixels have a meaning for: the others look at regions."""

HARD_SHARE = 0.2
"""The share of an image's pixels that `hard_pixels` keeps, as in the Cityscapes settings of Panoptic-DeepLab."""
OHEM_SHARE = 12
"""`ohem` keeps at least one in so many labelled pixels: HRNet's 131,072 of 3 · 512 · 1024 pixels on a device."""

LEAST = 1e-8
"""What a sum of weights is at least, where one is divided by it."""


def loss_terms(loss: str) -> tuple[str, ...]:
    """``"cross_entropy + lovasz"`` → both names. Raises PansightError for an unknown one, or one given twice."""
    terms = tuple(term.strip() for term in loss.split("+"))
    for term in terms:
        if term not in LOSSES:
            raise choice_error("loss", f"{term:.80}", LOSSES)
    if len(set(terms)) < len(terms):
        raise PansightError(where="loss", expected="each of its terms once", found=f"{loss:.80}")
    return terms


class Criterion(nn.Module):
    """The sum of the chosen terms for a map of class logits. It has no parameters and no place in a state dict.

    Each term is a sum divided by a count of the truth (`counts`), so that a step in parts is the same step as in one:
    cross_entropy by the sum of the weights of its pixels, which is their number without class weights (PyTorch's mean);
    focal by the number of labelled pixels; dice, lovasz, ohem and hard_pixels are computed for each image by itself
    and divided by the number of images that have a labelled pixel. The published definitions of these four look at a
    whole batch, and agree where it holds one image.

    class_weights: one weight for each class, or none; classes: how many there must be.
    Where nothing is labelled the loss is a zero with a gradient.
    Raises PansightError for an unknown loss, and for weights that no term of it can use.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] = (),
        border_weight: float = 0.0,
        border_sigma: float = 5.0,
        classes: int | None = None,
    ):
        super().__init__()
        self.terms = loss_terms(loss)
        if border_weight:
            raise PansightError(where="border_weight", expected="0", found=border_weight)
        if len(class_weights):
            if classes is not None and len(class_weights) != classes:
                expected = f"one weight for each of {classes} classes"
                raise PansightError(where="class_weights", expected=expected, found=f"{len(class_weights)}")
            if not set(self.terms) & set(OF_PIXELS):
                expected = f"one of the losses {', '.join(OF_PIXELS)}"
                raise PansightError(where="class_weights", expected=expected, found=f"loss {loss}")
        weights = torch.tensor([float(w) for w in class_weights]) if len(class_weights) else None
        self.register_buffer("class_weights", weights, persistent=False)

    @torch.no_grad()
    def counts(self, batch: Batch, target: Tensor) -> dict[str, Tensor | float]:
        """What `forward` divides by, from the truth alone. target int64 (B, H, W)."""
        labelled = target != IGNORE
        return {
            "weights": weights_of(target, self.class_weights).sum(),
            "pixels": labelled.sum(),
            "labelled_images": labelled.flatten(1).any(1).sum(),
        }

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        totals: Mapping[str, float | Tensor] | None = None,
        batch: Batch | None = None,
    ) -> Tensor:
        """logits float (B, C, H, W), target int64 (B, H, W) with IGNORE where nothing is known → scalar float32.

        totals: the sums of `counts` over the parts of the step; None: this is the whole of it.
        batch: whose truths say how large each image is without its padding, which `hard_pixels` leaves out.
        """
        logits = logits.float()
        if totals is None:
            assert batch is not None, "counts or the batch that they are counted from"
            totals = self.counts(batch, target)
        loss = logits.new_zeros(())
        for term in self.terms:
            loss = loss + self._term(term, logits, target, totals, batch)
        return loss

    def _term(
        self,
        term: str,
        logits: Tensor,
        target: Tensor,
        totals: Mapping[str, float | Tensor],
        batch: Batch | None,
    ) -> Tensor:
        if term == "cross_entropy":
            return pixel_cross_entropy(logits, target, self.class_weights).sum() / _least(totals["weights"], LEAST)
        if term == "focal":
            return pixel_focal(logits, target, self.class_weights).sum() / _least(totals["pixels"], 1)
        sizes = [target.shape[1:]] * len(target) if batch is None else [truth.size for truth in batch.truths]
        images = (
            self._of_image(term, z[:, :h, :w], y[:h, :w]) for z, y, (h, w) in zip(logits, target, sizes, strict=True)
        )
        return torch.stack(list(images)).sum() / _least(totals["labelled_images"], 1)

    def _of_image(self, term: str, logits: Tensor, target: Tensor) -> Tensor:
        """A term of one image. logits float32 (C, H, W), target int64 (H, W) → scalar."""
        labelled = target != IGNORE
        losses = pixel_cross_entropy(logits[None], target[None], self.class_weights)[0]  # (H, W)
        if term == "hard_pixels":
            return hard_pixels(losses, HARD_SHARE)
        probabilities = logits.softmax(0)[:, labelled].T  # (P, C)
        classes = target[labelled]  # (P,)
        if term == "ohem":
            of_truth = probabilities.gather(1, classes[:, None])[:, 0]
            return ohem(losses[labelled], of_truth, len(classes) // OHEM_SHARE)
        return dice(probabilities, classes) if term == "dice" else lovasz_softmax(probabilities, classes)


def _least(total: float | Tensor, least: float) -> float | Tensor:
    return total.clamp(min=least) if isinstance(total, Tensor) else max(least, total)
