"""Objectives: pure losses, and modules that hold a model and return named losses."""
