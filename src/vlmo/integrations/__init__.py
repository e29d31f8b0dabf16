"""Registration with transformers, examples for its Trainer, and sentence-transformers."""
