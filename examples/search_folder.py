"""Search a folder of images by text: python examples/search_folder.py MODEL_FOLDER IMAGE_FOLDER "a text"."""

import sys

from vlmo.retrieval import Encoder, Searcher, build_index

SHORTLIST = 16


def main(model_folder: str, image_folder: str, query: str) -> None:
    """Print the best images first: a shortlist of the dual encoder, reranked by the fusion encoder."""
    encoder = Encoder(model_folder)
    index = image_folder.rstrip("/") + ".index"
    build_index(encoder, [image_folder], out=index)  # embeds what is new since the last time
    for hit in Searcher(encoder, index).search(query, top=SHORTLIST, rerank=SHORTLIST).hits:
        print(f"{hit.score:7.2f}  {hit.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
