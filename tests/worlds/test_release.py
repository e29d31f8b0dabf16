import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.integrations.toy_gallery import retrieval_set, trained_folder
from tests.retrieval.toy_index import write_folder
from tests.tasks.toy_folders import write_folders
from tests.toy_model import toy

from vlmo import VLMoForImageTextRetrieval, VLMoForPreTraining, VLMoProcessor
from vlmo.evaluation import evaluate_retrieval
from vlmo.evaluation.scoring import embed
from vlmo.folder import architectures
from vlmo.folder.card import CardContent, DataSource, read_data, read_results, write_card
from vlmo.released import FOLDER, SMALL
from vlmo.tasks import usage_of
from worlds import release

# A bfloat16 has eight significant bits. Weights of the toy are ten times larger than usual, and so is what rounding
# does to them: single cosines move by up to 0.02.
SAME_COSINE = 0.04
SAME_ORDER = 0.9995
ONE_RANK = 1.5 / 48  # one of the 48 captions may change places


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = trained_folder(tmp_path_factory.mktemp("run") / "model")
    emoji = DataSource("emoji-pairs", "stage 3", ("twemoji: CC-BY-4.0",))
    write_toy_card(folder, data=(emoji, DataSource("mine", "stage 3")))
    return folder


def write_toy_card(folder, **content) -> None:
    write_card(folder, CardContent(recipe="toy", about="A toy.", **content), usage_of(folder))


@pytest.fixture(scope="module")
def released(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("releases") / "toy-release"
    images = write_folder(tmp_path_factory.mktemp("gallery") / "images")
    card = CardContent(recipe="toy-recipe", about="A note.", licence="cc-by-sa-4.0")
    release.write_release([folder], out, card=card)
    release.measure(out, [(str(images), "test")])
    return out


def test_release_stores_half_the_bytes_and_keeps_single_numbers(folder, released):
    before = load_file(folder / "model.safetensors")
    after = load_file(released / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert after[name].dtype == torch.bfloat16
    scale = "contrast_head.logit_scale"
    assert after[scale].dtype == torch.float32
    assert after[scale] == before[scale]


def test_a_model_of_stage_3_is_released_for_retrieval(tmp_path):
    """Heads that only its training uses stay behind, a quarter of the weights of a small model."""
    stage3 = toy(VLMoForPreTraining)
    stage3.save_pretrained(tmp_path / "stage3")
    write_toy_card(tmp_path / "stage3")
    release.write_release([tmp_path / "stage3"], tmp_path / "out", card=CardContent())
    assert architectures(tmp_path / "out") == ["VLMoForImageTextRetrieval"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Class: `VLMoForImageTextRetrieval`, which finds" in card
    weights, before = load_file(tmp_path / "out" / "model.safetensors"), stage3.state_dict()
    left_out = {name.split(".")[0] for name in set(before) - set(weights)}
    assert left_out == {"mlm_head", "fusion_contrast_head"}
    assert all(torch.equal(weights[name], before[name].to(weights[name].dtype)) for name in weights)


def test_release_computes_in_float32_and_ranks_alike(folder, released):
    models = [VLMoForImageTextRetrieval.from_pretrained(each).eval() for each in (folder, released)]
    assert {parameter.dtype for parameter in models[1].parameters()} == {torch.float32}
    data = retrieval_set(VLMoProcessor.from_pretrained(released))
    cosines = [texts @ images.T for images, texts in (embed(model, data) for model in models)]
    torch.testing.assert_close(cosines[1], cosines[0], rtol=0, atol=SAME_COSINE)
    assert torch.corrcoef(torch.stack([each.flatten() for each in cosines]))[0, 1] > SAME_ORDER
    figures = [evaluate_retrieval(model, data, rerank=4).metrics for model in models]
    assert figures[1] == pytest.approx(figures[0], abs=ONE_RANK)


def test_card_names_the_model_its_data_and_what_was_measured(folder, released):
    card = (released / "README.md").read_text()
    assert "# toy-release\n\nA note.\n" in card
    assert 'model_path("toy-release")' in card
    assert "license: cc-by-sa-4.0" in card
    assert "The weights are under cc-by-sa-4.0. The data's terms stand above." in card
    assert read_data(released) == read_data(folder)
    values = r"\| IR@1, dual encoder( \| [\d.]+ % \([\d.]+ to [\d.]+\))+ \| [\d.]+ % \|"
    assert re.search(values + ".*`worlds.release`", card)
    assert not list(released.glob("*.jsonl"))


def test_release_refuses_what_it_cannot_make(folder, released, tmp_path):
    words = write_folders(tmp_path / "toys")["words"]
    for sources, out, message in (
        ([folder], released, "exists; name a new folder"),
        ([words], tmp_path / "x", "VLMoForMaskedLM; expected"),
    ):
        with pytest.raises(ValueError, match=message):
            release.write_release(sources, out, card=CardContent())
    assert not (tmp_path / "x").exists()


def test_weights_of_several_runs_are_averaged():
    states = [{"a": torch.tensor([1.0, 4.0]), "b": torch.tensor(x)} for x in (1.0, 2.0, 6.0)]
    states[2]["a"] = torch.tensor([4.0, -5.0])
    mean = release.mean(states)
    assert mean["a"].tolist() == [2.0, 1.0]
    assert mean["b"] == 3.0
    weighted = release.mean(states, shares=(0.5, 0.25, 0.25))
    assert weighted["a"].tolist() == [1.75, 1.75]
    assert weighted["b"] == 2.5
    for shares in ((0.5, 0.5), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="give one for each of 3 models, with a sum of 1"):
            release.mean(states, shares=shares)
    for other in ({"a": torch.zeros(2)}, {"a": torch.zeros(3), "b": torch.tensor(1.0)}):
        with pytest.raises(ValueError, match="differ in their weights; name runs of one recipe"):
            release.mean([states[0], other])


def test_a_mean_with_a_model_of_smaller_images_has_its_positions_resized(tmp_path):
    options = {"position_embedding": "absolute", "patch_size": 16}
    models = [toy(VLMoForImageTextRetrieval, image_size=size, **options) for size in (96, 64)]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / f"{number}")
        write_toy_card(tmp_path / f"{number}")
    folders = [tmp_path / "0", tmp_path / "1"]
    release.write_release(folders, tmp_path / "out", card=CardContent(), shares=(0.75, 0.25))
    mean = VLMoForImageTextRetrieval.from_pretrained(tmp_path / "out")
    assert mean.config.image_size == 96
    models.append(mean)
    large, small, found = [model.vlmo.image_embeddings.positions.detach() for model in models]
    patches = small[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=(6, 6), mode="bicubic")
    resized = torch.cat([small[:1], patches.permute(0, 2, 3, 1).reshape(36, -1)])
    expected = 0.75 * large + 0.25 * resized
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-6)
    with pytest.raises(ValueError, match="the shares are"):
        release.write_release(folders, tmp_path / "other", card=CardContent(), shares=(1.0,))
    assert not (tmp_path / "other").exists()


def test_the_card_of_vlmo_small_is_what_the_template_writes(tmp_path):
    shipped, folder = FOLDER / SMALL, tmp_path / SMALL
    shutil.copytree(shipped, folder)
    (folder / "README.md").unlink()
    facts = {"title": SMALL, "data": read_data(shipped), "metrics": tuple(read_results(shipped))}
    release.write_released_card(
        folder, replace(release.SMALL_CARD, **facts), packages=release.SMALL_PACKAGES
    )
    for name in ("README.md", "results.json", "data_sources.json"):
        assert (folder / name).read_text() == (shipped / name).read_text(), name
