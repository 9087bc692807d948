"""From an image to a model's input: deterministic in evaluation, varied in training."""
