"""Adapters for transformers pipelines, sentence-transformers, open_clip and clip_benchmark."""
