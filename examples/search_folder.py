"""Finds pictures by a text: python examples/search_folder.py MODEL_FOLDER PICTURE_FOLDER "a text"."""

import sys

from vlmo.retrieval import Encoder, Searcher, build_index

SHORTLIST = 16


def main(model_folder: str, picture_folder: str, query: str) -> None:
    """Prints the best pictures, best first: a shortlist by the dual encoder, ordered with the fusion encoder."""
    encoder = Encoder(model_folder)
    index = picture_folder.rstrip("/") + ".index"
    build_index(encoder, [picture_folder], out=index)  # embeds what is new since the last time
    for hit in Searcher(encoder, index).search(query, top=SHORTLIST, rerank=SHORTLIST).hits:
        print(f"{hit.score:7.2f}  {hit.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
