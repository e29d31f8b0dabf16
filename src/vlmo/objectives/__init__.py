"""What is trained: pure losses, and the modules that hold a model and name its losses."""
