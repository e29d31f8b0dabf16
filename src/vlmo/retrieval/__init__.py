"""Search among people's own pictures: an index of their vectors, and a model that looks at the best ones."""

from vlmo.retrieval.building import BuildReport, IndexSettings, build_index
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.hits import Hit, SearchResult
from vlmo.retrieval.index import Index
from vlmo.retrieval.search import Searcher

__all__ = ["BuildReport", "Encoder", "Hit", "Index", "IndexSettings", "SearchResult", "Searcher", "build_index"]
