"""The paper's recipes: a table of tasks x sizes (VLMo, "Pre-Training Setup", "Fine-Tuning", and its appendix).

What the paper leaves to BEiT has the settings of BEiT's published commands and configurations. For
Base+ none are published: its vision tasks have Base's rates and, for its 24 blocks, Large's layer
decay.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlmo import tasks
from vlmo.data.config import StreamConfig
from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.schema import DataConfig, Entry, Recipe, TextConfig, model_config
from vlmo.released.published import MODELS
from vlmo.tasks.beit3 import AloneConfig
from vlmo.tasks.classification import ClassificationConfig
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import EngineConfig, OptimizerConfig, ScheduleConfig, TrainerConfig

# Images, as its site states.
_IMAGENET_22K = 14_197_122
_IMAGENET_1K = 1_281_167
# Questions, about: train2014 and most of val2014, those with an answer of the list.
_VQA = 640_000
_NLVR2 = 86_373  # sentences
_BERT = TextConfig(vocabulary="bert-base-uncased", max_length=40)
_PAIRS = TransformConfig(
    min_crop=0.5, fill=128
)  # of the published code, for pre-training and every task on pairs
_BEIT = OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.05)
_SIZES = {
    "base": ("VLMo-Base", VLMoConfig.base),
    "base-plus": ("VLMo-Base+", VLMoConfig.base_plus),
    "large": ("VLMo-Large", VLMoConfig.large),
}
_BEIT3_SIZES = {
    "base": ("BEiT-3 Base", VLMoConfig.beit3_base),
    "large": ("BEiT-3 Large", VLMoConfig.beit3_large),
    "giant": ("BEiT-3 Giant", VLMoConfig.beit3_giant),
}
_SETTINGS = json.loads(Path(__file__).with_name("paper_settings.json").read_text(encoding="utf-8"))
"""The settings that VLMo's paper gives (stage 1: BEiT's, beit3: BEiT-3's) by task, some by size."""
_FROM_BEIT = "no number: this stage is that of BEiT's published weights"
_STAGE3 = "after fine-tuning COCO TR@1 {} / IR@1 {}, Flickr30K {} / {}, VQA test-dev {}, NLVR2 {}"


@dataclass(frozen=True)
class PaperTask:
    """Settings of a task that its sizes share.

    Attributes:
        data: Note for the description; `{source}` stands for `source`.
        length: Steps and warm-up steps.
        every: Steps between training states, and between evaluations.
        sizes: Title and configuration of its models by size.
    """

    about: str
    data: str
    task: Any
    source: str
    batch: int
    length: tuple[int, int]
    px: int = 224
    fusion: bool = True
    text: TextConfig = _BERT
    unit: Literal["image", "pair"] = "image"
    transform: TransformConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["linear", "cosine"] = "linear"
    min_lr: float = 0.0
    clip_norm: float | None = None
    every: tuple[int, int | None] = (5000, None)
    sizes: Mapping[str, tuple[str, Callable[..., VLMoConfig]]] = field(
        default_factory=lambda: _SIZES
    )


class Row(NamedTuple):
    """A task at one size.

    Attributes:
        drop_path: Rate of drop path in the last block.
        start: Task whose model of the same size it starts from, or a published model's name.
        reported: Numbers of the paper, after "the paper reports".
        settings: Settings of the task that this size changes.
        length: Steps and warm-up steps, if they are not the task's.
        nodes: Machines of eight GPUs in the command.
        variant: Key of `_VARIANTS`, which the name ends in.
    """

    task: str
    size: str
    lr: float
    drop_path: float
    start: str | None
    reported: str = "no number for this size"
    settings: dict[str, Any] = {}
    length: tuple[int, int] | None = None
    nodes: int = 1
    variant: str = ""


def _epochs(epochs: int, warmup: int, *, examples: int, batch: int) -> tuple[int, int]:
    return epochs * examples // batch, warmup * examples // batch


PAPER_TASKS = {
    "stage1": PaperTask(
        "stage 1: masked image modeling with BEiT's settings",
        "ImageNet-22K as a folder of images, {source}; DALL-E's tokenizer (FlavaImageCodebook) in visual-tokenizer; "
        "BERT's vocabulary in bert-base-uncased.",
        task=tasks.VisionTask(visual_tokenizer="visual-tokenizer"),
        source="data/imagenet22k",
        batch=2048,
        # 150 epochs, as BEiT on ImageNet-22K.
        length=(150 * _IMAGENET_22K // 2048, 10_000),
        fusion=False,
        # Crops and color jitter of BEiT, instead of RandAugment.
        transform=TransformConfig(rand_augment_ops=0, min_crop=0.08, color_jitter=0.4, fill=128),
        optimizer=_BEIT,
        schedule="cosine",
        min_lr=1e-5,
        clip_norm=3.0,
    ),
    "stage2": PaperTask(
        "stage 2: masked language modeling; attention and vision experts stay as stage 1 left them",
        "Wikipedia and BookCorpus, one sentence or document a line, {source}; BERT's vocabulary in bert-base-uncased.",
        task=tasks.LanguageTask(),
        source="data/text",
        batch=1024,
        length=(200_000, 2500),
        fusion=False,
        text=replace(_BERT, max_length=192),
    ),
    "stage3": PaperTask(
        "stage 3: contrast, masked language modeling and matching on pairs",
        "COCO, Visual Genome, SBU and Conceptual Captions, {source}, by `vlmo data prepare` (docs/published-sets.md).",
        task=tasks.VisionLanguageTask(),
        source="data/coco+data/visual_genome+data/sbu+data/conceptual_captions",
        unit="pair",
        batch=1024,
        length=(200_000, 2500),
        transform=_PAIRS,
    ),
    "vqa": PaperTask(
        "on VQAv2: 3,129 answers, ten epochs at 480 pixels",
        "`vlmo data prepare vqav2 --root DIR --out {source}`.",
        # Factor of the published code.
        task=tasks.VQATask(head_lr_scale=20.0),
        source="data/vqav2",
        px=480,
        batch=128,
        length=_epochs(10, 1, examples=_VQA, batch=128),
        transform=_PAIRS,
        every=(2000, 5000),
    ),
    "nlvr2": PaperTask(
        "on NLVR2: sentences about two images, ten epochs at 384 pixels",
        "`vlmo data prepare nlvr2 --root DIR --out {source}`.",
        task=tasks.NLVR2Task(),
        source="data/nlvr2",
        px=384,
        batch=128,
        length=_epochs(10, 1, examples=_NLVR2, batch=128),
        transform=_PAIRS,
        every=(1000, 1000),
    ),
    "coco-retrieval": PaperTask(
        "on COCO (Karpathy's split): the dual encoder, by contrast over 3,072 pairs at 384 pixels; "
        "--task.losses.itm-weight 1 also trains the fusion encoder, for vlmo evaluate --rerank",
        "`vlmo data prepare coco --root DIR --out {source}`.",
        task=tasks.RetrievalTask(),
        source="data/coco",
        unit="pair",
        px=384,
        batch=3072,
        length=(3000, 300),
        transform=_PAIRS,
        every=(500, 500),
    ),
    "imagenet": PaperTask(
        "on ImageNet-1K at 224 pixels: the image encoder, with BEiT's rates for a start that saw labels, such as stage "
        "3 after SIZE-stage2-labels or BEiT after ImageNet-22K: a small learning rate, nothing mixed, no weight decay",
        "`vlmo data prepare imagenet --root DIR --out {source}`.",
        task=tasks.ClassificationTask(losses=ClassificationConfig(mixup=0.0, cutmix=0.0)),
        source="data/imagenet",
        batch=512,
        length=_epochs(30, 5, examples=_IMAGENET_1K, batch=512),
        fusion=False,
        text=TextConfig(),
        transform=TransformConfig(
            # timm's rand-m9 and erased areas, as BEiT fine-tunes.
            rand_augment="timm",
            rand_augment_magnitude=9,
            min_crop=0.08,
            random_erasing=0.25,
            fill=128,
        ),
        # BEiT's for a start that saw labels.
        optimizer=replace(_BEIT, weight_decay=1e-8),
        schedule="cosine",
        min_lr=1e-6,
        every=(2500, 12_500),
    ),
    "ade20k": PaperTask(
        "on ADE20K: the image encoder with UPerNet, 160,000 steps of 16 crops of 512 pixels",
        "`vlmo data prepare ade20k --root DIR --out {source}`.",
        task=tasks.SegmentationTask(),
        source="data/ade20k",
        px=512,
        batch=16,
        length=(160_000, 1500),
        fusion=False,
        text=TextConfig(),
        optimizer=_BEIT,
        every=(4000, 16_000),
    ),
}
PAPER_TASKS["coco-captioning"] = replace(
    PAPER_TASKS["coco-retrieval"],
    about="on COCO (Karpathy's split): captions by masked words, ten epochs at 480 pixels, with BEiT-3's settings",
    task=tasks.CaptioningTask(),
    px=480,
    batch=256,
    # Captions of Karpathy's training split.
    length=_epochs(10, 1, examples=566_747, batch=256),
    text=TextConfig(vocab_size=64010, max_length=32),
    optimizer=_BEIT,
    schedule="cosine",
    min_lr=1e-6,
    every=(2000, 5000),
    sizes=_BEIT3_SIZES,
)
PAPER_TASKS["beit3"] = PaperTask(
    "masked data modeling: 2,048 images, texts and pairs a step, with the settings of BEiT-3's paper for its giant",
    "pairs of {source}, by `vlmo data prepare` (CC12M as conceptual_captions), images of data/imagenet22k, texts of "
    "data/text; BEiT-3's SentencePiece in beit3.spm.",
    task=tasks.BEiT3Task(
        "vqkd-base-3x768-clip",
        images=AloneConfig("data/imagenet22k"),
        texts=AloneConfig("data/text"),
    ),
    source=f"{PAPER_TASKS['stage3'].source}+data/cc12m",
    batch=2048,
    length=(1_000_000, 10_000),
    text=TextConfig("beit3.spm", vocab_size=64002, max_length=64),
    unit="pair",
    transform=PAPER_TASKS["stage1"].transform,
    optimizer=OptimizerConfig(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05),
    schedule="cosine",
    clip_norm=3.0,
    sizes=_BEIT3_SIZES,
)
PAPER_TASKS["flickr30k-retrieval"] = replace(
    PAPER_TASKS["coco-retrieval"],
    about="on Flickr30K (Karpathy's split): as on COCO, with half as many steps",
    data="`vlmo data prepare flickr30k --root DIR --out {source}`.",
    source="data/flickr30k",
    length=(1500, 150),
)
PAPER_TASKS["imagenet-self-supervised"] = replace(
    PAPER_TASKS["imagenet"],
    about="on ImageNet-1K at 224 pixels: the image encoder, with BEiT's rates for a start that saw no labels, with "
    "mixup and cutmix",
    task=tasks.ClassificationTask(),
    batch=1024,
    length=_epochs(100, 20, examples=_IMAGENET_1K, batch=1024),
    optimizer=_BEIT,
)

_LARGE_IMAGENET = _epochs(50, 5, examples=_IMAGENET_1K, batch=1024)
_CITED = "{} with stage 3 after base-stage2-labels, quoted from a secondary source (BEiT {})"
_BEITS = "no number (BEiT-{}, after ImageNet-22K {} labels)"
_GIANT = "after fine-tuning VQA test-dev 84.19, test-std 84.03, NLVR2 dev 91.51, test-P 92.58"
# The published stage 2, and so every number of the paper, starts from BEiT after fine-tuning on ImageNet's labels.
_VARIANTS = {
    "": "",
    "labels": ", from BEiT's weights after fine-tuning on ImageNet's labels, as the published ones",
    "self-supervised": ", with BEiT's rates for a start that saw no labels",
}
# fmt: off
TABLE = [
    # task, size, learning rate, drop path, start, reported
    Row("stage1", "base", 1.5e-3, 0.1, None, _FROM_BEIT),
    Row("stage1", "base-plus", 1.5e-3, 0.1, None),
    Row("stage1", "large", 1.5e-3, 0.1, None, _FROM_BEIT),
    Row("stage2", "base", 2e-4, 0.1, "stage1"),
    Row("stage2", "base-plus", 2e-4, 0.1, "stage1"),
    Row("stage2", "large", 2e-4, 0.1, "stage1"),
    Row("stage2", "base", 2e-4, 0.1, "beit-base-pt22k-ft22kto1k", variant="labels"),
    Row("stage2", "large", 2e-4, 0.1, "beit-large-pt22k-ft22kto1k", variant="labels"),
    Row("stage3", "base", 2e-4, 0.1, "stage2", _STAGE3.format(74.8, 57.2, 92.3, 79.3, 76.64, "dev 82.77")),
    Row("stage3", "base-plus", 1e-4, 0.1, "stage2", _STAGE3.format(76.3, 58.6, 93.2, 81.8, 78.5, "test-P 85.1")),
    Row("stage3", "large", 5e-5, 0.1, "stage2", _STAGE3.format(78.2, 60.6, 95.3, 84.5, 79.94, "dev 85.64")),
    Row("vqa", "base", 3e-5, 0.15, "stage3", "test-dev 76.64, test-std 76.89"),
    Row("vqa", "base-plus", 3e-5, 0.15, "stage3", "test-dev 78.5"),
    Row("vqa", "large", 1.5e-5, 0.15, "stage3", "test-dev 79.94, test-std 79.98"),
    Row("nlvr2", "base", 5e-5, 0.1, "stage3", "dev 82.77, test-P 83.34"),
    Row("nlvr2", "base-plus", 3e-5, 0.2, "stage3", "test-P 85.1"),
    Row("nlvr2", "large", 3e-5, 0.15, "stage3", "dev 85.64, test-P 86.86"),
    Row("coco-retrieval", "base", 3e-5, 0.2, "stage3", "TR@1 74.8, IR@1 57.2", nodes=8),
    Row("coco-retrieval", "base-plus", 3e-5, 0.2, "stage3", "TR@1 76.3, IR@1 58.6", nodes=8),
    Row("coco-retrieval", "large", 2e-5, 0.2, "stage3", "TR@1 78.2, IR@1 60.6", nodes=16),
    Row("flickr30k-retrieval", "base", 3e-5, 0.15, "coco-retrieval", "TR@1 92.3, IR@1 79.3", nodes=8),
    Row("flickr30k-retrieval", "base-plus", 3e-5, 0.2, "stage3", "TR@1 93.2, IR@1 81.8", nodes=8),
    Row("flickr30k-retrieval", "large", 2e-5, 0.2, "coco-retrieval", "TR@1 95.3, IR@1 84.5", nodes=16),
    Row("imagenet", "base", 2e-5, 0.1, "stage3", _CITED.format("top-1 85.5", 85.2), {"layer_decay": 0.85}),
    Row("imagenet", "base-plus", 2e-5, 0.1, "stage3", settings={"layer_decay": 0.9}),
    Row("imagenet", "large", 2e-5, 0.4, "stage3", _BEITS.format("Large: 87.4", "with"), {"layer_decay": 0.9}),
    Row("imagenet-self-supervised", "base", 4e-3, 0.1, "stage1", _BEITS.format("Base: 83.7", "without"),
        {"layer_decay": 0.65}),
    Row("imagenet-self-supervised", "base-plus", 4e-3, 0.1, "stage1", settings={"layer_decay": 0.75}),
    Row("imagenet-self-supervised", "large", 1e-3, 0.2, "stage1", _BEITS.format("Large: 86.0", "without"),
        {"layer_decay": 0.75}, _LARGE_IMAGENET),
    Row("ade20k", "base", 3e-5, 0.1, "stage3", _CITED.format("mIoU 53.4", 52.8), {"layer_decay": 0.9, "channels": 768}),
    Row("ade20k", "base-plus", 3e-5, 0.1, "stage3", settings={"layer_decay": 0.95, "channels": 544}),
    Row("ade20k", "base", 7e-4, 0.1, "stage1", settings={"layer_decay": 0.65, "channels": 768},
        variant="self-supervised"),
    Row("ade20k", "large", 2e-5, 0.2, "stage3", settings={"layer_decay": 0.95, "channels": 1024}),
    Row("beit3", "base", 1e-3, 0.1, None, nodes=8),
    Row("beit3", "large", 1e-3, 0.1, None, nodes=16),
    Row("beit3", "giant", 1e-3, 0.1, None, _GIANT, nodes=32),
    Row("coco-captioning", "base", 4e-5, 0.1, "beit3-base", "no number, BEiT-3's README test CIDEr 133.6"),
    Row("coco-captioning", "large", 8e-6, 0.1, "beit3-large", "no number, BEiT-3's README test CIDEr 143.2"),
]
# fmt: on


def _entry(row: Row) -> Entry:
    task = PAPER_TASKS[row.task]
    title, config = task.sizes[row.size]
    # Stages describe themselves: "VLMo-Base, stage 1"; tasks go on with "on".
    if row.task.startswith("stage"):
        title += ","
    return Entry(
        _recipe(row, task, model=config(image_size=task.px, drop_path_rate=row.drop_path)),
        f"{task.about}{_VARIANTS[row.variant]}.",
        expect=f"not yet run; the paper reports {row.reported}.",
        data=task.data,
        command=_command(row.nodes),
        title=title,
        paper=_paper_settings(row),
    )


def _recipe(row: Row, task: PaperTask, *, model: VLMoConfig) -> Recipe:
    settings = model_config(model)
    # Stages 1 and 2 and tasks of images alone have no vision-language experts.
    if not task.fusion:
        settings = replace(settings, num_fusion_layers=0)
    transform = TransformConfig()
    if task.transform is not None:
        transform = replace(task.transform, image_size=task.px)
    steps, warmup = row.length or task.length
    save_every, eval_every = task.every
    init = row.start
    # Stages of this size leave their models below runs/.
    if init is not None and init not in MODELS:
        init = f"runs/{row.size}-{init}/model"
    is_measured = task.task.evaluation is not None and row.task != "stage3"
    return Recipe(
        task=replace(task.task, **row.settings),
        model=settings,
        text=task.text,
        data=DataConfig(source=task.source, unit=task.unit, transform=transform),
        loader=LoaderConfig(global_batch_size=task.batch, num_workers=8),
        optimizer=replace(task.optimizer, lr=row.lr),
        schedule=ScheduleConfig(
            warmup_steps=warmup, kind=task.schedule, min_ratio=task.min_lr / row.lr
        ),
        trainer=TrainerConfig(
            max_steps=steps,
            precision="bf16",
            clip_norm=task.clip_norm,
            save_every=save_every,
            eval_every=eval_every,
        ),
        init=init,
        evaluate_on=task.source if is_measured else None,
        evaluate_split="validation" if is_measured else "test",
    )


def _paper_settings(row: Row) -> dict[str, object]:
    values = {}
    for setting, value in _SETTINGS.get(row.task, {}).items():
        values[setting] = value[row.size] if isinstance(value, dict) else value
    return values


def _command(nodes: int) -> str:
    return f"torchrun {f'--nnodes {nodes} ' if nodes > 1 else ''}--nproc-per-node 8 -m vlmo.cli train {{name}}"


PAPER = {f"{row.size}-{row.task}-{row.variant}".rstrip("-"): _entry(row) for row in TABLE}
"""Recipes by name."""

# A billion noisy pairs, and a much larger contrast: the paper names the data and the batch.
_large = PAPER["large-stage3"].recipe
PAPER["large-plusplus-stage3"] = Entry(
    replace(
        _large,
        data=replace(
            _large.data,
            source="",
            unit="image",
            streams=StreamConfig(
                patterns=("data/noisy-pairs/{00000..99999}.tar",), lanes=1024, shuffle=262_144
            ),
            max_bad_share=0.1,
        ),
        loader=replace(_large.loader, global_batch_size=16_384),
        # A process has 64 pairs: 72 GiB without these, 11 with them, by a dry run.
        trainer=replace(
            _large.trainer, engine=EngineConfig(data_parallel="fsdp", activation_checkpointing=True)
        ),
    ),
    "large-stage3 on a billion noisy pairs, 16,384 of them in each contrast, "
    "then of 32,768: --loader.global-batch-size 32768 --init runs/large-plusplus-stage3/model.",
    expect="not yet run; the paper names the data and the batch. Steps and learning rate are those of large-stage3.",
    data="a billion pairs of the web as img2dataset leaves them, 100,000 tars of 10,000 pairs, data/noisy-pairs; they "
    "are streams, so URLs will do: --data.streams.patterns 's3://bucket/{{00000..99999}}.tar'.",
    command=_command(32),
    title="VLMo-Large++, stage 3:",
)

ABLATIONS: dict[str, tuple[str, str | None, dict[str, Any], dict[str, Any]]] = {
    "plain": ("Multiway, all losses, global hard negatives, from random weights", None, {}, {}),
    "stage1": ("from stage 1", "base-stage1", {}, {}),
    "stage2": ("from stages 1 and 2", "base-stage2", {}, {}),
    "standard": ("standard Transformer, one FFN for all", None, {"experts": "shared"}, {}),
    "no-fusion-expert": (
        "Multiway without vision-language experts",
        None,
        {"num_fusion_layers": 0},
        {},
    ),
    # No loss of ITC alone reaches the vision-language experts, so it has none; fine-tuning starts them from the
    # language experts, as stage 3 does.
    "itc": ("ITC", None, {"num_fusion_layers": 0}, {"mlm_weight": 0.0, "itm_weight": 0.0}),
    "itc-mlm": ("ITC + MLM", None, {}, {"itm_weight": 0.0}),
    "itc-itm": ("ITC + ITM", None, {}, {"mlm_weight": 0.0}),
    "random-negatives": ("negatives sampled uniformly", None, {}, {"negative_sharpness": 0.0}),
    "local-negatives": (
        "hard negatives from an eighth of the batch",
        None,
        {},
        {"negative_groups": 8},
    ),
    "separate-attention": (
        "separate attention for each modality",
        None,
        {"attention": "separate"},
        {},
    ),
}
"""The paper's ablations at Base size: label, start, changes of the model and of the losses."""

# One contrastive loss, as in the paper: base-stage3 has the published code's second one, which models without
# vision-language experts cannot have.
_base = PAPER["base-stage3"]
for _name, (_label, _start, _model, _losses) in ABLATIONS.items():
    PAPER[f"base-ablation-{_name}"] = replace(
        _base,
        recipe=replace(
            _base.recipe,
            model=replace(_base.recipe.model, contrast_fusion_branch=False, **_model),
            task=tasks.VisionLanguageTask(losses=VisionLanguageConfig(**_losses)),
            init=None if _start is None else f"runs/{_start}/model",
        ),
        about=f"An ablation of base-stage3 with one contrastive loss: {_label}.",
        title="",
        paper={},
        expect="not yet run; experiments/findings.py compares the same in small.",
    )
