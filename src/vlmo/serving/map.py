"""The map of a service's index, drawn when it is first asked for, and again when the index has changed."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from vlmo.retrieval import Encoder, Index
from vlmo.retrieval.map import Map, draw_map


class MapDrawer:
    """Draws one map at a time, on a thread that ends with the process, and keeps the last. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawn: Future[Map] | None = None
        # Version of the index when the map was begun.
        self._version: tuple[int, ...] = ()
        self._step = ""

    def ask(self, encoder: Encoder, index: Index) -> Map | str:
        """Return the map, or what is being done for it. While an index grows, its map stays.

        Raises:
            ValueError: As `draw_map`; ModuleNotFoundError too. The error stays until the index changes.
        """
        with self._lock:
            drawn = self._drawn
            version = index.version
            is_old = drawn is not None and drawn.done() and version != self._version
            if drawn is None or (is_old and (index.complete or drawn.exception() is not None)):
                self._drawn = drawn = Future()
                self._version = version
                self._step = "starting"
                threading.Thread(
                    target=self._draw, args=[drawn, encoder, index], name="vlmo-map", daemon=True
                ).start()
        return drawn.result() if drawn.done() else self._step

    def _draw(self, drawn: Future[Map], encoder: Encoder, index: Index) -> None:
        try:
            drawn.set_result(
                draw_map(encoder, index, on_step=lambda step: setattr(self, "_step", step))
            )
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks
            drawn.set_exception(error)
