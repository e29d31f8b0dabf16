import dataclasses
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.data.prepare.toy_task_files import write
from tests.worlds import test_clipart, test_drawings, test_glosses, test_icons

from vlmo import VLMoForImageTextRetrieval
from vlmo.data import builtin
from vlmo.data.schema import FEATURES
from vlmo.folder.card import read_results
from vlmo.model import VLMoConfig
from vlmo.recipes import Recipe
from vlmo.recipes.schema import model_config
from vlmo.released import FOLDER, SMALL
from vlmo.training import read_metrics
from worlds import icons, scenes, vlmo_small
from worlds.recipes import STEPS

found = test_drawings.found  # a fixture: few emoji in toy styles
STOPPED = SimpleNamespace(status="stopped")


@pytest.fixture
def roots(tmp_path, found, monkeypatch):
    monkeypatch.setattr(icons, "KNOWN_FROM", 1)
    for name, text in test_glosses.FILES.items():
        write(tmp_path / "glosses" / name, text)
    for name, text in test_clipart.FILES.items():
        write(tmp_path / "clipart" / name, text)
    return {
        "icons": test_icons.package(tmp_path / "icons"),
        "drawings": test_drawings.packages(tmp_path / "node_modules"),
        "clipart": tmp_path / "clipart",
        "glosses": tmp_path / "glosses",
    }


def tiny(recipe: Recipe) -> Recipe:
    """The recipe with its own data and start, on a tiny model, for two steps."""
    kept = {name: getattr(recipe.model, name) for name in ("image_size", "position_embedding")}
    layers = min(1, recipe.model.num_fusion_layers)
    sizes = VLMoConfig.tiny(patch_size=16, num_fusion_layers=layers, **kept)
    return dataclasses.replace(
        recipe,
        model=model_config(sizes),
        text=dataclasses.replace(recipe.text, vocab_size=90, max_length=16),
        loader=dataclasses.replace(recipe.loader, global_batch_size=16),
        trainer=dataclasses.replace(recipe.trainer, max_steps=2, precision="float32"),
        schedule=dataclasses.replace(recipe.schedule, warmup_steps=1),
    )


@pytest.mark.slow
def test_it_goes_on_where_it_was(roots, tmp_path, monkeypatch):
    def toy_set(name: str, *, split: str, **_: object) -> Dataset:
        drawings = tmp_path / "data" / "drawings" / ("train" if split == "train" else "test")
        return Dataset.load_from_disk(str(drawings)).cast(FEATURES)

    monkeypatch.setattr(builtin, "load", toy_set)
    monkeypatch.setattr(vlmo_small, "MEASURED_ON", (("data/icons", "test"), ("scenes", "test")))
    run, began, build = tmp_path / "runs", [], vlmo_small.build

    def stopping(recipe, **options):
        began.append(options["run_dir"].name)
        return SimpleNamespace(fit=lambda: STOPPED) if len(began) == 3 else build(recipe, **options)

    monkeypatch.setattr(vlmo_small, "build", stopping)
    options = {"data": tmp_path / "data", "roots": roots, "change": tiny}
    assert vlmo_small.rebuild(run, **options) is None
    out = vlmo_small.rebuild(run, **options)
    assert out == run / "vlmo-small"
    runs = [*list(STEPS)[:-1], "names-1", "names-2", "released"]
    assert began == [*runs[:3], *runs[2:]]
    assert all(read_metrics(run / each)[-1]["step"] == 2 for each in runs)
    weights = {}
    for name in (*runs[-4:], "names-mean"):
        weights[name] = load_file(run / name / "model" / "model.safetensors")
    last, start = weights["released"], weights["names-mean"]
    released = load_file(out / "model.safetensors")
    assert start.keys() == released.keys()
    for name in start:
        seeds = [weights[each][name] for each in runs[-4:-1]]
        torch.testing.assert_close(start[name].float(), sum(seeds) / 3, rtol=2**-8, atol=0)
        if name != "vlmo.image_embeddings.positions":
            expected = 0.75 * last[name] + 0.25 * start[name].float()
            torch.testing.assert_close(released[name].float(), expected, rtol=2**-7, atol=1e-6)
    words = "vlmo.text_embeddings.words.weight"
    assert not torch.equal(weights["names"][words], weights["names-1"][words])
    assert {each.dataset_name for each in read_results(out)} == {"icons", "scenes"}
    assert VLMoForImageTextRetrieval.from_pretrained(out).match_head is not None
    measured_on = (("data/icons", "test"), ("scenes", "test"), ("scenes", "artist"))
    monkeypatch.setattr(vlmo_small, "MEASURED_ON", measured_on)
    before = (out / "results.json").read_text()
    assert vlmo_small.rebuild(run, **options) == out
    assert len(began) == len(runs) + 1
    assert (out / "results.json").read_text().startswith(before.removesuffix("\n]\n"))
    assert read_results(out)[-1].dataset_split == "artist"


def test_every_split_of_scenes_that_is_not_trained_on_or_chosen_by_is_measured():
    for name in ("scenes", "scenes-binding"):
        sizes = scenes.NUM_BINDING if name.endswith("binding") else scenes.NUM_SCENES
        splits = [split for source, split in vlmo_small.MEASURED_ON if source == name]
        assert sorted(splits) == sorted(set(sizes) - {"train", "validation"})
    shipped = {(each.dataset_name, each.dataset_split) for each in read_results(FOLDER / SMALL)}
    measured_on = vlmo_small.MEASURED_ON
    assert shipped == {(source.removeprefix("data/"), split) for source, split in measured_on}
