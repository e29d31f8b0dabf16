"""Registration with transformers, pipelines and data collators; sentence-transformers."""
