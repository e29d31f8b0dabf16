"""Pairs, images or texts out of tar shards and parquet files, read as streams with an exact cursor."""

from vlmo.data.examples import StreamExamples
from vlmo.data.stream.lanes import Source, open_sources
from vlmo.data.stream.loader import StreamConfig, StreamLoader, validate_lanes

__all__ = ["Source", "StreamConfig", "StreamExamples", "StreamLoader", "open_sources", "validate_lanes"]
