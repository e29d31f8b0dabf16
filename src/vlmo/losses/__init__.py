"""Losses, sampling of hard negatives and the gradient cache, as pure functions."""
