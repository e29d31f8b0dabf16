import numpy as np
import pytest
import torch
from PIL import Image
from tests.processing.test_tokenizers import BERT_FOLDER

from vlmo.processing import VLMoProcessor


@pytest.fixture(scope="module")
def processor() -> VLMoProcessor:
    return VLMoProcessor.from_vocabulary(BERT_FOLDER, image_size=32)


def picture(height: int = 40, width: int = 50) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_processor_gives_square_images_and_framed_texts(processor):
    images, text = [picture(), picture(9, 70)], ["A red heart", "hi"]
    inputs = processor(images=images, text=text, return_tensors="pt")
    assert inputs.keys() == {"pixel_values", "input_ids", "attention_mask"}
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert inputs["pixel_values"].abs().max() <= 1
    first, second = [101, 1037, 2417, 2540, 102], [101, 7632, 102]
    assert inputs["input_ids"].tolist() == [[*first, *[0] * 3], [*second, *[0] * 5]]
    assert inputs["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]


def test_processor_maps_black_and_white_to_minus_one_and_one(processor):
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    for image, value in ((black, -1), (white, 1)):
        pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixel_values, torch.full((1, 3, 32, 32), float(value)))


@pytest.mark.parametrize(("words", "length"), [(1, 8), (6, 8), (7, 16), (38, 40), (60, 40)])
def test_processor_pads_to_the_longest_text_rounded_up_to_eight(processor, words, length):
    input_ids = processor(text=["cat", "cat " * words], return_tensors="pt")["input_ids"]
    assert input_ids.shape == (2, length)
    assert input_ids[1, min(words, 38) + 1] == 102
    assert (input_ids[1, 1 : min(words, 38) + 1] == 4937).all()
    # The caller may choose padding and length.
    assert len(processor(text="cat", padding=False)["input_ids"]) == 3
    assert len(processor(text="cat " * 9, max_length=5, pad_to_multiple_of=1)["input_ids"]) == 5
    assert len(processor(text="cat", text_kwargs={"pad_to_multiple_of": 1})["input_ids"]) == 3


@pytest.mark.parametrize("inputs", [{}, {"text": []}, {"images": ["a.png"], "text": []}])
def test_processor_needs_an_input(processor, inputs):
    with pytest.raises(ValueError, match="neither images nor text, or an empty list"):
        processor(**inputs)


def test_paths_are_opened_upright(processor, tmp_path):
    image, exif = Image.new("RGB", (40, 20), "red"), Image.Exif()
    image.paste("blue", (0, 0, 20, 20))
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = processor(images=upright, return_tensors="pt")["pixel_values"]
    for given in (tmp_path / "turned.png", str(tmp_path / "turned.png"), [tmp_path / "turned.png"]):
        assert torch.equal(processor(images=given, return_tensors="pt")["pixel_values"], expected)
    with pytest.raises(FileNotFoundError, match=r"cat\.png"):
        processor(images="cat.png")


def test_bound_on_pixels_of_files_is_that_of_training(processor, tmp_path, monkeypatch):
    # Pillow warns above it, and fails above twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, size in (("small.png", (40, 20)), ("large.png", (9000, 8000))):
        Image.new("1", size).save(tmp_path / name)
    assert len(processor(images=tmp_path / "small.png")["pixel_values"]) == 1
    with pytest.raises(ValueError, match=r"large\.png: 9000 x 8000 is 72,000,000 pixels"):
        processor(images=tmp_path / "large.png")


def test_processor_rejects_impossible_sizes():
    with pytest.raises(ValueError, match="image_size is 0"):
        VLMoProcessor.from_vocabulary(BERT_FOLDER, image_size=0)
    for length in (20, 41, 3, 0, -8):
        with pytest.raises(ValueError, match=f"is {length}: expected a multiple of 8"):
            VLMoProcessor.from_vocabulary(BERT_FOLDER, max_text_length=length)


@pytest.mark.parametrize("length", [8, 64])
def test_sizes_change_after_a_processor_came_back_from_its_folder(processor, tmp_path, length):
    text = " ".join(["red"] * 70)
    processor(text=[text])
    processor.save_pretrained(tmp_path)
    loaded = VLMoProcessor.from_pretrained(tmp_path)
    resized = loaded.with_sizes(image_size=32, max_text_length=length)
    for folder in ("before its first use", "after it"):
        resized.save_pretrained(tmp_path / folder)
        again = VLMoProcessor.from_pretrained(tmp_path / folder)
        assert len(again(text=[text])["input_ids"][0]) == length
        assert len(resized(text=[text])["input_ids"][0]) == length


def test_processor_round_trips_through_a_folder(tmp_path):
    corpus = ["a red heart", "two hearts", "hearts are red"]
    original = VLMoProcessor.train(corpus, vocab_size=40, image_size=48, max_text_length=24)
    original.save_pretrained(tmp_path)
    loaded = VLMoProcessor.from_pretrained(tmp_path)
    assert (loaded.image_size, loaded.max_text_length) == (48, 24)
    texts, images = ["Red hearts", "a " * 30], [picture(), picture(20, 20)]
    before = original(images=images, text=texts, return_tensors="pt")
    after = loaded(images=images, text=texts, return_tensors="pt")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()


def test_folder_without_its_vocabulary_is_refused(tmp_path) -> None:
    processor = VLMoProcessor.train(["a red apple"], vocab_size=40, image_size=32)
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="knows no words beside its 5 special tokens"):
        VLMoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F"])
def test_an_image_has_the_same_pixels_in_every_mode_and_way(processor, tmp_path, mode):
    """Transparency is white, and 16 bits or floats of grey are scaled."""
    if mode in ("RGBA", "LA", "P"):
        image, expected = Image.new("RGBA", (4, 4), (10, 20, 30, 0)).convert(mode), 1.0
        if mode == "P":
            image.info["transparency"] = image.getpixel((0, 0))
    else:
        image, expected = Image.new(mode, (4, 4), 0.25 if mode == "F" else 65535 // 4), -0.5
    files = [] if mode in ("I", "F") else [tmp_path / "image.png"]  # of these modes PNG has none
    for file in files:
        image.save(file, **({"transparency": image.info["transparency"]} if mode == "P" else {}))
    for given in (image, [image], *files, [*files, image]):
        pixels = processor(images=given, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, torch.full_like(pixels, expected), atol=0.01, rtol=0)
