"""Pairs, images or texts out of tar shards and parquet files, read as streams with an exact cursor."""
