"""What a model found in a photo, in the words of other tools; `PhotoPrediction.to_…` call these functions."""
