"""How tools ask a model: with a least score of their own."""

from __future__ import annotations

from pansight.engine.infer import known_decode_options
from pansight.engine.predict import Photo, Predictor
from pansight.interop.photo import PhotoPrediction


def predict_above(predictor: Predictor, photo: Photo, score: float | None) -> PhotoPrediction:
    """The prediction in which the model's own threshold of scores, if it has one, is `score`; None: as it is."""
    if score is None or "score_threshold" not in known_decode_options(predictor.model):
        return predictor.predict(photo)
    return predictor.predict(photo, score_threshold=score)
