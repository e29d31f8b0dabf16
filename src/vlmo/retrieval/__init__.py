"""Search of image collections: an index of vectors, and a model that reranks the best ones."""

from vlmo.retrieval.building import BuildReport, build_index
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.index import Hit, Index
from vlmo.retrieval.search import Searcher, SearchResult

__all__ = ["BuildReport", "Encoder", "Hit", "Index", "SearchResult", "Searcher", "build_index"]
