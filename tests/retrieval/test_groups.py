import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_index import build, encoded

from vlmo.retrieval import Index, find_duplicates, groups


@pytest.fixture
def index_of(gallery, monkeypatch):
    """Make an index of vectors, whose paths are their numbers."""

    def made(vectors) -> Index:
        vectors = np.asarray(vectors, np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [f"{row:05d}" for row in range(len(vectors))]
        monkeypatch.setattr(Index, "vectors", lambda _: (names, names, vectors))
        return Index(gallery[1])

    return made


@pytest.mark.parametrize("cells", [7, 4000, 1 << 20])
def test_groups_are_those_of_single_linkage(cells, index_of, monkeypatch):
    monkeypatch.setattr(groups, "_CELLS", cells)
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((60, 16))[generator.integers(0, 60, 300)]
    vectors += 0.25 * generator.standard_normal((300, 16))
    found = find_duplicates(index_of(vectors), threshold=0.93)
    labels = fcluster(linkage(vectors, "single", "cosine"), 1 - 0.93, "distance")
    expected = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    expected = [group for group in expected if len(group) > 1]
    assert len(expected) > 20
    assert {group.paths for group in found} == {tuple(f"{row:05d}" for row in group) for group in expected}
    assert [len(group.ids) for group in found] == sorted(map(len, expected), reverse=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for group in found:
        rows = [int(path) for path in group.paths]
        assert group.ids == group.paths
        assert group.similarity == pytest.approx((unit[rows] @ unit[rows].T).min(), abs=1e-6)


def test_equal_vectors_are_found_at_a_threshold_of_one(index_of):
    vectors = np.random.default_rng(0).standard_normal((500, 384))
    (group,) = find_duplicates(index_of(np.concatenate([vectors, vectors[:1]])), threshold=1)
    assert group.paths == ("00000", "00500")
    assert 1 - 1e-6 < group.similarity <= 1
    assert find_duplicates(index_of(vectors), threshold=1) == []
    assert find_duplicates(index_of(np.zeros((0, 384)))) == []


def test_copies_in_an_index_are_found_with_their_paths(encoder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(drawings()[:4]):
        (folder / f"{number}.png").write_bytes(encoded(image))
    (folder / "copy.png").write_bytes(encoded(drawings()[2]))
    build(encoder, folder, out=tmp_path / "index")
    index = Index(tmp_path / "index")
    ids, paths, vectors = index.vectors()
    assert sorted(paths) == sorted(map(str, folder.iterdir()))
    np.testing.assert_array_equal(vectors[3], index.vector(ids[3]))
    (group,) = find_duplicates(index, threshold=0.999)
    assert group.paths == tuple(str(folder / name) for name in ("2.png", "copy.png"))
    assert group.ids == tuple(ids[paths.index(path)] for path in group.paths)
    assert find_duplicates(tmp_path / "index", threshold=0.999) == [group]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, 95, float("nan")])
def test_threshold_out_of_range_is_refused(threshold, gallery):
    with pytest.raises(ValueError, match=f"threshold is {threshold}; give a cosine similarity above 0, up to 1"):
        find_duplicates(gallery[1], threshold=threshold)
