"""Embeds images with Ray Data, on this machine or on a cluster.

Files and shards go to actors that hold a model each; what they embed streams to this process, which alone writes the
tables. Every machine must see the model folder and the inputs under the same paths.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from vlmo.folder import JsonObject
from vlmo.retrieval.embedding import Batch, Work, embed_works
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.sources import Reader

# CPUs that an actor asks for, so that two of them leave some for Ray's own tasks on a machine of
# two.
_SHARE = 0.5


def embed_on_ray(
    works: Iterable[Work],
    encoder: Encoder,
    *,
    reader: Reader,
    batch: int,
    workers: int,
    **_: object,
) -> Iterator[Batch]:
    """Do what `embed_works` does in some actors of a Ray cluster, each with the model, but without a lookup.

    The cluster is the one that this process has joined, that `RAY_ADDRESS` names, or a new one on this machine.
    """
    items = [{"work": pickle.dumps(work)} for work in works]
    if not items:
        return
    device = encoder.device.partition(":")[0]
    settings: dict[str, object] = {
        "engine": encoder.engine,
        "precision": encoder.precision,
        "device": device,
    }
    settings |= {"folder": str(encoder.folder.absolute()), "reader": reader, "batch": batch}
    with _cluster(workers):
        # A block a work, so that a shard goes to whichever actor is free.
        batches = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers),
            fn_constructor_kwargs=settings,
            num_cpus=_SHARE,
            num_gpus=1 if device == "cuda" else None,
        )
        tables: Iterator[Any] = iter(batches.iter_batches(batch_size=None, batch_format="pyarrow"))
        for table in tables:
            yield from map(pickle.loads, table["batch"].to_pylist())


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    ours = not ray.is_initialized()
    if ours:
        options: JsonObject = {"log_to_driver": False, "logging_level": logging.WARNING}
        if "RAY_ADDRESS" not in os.environ:
            options |= {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers)}
        ray.init(**options)
    context = DataContext.get_current()
    bars = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


class _Actor:
    def __init__(self, *, folder: str, reader: Reader, batch: int, **settings: Any) -> None:
        import torch

        # Several actors share a machine: more threads would only wait for each other.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._encoder = Encoder(folder, **settings)
        self._reader = reader
        self._batch = batch

    def __call__(self, row: pa.Table) -> Iterator[pa.Table]:
        """Yield the batches of a work."""
        work: Work = pickle.loads(row["work"][0].as_py())
        for found in embed_works([work], self._encoder, reader=self._reader, batch=self._batch):
            yield pa.table({"batch": pa.array([pickle.dumps(found)], pa.large_binary())})
