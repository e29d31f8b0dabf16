"""Pairs, pictures or texts out of tar shards and parquet files, read as streams with an exact cursor."""

from vlmo.data.stream.examples import StreamExamples
from vlmo.data.stream.loader import StreamConfig, StreamLoader, check_lanes
from vlmo.data.stream.shards import Source, open_sources

__all__ = ["Source", "StreamConfig", "StreamExamples", "StreamLoader", "check_lanes", "open_sources"]
