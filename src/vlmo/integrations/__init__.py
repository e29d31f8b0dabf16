"""Registration with transformers, data collators; sentence-transformers."""
