"""Search of image collections: an index of vectors, and a model that reranks the best ones."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.retrieval.building import BuildReport as BuildReport
    from vlmo.retrieval.building import build_index as build_index
    from vlmo.retrieval.encoder import Encoder as Encoder
    from vlmo.retrieval.hits import Hit as Hit
    from vlmo.retrieval.index import Index as Index
    from vlmo.retrieval.options import PhotoFilter as PhotoFilter
    from vlmo.retrieval.search import Searcher as Searcher
    from vlmo.retrieval.search import SearchResult as SearchResult

__getattr__, __all__ = lazy_names(__name__)
