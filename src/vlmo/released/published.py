"""Models that have a name: the one in the package, and weights that others have published."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BEIT = "https://github.com/addf400/files/releases/download/"
VOCABULARIES = {
    "vlmo": "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
    "beit3": f"{_BEIT}beit3/beit3.spm",
}
"""Address of the vocabulary that the files of a layout need."""

_SOURCES = {
    "vlmo": "VLMo's paper, arXiv 2111.02358",
    "beit": "BEiT's README, unilm beit/README.md",
    "beitv2": "BEiT-2's guide, unilm beit2/get_started_for_image_classification.md",
    "beit3": "BEiT-3's README, unilm beit3/README.md",
}
_DATA = {"coco": "coco", "f30k": "flickr30k", "nlvr2": "nlvr2", "vqa": "vqav2", "nocaps": "nocaps"}
_DATA |= dict.fromkeys(("in1k", "ft1k", "ft22kto1k", "ft21kto1k"), "imagenet")

# Layout and address, then a line for each file: name, task, file, and what `_SOURCES` report: split, metric
# (by default accuracy) and percent. Addresses are of the publishers' READMEs.
_FILES = {
    ("vlmo", "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/"): """
vlmo-base             pre-training vlmo_base_patch16_224.pt
vlmo-base-stage2      text         vlmo_base_patch16_224_stage2.pt
vlmo-base-coco        retrieval    vlmo_base_patch16_384_coco.pt  test tr@1 74.8, test ir@1 57.2
vlmo-base-f30k        retrieval    vlmo_base_patch16_384_f30k.pt  test tr@1 92.3, test ir@1 79.3
vlmo-base-nlvr2       nlvr2        vlmo_base_patch16_384_nlvr2.pt  validation 82.77, test 83.34
vlmo-base-vqa         vqa          vlmo_base_patch16_480_vqa.pt  test_dev 76.64, test_std 76.89
vlmo-base-plus        pre-training vlmo_base_plus_patch16_224.pt
vlmo-base-plus-stage2 text         vlmo_base_plus_patch16_224_stage2.pt
vlmo-base-plus-coco   retrieval    vlmo_base_plus_patch16_384_coco.pt  test tr@1 76.3, test ir@1 58.6
vlmo-base-plus-f30k   retrieval    vlmo_base_plus_patch16_384_f30k.pt  test tr@1 93.2, test ir@1 81.8
vlmo-base-plus-nlvr2  nlvr2        vlmo_base_plus_patch16_384_nlvr2.pt  test 85.1
vlmo-base-plus-vqa    vqa          vlmo_base_plus_patch16_480_vqa.pt  test_dev 78.5
vlmo-large            pre-training vlmo_large_patch16_224.pt
vlmo-large-stage2     text         vlmo_large_patch16_224_stage2.pt
vlmo-large-coco       retrieval    vlmo_large_patch16_384_coco.pt  test tr@1 78.2, test ir@1 60.6
vlmo-large-f30k       retrieval    vlmo_large_patch16_384_f30k.pt  test tr@1 95.3, test ir@1 84.5
vlmo-large-nlvr2      nlvr2        vlmo_large_patch16_384_nlvr2.pt  validation 85.64, test 86.86
vlmo-large-vqa        vqa          vlmo_large_patch16_480_vqa.pt  test_dev 79.94, test_std 79.98
""",
    ("beit", f"{_BEIT}v1.0/"): """
beit-base-pt1k-800ep           images         beit_base_patch16_224_pt1k_800ep.pth
beit-base-pt22k                images         beit_base_patch16_224_pt22k.pth
beit-base-pt22k-ft1k           classification beit_base_patch16_224_pt22k_ft1k.pth  validation top1 83.7
beit-base-pt22k-ft22k          classification beit_base_patch16_224_pt22k_ft22k.pth
beit-base-pt22k-ft22kto1k      classification beit_base_patch16_224_pt22k_ft22kto1k.pth  validation top1 85.2
beit-base-pt22k-ft22kto1k-384  classification beit_base_patch16_384_pt22k_ft22kto1k.pth  validation top1 86.8
beit-large-pt22k               images         beit_large_patch16_224_pt22k.pth
beit-large-pt22k-ft1k          classification beit_large_patch16_224_pt22k_ft1k.pth  validation top1 86.0
beit-large-pt22k-ft22k         classification beit_large_patch16_224_pt22k_ft22k.pth
beit-large-pt22k-ft22kto1k     classification beit_large_patch16_224_pt22k_ft22kto1k.pth  validation top1 87.4
beit-large-pt22k-ft22kto1k-384 classification beit_large_patch16_384_pt22k_ft22kto1k.pth  validation top1 88.4
beit-large-pt22k-ft22kto1k-512 classification beit_large_patch16_512_pt22k_ft22kto1k.pth  validation top1 88.6
""",
    ("beit", f"{_BEIT}BEiT-v2/"): """
beitv2-base-pt1k            images         beitv2_base_patch16_224_pt1k.pth
beitv2-base-pt1k-300e       images         beitv2_base_patch16_224_pt1k_300e.pth
beitv2-base-pt1k-300e-ft1k  classification beitv2_base_patch16_224_pt1k_300e_ft1k.pth  validation top1 85.0
beitv2-base-pt1k-ft1k       classification beitv2_base_patch16_224_pt1k_ft1k.pth  validation top1 85.5
beitv2-base-pt1k-ft21k      classification beitv2_base_patch16_224_pt1k_ft21k.pth
beitv2-base-pt1k-ft21kto1k  classification beitv2_base_patch16_224_pt1k_ft21kto1k.pth  validation top1 86.5
beitv2-large-pt1k           images         beitv2_large_patch16_224_pt1k.pth
beitv2-large-pt1k-300e      images         beitv2_large_patch16_224_pt1k_300e.pth
beitv2-large-pt1k-300e-ft1k classification beitv2_large_patch16_224_pt1k_300e_ft1k.pth  validation top1 86.6
beitv2-large-pt1k-ft1k      classification beitv2_large_patch16_224_pt1k_ft1k.pth  validation top1 87.3
beitv2-large-pt1k-ft21k     classification beitv2_large_patch16_224_pt1k_ft21k.pth
beitv2-large-pt1k-ft21kto1k classification beitv2_large_patch16_224_pt1k_ft21kto1k.pth  validation top1 88.4
""",
    ("vqkd", f"{_BEIT}BEiT-v2/"): """
vqkd-base-1x768-clip visual-tokenizer vqkd_encoder_base_decoder_1x768x12_clip-d93179da.pth
vqkd-base-3x768-clip visual-tokenizer vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth
vqkd-base-1x768-dino visual-tokenizer vqkd_encoder_base_decoder_1x768x12_dino-663c55d7.pth
""",
    ("beit3", f"{_BEIT}beit3/"): """
beit3-base                 backbone       beit3_base_patch16_224.pth
beit3-base-indomain        backbone       beit3_base_indomain_patch16_224.pth
beit3-base-indomain-in1k   classification beit3_base_indomain_patch16_224_in1k.pth  validation top1 85.4
beit3-base-indomain-nlvr2  nlvr2          beit3_base_indomain_patch16_224_nlvr2.pth  validation 84.6, test 85.3
beit3-base-indomain-vqa    vqa            beit3_base_indomain_patch16_480_vqa.pth  test_dev 78.46
beit3-base-itc             retrieval      beit3_base_itc_patch16_224.pth
beit3-base-in1k            classification beit3_base_patch16_224_in1k.pth  validation top1 85.4
beit3-base-nlvr2           nlvr2          beit3_base_patch16_224_nlvr2.pth  validation 83.6, test 84.4
beit3-base-coco            retrieval      beit3_base_patch16_384_coco_retrieval.pth  test tr@1 79.1, test ir@1 61.4
beit3-base-f30k            retrieval      beit3_base_patch16_384_f30k_retrieval.pth  test tr@1 96.3, test ir@1 86.2
beit3-base-coco-captioning captioning     beit3_base_patch16_480_coco_captioning.pth  test cider 133.6
beit3-base-nocaps          captioning     beit3_base_patch16_480_nocaps.pth  validation cider 104.4
beit3-base-indomain-coco-captioning captioning beit3_base_indomain_patch16_480_coco_captioning.pth  test cider 135.0
beit3-base-indomain-nocaps captioning     beit3_base_indomain_patch16_480_nocaps.pth  validation cider 105.6
beit3-base-vqa             vqa            beit3_base_patch16_480_vqa.pth  test_dev 77.65
beit3-large                backbone       beit3_large_patch16_224.pth
beit3-large-indomain       backbone       beit3_large_indomain_patch16_224.pth
beit3-large-indomain-in1k  classification beit3_large_indomain_patch16_224_in1k.pth  validation top1 87.5
beit3-large-indomain-nlvr2 nlvr2          beit3_large_indomain_patch16_224_nlvr2.pth  validation 89.2, test 90.0
beit3-large-indomain-vqa   vqa            beit3_large_indomain_patch16_480_vqa.pth  test_dev 82.53
beit3-large-vqa-768        vqa          beit3_large_indomain_patch16_768_vgqaaug_vqa.pth  test_dev 82.97, test_std 83.03
beit3-large-itc            retrieval      beit3_large_itc_patch16_224.pth
beit3-large-in1k           classification beit3_large_patch16_224_in1k.pth  validation top1 87.6
beit3-large-nlvr2          nlvr2          beit3_large_patch16_224_nlvr2.pth  validation 88.5, test 89.4
beit3-large-coco           retrieval      beit3_large_patch16_384_coco_retrieval.pth  test tr@1 82.1, test ir@1 63.4
beit3-large-f30k           retrieval      beit3_large_patch16_384_f30k_retrieval.pth  test tr@1 97.2, test ir@1 88.1
beit3-large-coco-captioning captioning    beit3_large_patch16_480_coco_captioning.pth  test cider 143.2
beit3-large-nocaps         captioning     beit3_large_patch16_480_nocaps.pth  validation cider 120.2
beit3-large-vqa            vqa            beit3_large_patch16_480_vqa.pth  test_dev 81.85
""",
}


@dataclass(frozen=True)
class NamedModel:
    """A model that can be asked for by its name.

    Attributes:
        task: Its training: "pre-training" (stage 3), "text" (stage 2), "images" (stage 1), "backbone" (no head, or
            that of masked words), "visual-tokenizer", or the task that it was fine-tuned for.
        size: "base", "base_plus", "large" or "small".
        address: Of the published file; empty for a model that comes with the package.
        layout: Of that file: "vlmo", "beit", "vqkd" or "beit3".
        data: Set of `vlmo data prepare`, or "nocaps", that it was fine-tuned for; empty for another.
        reported: Split, metric and percent of each published result on it.
        source: Where these are written.
    """

    name: str
    task: str
    size: str
    image_size: int
    licence: str = "MIT"
    address: str = ""
    layout: str = ""
    data: str = ""
    reported: tuple[tuple[str, str, float], ...] = ()
    source: str = ""

    @property
    def options(self) -> dict[str, float]:
        """Options of `vlmo.tasks.evaluate` for images as its publication evaluates it: unilm, `build_transform`."""
        if self.task != "classification":
            return {}
        return {"center_crop": 224 / 256 if self.layout == "beit" and self.image_size < 384 else 1.0}

    def published(self, metric: str) -> str:
        """Return the published values of a metric in percent, each with its split on a line; empty without any."""
        return "\n".join(f"{split} {percent:g}" for split, name, percent in self.reported if name == metric)


def _read_table() -> dict[str, NamedModel]:
    models = {"vlmo-small": NamedModel("vlmo-small", "retrieval", "small", 64, licence="CC-BY-SA-4.0")}
    for (layout, address), lines in _FILES.items():
        for line in lines.strip().splitlines():
            name, task, file, *words = re.split(r" +", line, maxsplit=3)
            numbers = [number.split() for number in "".join(words).split(", ") if number]
            models[name] = NamedModel(
                name,
                task,
                size="base_plus" if "base_plus" in file else "large" if "large" in file else "base",
                image_size=int(file.partition("_patch16_")[2][:3] or 224),
                address=address + file,
                layout=layout,
                data=next((_DATA[part] for part in name.split("-") if part in _DATA), ""),
                reported=tuple((each[0], each[1] if each[2:] else "accuracy", float(each[-1])) for each in numbers),
                source=_SOURCES[name.partition("-")[0]] if numbers else "",
            )
    return models


MODELS = _read_table()
"""All models that have a name, by it."""
