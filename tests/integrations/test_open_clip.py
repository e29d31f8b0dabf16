"""A model folder behind open_clip's methods: its own helpers, and clip_benchmark's figures beside ours."""

import io
import json
import pickle
import sys
import tarfile

import clip_benchmark.cli
import open_clip
import pytest
import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from clip_benchmark.models import MODEL_TYPES, load_clip
from tests.integrations.toy_gallery import CAPTIONS, NUM_PICTURES, drawings, retrieval_set, trained_folder
from tests.toy_model import toy
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vlmo import VLMoForImageTextRetrieval, VLMoForMaskedLM, VLMoProcessor
from vlmo.evaluation import evaluate_retrieval
from vlmo.integrations.open_clip import ClipModel, load_open_clip, register
from vlmo.losses.itc import itc_loss
from vlmo.processing import TransformConfig, eval_transform

# Batches of other sizes and padding; sums come in another order. Measured: 1e-7 on vectors of length one.
SAME = 1e-6
# One query in 24 or 48 may change places where vectors are rounded to bfloat16's eight bits.
HALF_PRECISION = 0.1
NAMES = [captions[0].removeprefix("a ") for captions in CAPTIONS]
TEXTS = [caption for captions in CAPTIONS for caption in captions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def adapted(folder):
    return load_open_clip(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return VLMoForImageTextRetrieval.from_pretrained(folder), VLMoProcessor.from_pretrained(folder)


@torch.no_grad()
def features(ours, *, texts=TEXTS):
    model, processor = ours
    images = model.get_image_features(**processor(images=drawings(), return_tensors="pt"))
    return images, model.get_text_features(**processor(text=texts, return_tensors="pt"))


class Classes:
    """The gallery as a classification set: one class for each drawing."""

    classes = NAMES

    def __init__(self, preprocess):
        self.preprocess = preprocess

    def __len__(self):
        return NUM_PICTURES

    def __getitem__(self, row):
        return self.preprocess(drawings()[row]), row


class Captions(Classes):
    """The gallery as a retrieval set."""

    def __getitem__(self, row):
        return self.preprocess(drawings()[row]), CAPTIONS[row]


class OneHot(Classes):
    """The gallery as a set with several labels for each image."""

    def __getitem__(self, row):
        return self.preprocess(drawings()[row]), F.one_hot(torch.tensor(row), NUM_PICTURES)


# -------------------------------------------------------------------------------- the adapter


@torch.no_grad()
def test_encoders_give_our_features(adapted, ours):
    model, preprocess, tokenizer = adapted
    images, texts = features(ours)
    encoded = model.encode_image(torch.stack([preprocess(picture) for picture in drawings()]))
    assert (encoded - images).abs().max() < SAME
    for normalize in (False, True):
        assert (model.encode_text(tokenizer(TEXTS), normalize=normalize) - texts).abs().max() < SAME
    assert (model.encode_text(tokenizer(TEXTS[:1])) - texts[:1]).abs().max() < SAME


def test_preprocess_is_our_evaluation_transform(adapted):
    _, preprocess, _ = adapted
    for picture in drawings():
        expected = eval_transform(TransformConfig(image_size=64))(picture)
        assert (preprocess(picture) - expected).abs().max() < SAME
    transparent = drawings()[0].convert("RGBA")
    transparent.putalpha(0)
    assert torch.equal(preprocess(transparent), torch.ones(3, 64, 64))


def test_tokenizer_gives_rows_of_one_length(adapted, ours):
    _, _, tokenizer = adapted
    assert tokenizer.context_length == 16
    ids = tokenizer(["a red square", "a " * 40])
    assert ids.shape == (2, 16)
    assert ids.dtype == torch.long
    assert (ids[1] != 0).all()
    expected = ours[1](text="a red square", return_tensors="pt")["input_ids"][0]
    assert torch.equal(ids[0, : len(expected)], expected)
    assert torch.equal(tokenizer("a red square"), ids[:1])
    assert torch.equal(tokenizer(("a red square",), context_length=8), ids[:1, :8])
    assert tokenizer("a " * 40, context_length=12)[0, -1] == ids[1, -1]  # [SEP] stays


@torch.no_grad()
def test_word_for_padding_inside_a_text_is_no_padding(adapted, ours):
    model, _, tokenizer = adapted
    texts = ["a [PAD] red square", "a red [PAD]"]
    expected = ours[0].get_text_features(**ours[1](text=texts, return_tensors="pt"))
    assert (model.encode_text(tokenizer(texts)) - expected).abs().max() < SAME
    assert (
        expected[0] - ours[0].get_text_features(**ours[1](text=["a red square"], return_tensors="pt"))
    ).abs().max() > SAME


def test_forward_is_what_losses_of_open_clip_take(adapted, ours):
    model, preprocess, tokenizer = adapted
    pixel_values = torch.stack([preprocess(picture) for picture in drawings()[:6]])
    texts = tokenizer([captions[0] for captions in CAPTIONS[:6]])
    images, embedded, scale = model(pixel_values, texts)
    assert scale.shape == ()
    assert torch.equal(scale, ours[0].contrast_head.logit_scale.exp()[0])
    loss = open_clip.ClipLoss()(images, embedded, scale)
    expected = itc_loss(images, embedded, logit_scale=model.logit_scale)
    assert loss.detach().item() == pytest.approx(expected.detach().item(), rel=1e-5)
    loss.backward()
    assert model.model.contrast_head.logit_scale.grad.abs() > 0
    model.zero_grad()
    assert model(image=pixel_values)[1] is None
    assert model(text=texts)[0] is None


def test_parts_travel_to_worker_processes(adapted):
    _, preprocess, tokenizer = pickle.loads(pickle.dumps(adapted))
    assert torch.equal(preprocess(drawings()[0]), adapted[1](drawings()[0]))
    assert torch.equal(tokenizer(TEXTS), adapted[2](TEXTS))


@torch.no_grad()
def test_model_in_half_precision_takes_float_pictures(folder):
    model, preprocess, tokenizer = load_open_clip(folder)
    images = torch.stack([preprocess(picture) for picture in drawings()])
    whole = model.encode_image(images), model.encode_text(tokenizer(TEXTS))
    model.bfloat16()
    half = model.encode_image(images), model.encode_text(tokenizer(TEXTS))
    for vectors, expected in zip(half, whole, strict=True):
        assert (vectors.float() - expected).abs().max() < HALF_PRECISION


@torch.no_grad()
def test_beit3_preset_with_its_own_padding_id():
    model = toy(VLMoForImageTextRetrieval, position_embedding="absolute", pad_token_id=1, use_match_head=False)
    adapted = ClipModel(model, pad_token_id=1)
    ids = torch.tensor([[5, 6, 7, 1, 1, 1, 1, 1], [5, 1, 7, 8, 9, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    assert (adapted.encode_text(ids) - model.get_text_features(ids, mask)).abs().max() < SAME


def test_folder_without_contrast_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_open_clip(tmp_path)
    toy(VLMoForMaskedLM).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected VLMoForImageTextRetrieval"):
        load_open_clip(tmp_path)


# -------------------------------------------------------------------------------- open_clip


@torch.no_grad()
def test_zero_shot_classifier_of_open_clip(adapted, ours):
    model, preprocess, tokenizer = adapted
    templates = ["a {}", lambda name: f"{name.split()[1]} in {name.split()[0]}"]
    images = torch.stack([preprocess(picture) for picture in drawings()])
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, templates[:1], num_classes_per_batch=5)
    assert weights.shape == (32, NUM_PICTURES)
    logits = model.logit_scale.exp() * model.encode_image(images) @ weights
    own_images, own_texts = features(ours, texts=[f"a {name}" for name in NAMES])
    assert (logits - ours[0].contrast_head.logit_scale.exp() * own_images @ own_texts.T).abs().max() < 1e-4
    accuracy = (logits.argmax(dim=1) == torch.arange(NUM_PICTURES)).float().mean()
    assert 0.3 < accuracy < 1  # neither chance (1/24) nor all of them

    metadata = open_clip.OPENAI_IMAGENET_TEMPLATES[:3]
    many = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, metadata)
    legacy = open_clip.build_zero_shot_classifier_legacy(model, tokenizer, NAMES, metadata)
    assert (many - legacy).abs().max() < SAME
    assert (many.norm(dim=0) - 1).abs().max() < SAME


# -------------------------------------------------------------------------------- clip_benchmark


@pytest.mark.parametrize(("amp", "tolerance"), [(False, 1e-6), (True, HALF_PRECISION)])
def test_retrieval_figures_of_clip_benchmark_are_ours(adapted, ours, amp, tolerance):
    model, preprocess, tokenizer = adapted
    loader = DataLoader(Captions(preprocess), batch_size=7, collate_fn=image_captions_collate_fn)
    found = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=amp, recall_k_list=[1, 5, 10])
    expected = evaluate_retrieval(ours[0], retrieval_set(ours[1])).metrics
    for k in (1, 5, 10):
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(expected[f"tr@{k}"], abs=tolerance)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(expected[f"ir@{k}"], abs=tolerance)
    assert 0.3 < expected["tr@1"] < expected["tr@5"] < 1  # the figures can differ


@pytest.mark.parametrize(("amp", "tolerance"), [(False, 1e-6), (True, HALF_PRECISION)])
def test_classifier_of_clip_benchmark_gives_our_accuracy(adapted, ours, amp, tolerance):
    # Its last step, `accuracy`, cannot work with NumPy 2.4 (release 1.6.2 calls `float` on an array); all before can.
    model, preprocess, tokenizer = adapted
    templates = ["a {c}", "the {c}"]
    classifier = zeroshot_classification.zero_shot_classifier(model, tokenizer, NAMES, templates, "cpu", amp=amp)
    loader = DataLoader(Classes(preprocess), batch_size=7)
    logits, target = zeroshot_classification.run_classification(model, classifier, loader, "cpu", amp=amp)
    found = (logits.argmax(dim=1) == target).float().mean().item()
    expected = (our_similarity(ours, templates).argmax(dim=1) == target).float().mean().item()
    assert found == pytest.approx(expected, abs=tolerance)
    assert 0.3 < expected < 1  # neither chance (1/24) nor all of them


def test_average_precision_of_clip_benchmark_is_ours(adapted, ours):
    model, preprocess, tokenizer = adapted
    loader = DataLoader(OneHot(preprocess), batch_size=7)
    found = zeroshot_classification.evaluate(model, loader, tokenizer, NAMES, ["a {c}"], "cpu", amp=False)
    similarity = our_similarity(ours, ["a {c}"])
    ranks = (similarity >= similarity.diagonal()).sum(dim=0)  # of each class's one picture
    assert found["mean_average_precision"] == pytest.approx((1 / ranks).mean().item(), abs=SAME)


def our_similarity(ours, templates):
    """Images times classes, by our features and the mean of the templates."""
    images, texts = features(ours, texts=[template.format(c=name) for name in NAMES for template in templates])
    return images @ F.normalize(texts.unflatten(0, (-1, len(templates))).mean(dim=1), dim=-1).T


@pytest.fixture
def registered(monkeypatch):
    models = sys.modules["clip_benchmark.models"]
    monkeypatch.setattr(models, "TYPE2FUNC", dict(models.TYPE2FUNC))
    types = list(MODEL_TYPES)
    register()
    yield
    MODEL_TYPES[:] = types


def test_registered_type_loads_by_name(registered, folder, adapted):
    register()  # twice does no harm
    assert MODEL_TYPES.count("vlmo") == 1
    loaded = load_clip(model_type="vlmo", model_name="mine", pretrained=str(folder), cache_dir=None, device="cpu")
    assert [type(part) for part in loaded] == [type(part) for part in adapted]
    weights = loaded[0].state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in adapted[0].state_dict().items())


def write_shard(root):
    """The gallery in the layout of clip_benchmark's own tar files."""
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval")
    with tarfile.open(root / "test" / "0.tar", "w") as shard:
        for row, picture in enumerate(drawings()):
            image = io.BytesIO()
            picture.save(image, "PNG")
            for ending, data in (("png", image.getvalue()), ("txt", "\n".join(CAPTIONS[row]).encode())):
                entry = tarfile.TarInfo(f"{row:03}.{ending}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


# clip_benchmark leaves the shuffling of shards open, and webdataset the file.
@pytest.mark.filterwarnings(
    r"ignore:WebDataset\(shardshuffle=\.\.\.\) is None:UserWarning",
    r"ignore:unclosed file .*0\.tar:ResourceWarning",
)
def test_command_line_of_clip_benchmark_gives_our_recall(registered, folder, ours, tmp_path, monkeypatch):
    write_shard(tmp_path)
    output = tmp_path / "figures.json"
    command = f"clip_benchmark eval --model_type vlmo --model mine --pretrained {folder} --dataset wds/gallery"
    options = f"--task zeroshot_retrieval --dataset_root {tmp_path} --num_workers 0 --no_amp --output {output}"
    monkeypatch.setattr(sys, "argv", f"{command} {options} --recall_k 1 5".split())
    clip_benchmark.cli.main()
    figures = json.loads(output.read_text())["metrics"]
    expected = evaluate_retrieval(ours[0], retrieval_set(ours[1])).metrics
    for k in (1, 5):
        assert figures[f"text_retrieval_recall@{k}"] == pytest.approx(expected[f"tr@{k}"])
        assert figures[f"image_retrieval_recall@{k}"] == pytest.approx(expected[f"ir@{k}"])


def test_register_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(ImportError, match=r"pip install .*\[clip-benchmark\]'"):
        register()
