"""Registration with transformers, examples for its Trainer, sentence-transformers and LanceDB."""
