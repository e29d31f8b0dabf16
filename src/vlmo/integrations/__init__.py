"""Collators for transformers' Trainer; adapters for its pipelines, sentence-transformers, open_clip, clip_benchmark."""
