"""The paper's three stages, at its three sizes (VLMo, "Stagewise Pre-Training" and "Pre-Training Setup")."""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.data.stream import StreamConfig
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.configs import DataConfig, TextConfig, model_config
from vlmo.recipes.pretraining_stages import LanguageStage, VisionLanguageStage, VisionStage
from vlmo.recipes.recipe import Recipe
from vlmo.training import EngineConfig, OptimizerConfig, ScheduleConfig, TrainerConfig

_BERT = TextConfig(vocabulary="bert-base-uncased", max_length=40)
_DROP_PATH = 0.1
_IMAGENET_22K = 14_197_122  # pictures, as its site states


def base_stage1() -> Recipe:
    """VLMo-Base, stage 1: masked image modelling with BEiT's settings.

    Data:    ImageNet-22K as a folder of pictures, `data/imagenet22k`; DALL-E's tokenizer (`FlavaImageCodebook`) in
             `visual-tokenizer`; BERT's vocabulary in `bert-base-uncased`.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-stage1 --run-dir runs/base-stage1
    Expect:  not yet run; the paper takes this stage from BEiT's published weights.
    """
    batch, epochs = 2048, 150
    return Recipe(
        stage=VisionStage(visual_tokenizer="visual-tokenizer"),
        model=model_config(VLMoConfig.base(drop_path_rate=_DROP_PATH, num_fusion_layers=0)),
        text=_BERT,
        data=DataConfig(
            source="data/imagenet22k",
            transform=TransformConfig(image_size=224, rand_augment_ops=0, min_crop=0.08, color_jitter=0.4, fill=128),
        ),
        loader=LoaderConfig(global_batch_size=batch, num_workers=8),
        optimizer=OptimizerConfig(lr=1.5e-3, betas=(0.9, 0.999), weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=10_000, kind="cosine"),
        trainer=TrainerConfig(
            max_steps=epochs * _IMAGENET_22K // batch, precision="bf16", clip_norm=3.0, save_every=5000
        ),
    )


def base_stage2() -> Recipe:
    """VLMo-Base, stage 2: masked language modelling; attention and vision experts stay as stage 1 left them.

    Data:    Wikipedia and BookCorpus, one sentence or document a line, `data/text`; BERT's vocabulary in
             `bert-base-uncased`.
    Start:   the model folder of base-stage1.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-stage2 --init runs/base-stage1/model
    Expect:  not yet run; the paper reports no figure for this stage alone.
    """
    return Recipe(
        stage=LanguageStage(),
        model=model_config(VLMoConfig.base(drop_path_rate=_DROP_PATH, num_fusion_layers=0)),
        text=replace(_BERT, max_length=192),
        data=DataConfig(source="data/text"),
        loader=LoaderConfig(global_batch_size=1024, num_workers=8),
        optimizer=OptimizerConfig(lr=2e-4),
        schedule=ScheduleConfig(warmup_steps=2500),
        trainer=TrainerConfig(max_steps=200_000, precision="bf16", save_every=5000),
        init="runs/base-stage1/model",
    )


def base_stage3() -> Recipe:
    """VLMo-Base, stage 3: contrast, masked language modelling and matching on pairs.

    Data:    COCO, Visual Genome, SBU and Conceptual Captions, one data set on disk, `data/pairs`.
    Start:   the model folder of base-stage2.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-stage3 --init runs/base-stage2/model
    Expect:  not yet run; the paper reports, after fine-tuning, COCO TR@1 74.8 / IR@1 57.2, Flickr30K 92.3 / 79.3,
             VQA test-dev 76.64, NLVR2 dev 82.77.
    """
    return Recipe(
        stage=VisionLanguageStage(),
        model=model_config(VLMoConfig.base(drop_path_rate=_DROP_PATH)),
        text=_BERT,
        data=DataConfig(source="data/pairs", transform=TransformConfig(image_size=224, fill=128)),
        loader=LoaderConfig(global_batch_size=1024, num_workers=8),
        optimizer=OptimizerConfig(lr=2e-4),
        schedule=ScheduleConfig(warmup_steps=2500),
        trainer=TrainerConfig(max_steps=200_000, precision="bf16", save_every=5000),
        init="runs/base-stage2/model",
    )


def base_plus_stage1() -> Recipe:
    """VLMo-Base+, stage 1: as base-stage1, narrower and deeper, with absolute positions and without LayerScale.

    Data:    as base-stage1.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-stage1 --run-dir runs/base-plus-stage1
    Expect:  not yet run; the paper reports no figure for this stage alone.
    """
    model = model_config(VLMoConfig.base_plus(drop_path_rate=_DROP_PATH, num_fusion_layers=0))
    return replace(base_stage1(), model=model)


def base_plus_stage2() -> Recipe:
    """VLMo-Base+, stage 2: as base-stage2.

    Data:    as base-stage2.
    Start:   the model folder of base-plus-stage1.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-stage2 --init runs/base-plus-stage1/model
    Expect:  not yet run; the paper reports no figure for this stage alone.
    """
    model = model_config(VLMoConfig.base_plus(drop_path_rate=_DROP_PATH, num_fusion_layers=0))
    return replace(base_stage2(), model=model, init="runs/base-plus-stage1/model")


def base_plus_stage3() -> Recipe:
    """VLMo-Base+, stage 3: as base-stage3 with half the learning rate.

    Data:    as base-stage3.
    Start:   the model folder of base-plus-stage2.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-stage3 --init runs/base-plus-stage2/model
    Expect:  not yet run; the paper reports, after fine-tuning, COCO TR@1 76.3 / IR@1 58.6, Flickr30K 93.2 / 81.8,
             VQA test-dev 78.5, NLVR2 test-P 85.1.
    """
    return replace(
        base_stage3(),
        model=model_config(VLMoConfig.base_plus(drop_path_rate=_DROP_PATH)),
        optimizer=OptimizerConfig(lr=1e-4),
        init="runs/base-plus-stage2/model",
    )


def large_stage1() -> Recipe:
    """VLMo-Large, stage 1: as base-stage1, with LayerScale starting at 1e-5.

    Data:    as base-stage1.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-stage1 --run-dir runs/large-stage1
    Expect:  not yet run; the paper takes this stage from BEiT's published weights.
    """
    model = model_config(VLMoConfig.large(drop_path_rate=_DROP_PATH, num_fusion_layers=0))
    return replace(base_stage1(), model=model)


def large_stage2() -> Recipe:
    """VLMo-Large, stage 2: as base-stage2.

    Data:    as base-stage2.
    Start:   the model folder of large-stage1.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-stage2 --init runs/large-stage1/model
    Expect:  not yet run; the paper reports no figure for this stage alone.
    """
    model = model_config(VLMoConfig.large(drop_path_rate=_DROP_PATH, num_fusion_layers=0))
    return replace(base_stage2(), model=model, init="runs/large-stage1/model")


def large_stage3() -> Recipe:
    """VLMo-Large, stage 3: as base-stage3 with a quarter of the learning rate.

    Data:    as base-stage3.
    Start:   the model folder of large-stage2.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-stage3 --init runs/large-stage2/model
    Expect:  not yet run; the paper reports, after fine-tuning, COCO TR@1 78.2 / IR@1 60.6, Flickr30K 95.3 / 84.5,
             VQA test-dev 79.94, NLVR2 dev 85.64.
    """
    return replace(
        base_stage3(),
        model=model_config(VLMoConfig.large(drop_path_rate=_DROP_PATH)),
        optimizer=OptimizerConfig(lr=5e-5),
        init="runs/large-stage2/model",
    )


def large_plusplus_stage3() -> Recipe:
    """VLMo-Large++, stage 3, first part: as large-stage3 on a billion noisy pairs, 16,384 of them in each contrast.

    Data:    a billion pairs of the web as img2dataset leaves them, 100,000 tars of 10,000 pairs, `data/noisy-pairs`;
             they are streams, so URLs will do: --data.streams.patterns 's3://bucket/{00000..99999}.tar'.
    Start:   the model folder of large-stage2.
    Run:     torchrun --nnodes 32 --nproc-per-node 8 -m vlmo.cli train large-plusplus-stage3
    Expect:  not yet run; the paper names the data and the batch. Steps and learning rate are those of large-stage3.
    """
    recipe = large_stage3()
    return replace(
        recipe,
        data=replace(
            recipe.data,
            source="",
            streams=StreamConfig(patterns=("data/noisy-pairs/{00000..99999}.tar",), lanes=1024, shuffle=262_144),
            max_bad_share=0.1,
        ),
        loader=replace(recipe.loader, global_batch_size=16_384),
        # A process has 64 pairs in either part: 72 GiB without these, 11 with them, by a dry run.
        trainer=replace(recipe.trainer, engine=EngineConfig(data_parallel="fsdp", activation_checkpointing=True)),
    )


def large_plusplus_stage3_32k() -> Recipe:
    """VLMo-Large++, stage 3, second part: the same with 32,768 pairs in each contrast.

    Data:    as large-plusplus-stage3, in another order.
    Start:   the model folder of large-plusplus-stage3.
    Run:     torchrun --nnodes 64 --nproc-per-node 8 -m vlmo.cli train large-plusplus-stage3-32k
    Expect:  not yet run; the paper names the data and the batch. Steps and learning rate are those of large-stage3.
    """
    recipe = large_plusplus_stage3()
    return replace(
        recipe,
        loader=replace(recipe.loader, global_batch_size=32_768),
        init="runs/large-plusplus-stage3/model",
        seed=1,
    )
