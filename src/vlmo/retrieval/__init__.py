"""Search of image collections: an index of vectors, and a model that reranks the best ones."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.retrieval.building import BuildReport, build_index
    from vlmo.retrieval.encoder import Encoder
    from vlmo.retrieval.filters import PhotoFilter
    from vlmo.retrieval.index import Hit, Index
    from vlmo.retrieval.search import Searcher, SearchResult

__all__ = ["BuildReport", "Encoder", "Hit", "Index", "PhotoFilter", "SearchResult", "Searcher", "build_index"]

__getattr__ = lazy_names(
    __name__,
    {
        ".building": "BuildReport build_index",
        ".encoder": "Encoder",
        ".filters": "PhotoFilter",
        ".index": "Hit Index",
        ".search": "SearchResult Searcher",
    },
)
