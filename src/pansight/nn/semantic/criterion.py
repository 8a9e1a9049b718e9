"""The loss of a map of class logits: what every semantic head is trained by, chosen by an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pansight.errors import PansightError, choice_error
from pansight.nn.semantic.borders import Borders
from pansight.ops.semantic.losses import (
    dice,
    hard_pixels,
    lovasz_softmax,
    ohem,
    pixel_cross_entropy,
    pixel_focal,
    weights_of,
)
from pansight.types import IGNORE, Batch, LabelSpace

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
    border_weight, border_sigma: w₀ and σ of U-Net's weight map (ops/semantic/border.py), which is added to the weights
    of the classes; cross_entropy is then divided by the number of labelled pixels. Where two things of a class touch,
    the pixels of one of them along the border become background first: the largest stuff of the image, or unknown where
    it has none. things, stuff: the categories of a truth that are the one and the other.
    hard_share, hard_rounded_up: the share of an image's pixels that hard_pixels keeps, and how its number is rounded.
    Where nothing is labelled the loss is a zero with a gradient.
    Raises PansightError for an unknown loss, for weights that no term of it can use, and for weights of borders where
    there are no things.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] = (),
        border_weight: float = 0.0,
        border_sigma: float = 5.0,
        classes: int | None = None,
        things: Sequence[int] = (),
        stuff: Sequence[int] = (),
        hard_share: float = HARD_SHARE,
        hard_rounded_up: bool = False,
    ):
        super().__init__()
        self.terms = loss_terms(loss)
        self.hard_share, self.hard_rounded_up = hard_share, hard_rounded_up
        self.borders = Borders(border_weight, border_sigma, tuple(things), tuple(stuff)) if border_weight else None
        if border_weight and not things:
            found = "stuff only"
            raise PansightError(where="border_weight", expected="things among the classes", found=found)
        if isinstance(class_weights, str):
            hint = "training counts what a rule says from all of its images"
            raise PansightError(where="class_weights", expected="numbers", found=f"{class_weights!r:.80}", hint=hint)
        if border_weight and not set(self.terms) & set(OF_PIXELS):
            expected = f"one of the losses {', '.join(OF_PIXELS)}"
            raise PansightError(where="border_weight", expected=expected, found=f"loss {loss}")
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
        if self.borders is not None:
            target = self.borders.separated(batch, target)
        labelled = target != IGNORE
        return {
            "weights": labelled.sum() if self.class_weights is None else weights_of(target, self.class_weights).sum(),
            "pixels": labelled.sum(),
            "labelled_images": labelled.flatten(1).any(1).sum(),
        }

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        totals: Mapping[str, float | Tensor] | None = None,
        batch: Batch | None = None,
        pixel_weights: Tensor | None = None,
    ) -> Tensor:
        """logits float (B, C, H, W), target int64 (B, H, W) with IGNORE where nothing is known → scalar float32.

        totals: the sums of `counts` over the parts of the step; None: this is the whole of it.
        batch: whose truths say how large each image is without its padding, which `hard_pixels` leaves out.
        pixel_weights: float (B, H, W), by which the loss of each pixel is multiplied; they change no divisor, and mean
        nothing to the terms that look at regions.
        """
        logits = logits.float()
        if totals is None:
            assert batch is not None, "counts or the batch that they are counted from"
            totals = self.counts(batch, target)
        border: Tensor | None = None
        if self.borders is not None:
            assert batch is not None, "the batch whose things have borders"
            target = self.borders.separated(batch, target)
            border = self.borders.weights(batch, target)
        loss = logits.new_zeros(())
        for term in self.terms:
            loss = loss + self._term(term, logits, target, totals, batch, border, pixel_weights)
        return loss

    def _term(
        self,
        term: str,
        logits: Tensor,
        target: Tensor,
        totals: Mapping[str, float | Tensor],
        batch: Batch | None,
        border: Tensor | None,
        pixel_weights: Tensor | None,
    ) -> Tensor:
        if term in ("cross_entropy", "focal"):
            of_pixels = pixel_cross_entropy if term == "cross_entropy" else pixel_focal
            losses = of_pixels(logits, target, self.class_weights)
            if border is not None:
                losses = losses + border * of_pixels(logits, target)
            if pixel_weights is not None:
                losses = losses * pixel_weights
            if border is None and term == "cross_entropy":
                return losses.sum() / _least(totals["weights"], LEAST)
            return losses.sum() / _least(totals["pixels"], 1)
        sizes = [target.shape[1:]] * len(target) if batch is None else [truth.size for truth in batch.truths]
        borders, weights = ([None] * len(target) if maps is None else maps for maps in (border, pixel_weights))
        images = (
            self._of_image(term, z[:, :h, :w], y[:h, :w], *(None if m is None else m[:h, :w] for m in (b, p)))
            for z, y, b, p, (h, w) in zip(logits, target, borders, weights, sizes, strict=True)
        )
        return torch.stack(list(images)).sum() / _least(totals["labelled_images"], 1)

    def _of_image(
        self, term: str, logits: Tensor, target: Tensor, border: Tensor | None, pixel_weights: Tensor | None
    ) -> Tensor:
        """A term of one image. logits float32 (C, H, W), target int64 (H, W), both weights float32 (H, W) → scalar."""
        labelled = target != IGNORE
        losses = pixel_cross_entropy(logits[None], target[None], self.class_weights)[0]  # (H, W)
        if border is not None:
            losses = losses + border * pixel_cross_entropy(logits[None], target[None])[0]
        if pixel_weights is not None:
            losses = losses * pixel_weights
        if term == "hard_pixels":
            return hard_pixels(losses, self.hard_share, self.hard_rounded_up)
        probabilities = logits.softmax(0)[:, labelled].T  # (P, C)
        classes = target[labelled]  # (P,)
        if term == "ohem":
            of_truth = probabilities.gather(1, classes[:, None])[:, 0]
            return ohem(losses[labelled], of_truth, len(classes) // OHEM_SHARE)
        return dice(probabilities, classes) if term == "dice" else lovasz_softmax(probabilities, classes)


def _least(total: float | Tensor, least: float) -> float | Tensor:
    return total.clamp(min=least) if isinstance(total, Tensor) else max(least, total)


def criterion_of(
    labels: LabelSpace,
    loss: str,
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
) -> Criterion:
    """The criterion of a network whose logits are the classes of a label space, things and stuff in its order."""
    things, stuff = ([category.id for category in kind] for kind in (labels.things, labels.stuff))
    return Criterion(loss, class_weights, border_weight, border_sigma, len(labels), things, stuff)
