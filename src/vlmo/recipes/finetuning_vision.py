"""The paper's fine-tuning on pictures alone, by BEiT's recipes, at its three sizes (VLMo, "Vision Tasks").

Settings that the paper leaves to BEiT are those of its published commands and configurations. For Base+ none are
published: it has Base's rates and, for its 24 blocks, Large's layer decay.
"""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.objectives.vision_tasks import ClassificationConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.configs import DataConfig, model_config
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.vision_stages import ClassificationStage, SegmentationStage
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_IMAGENET_1K = 1_281_167
_BETAS = (0.9, 0.999)
_UNMIXED = ClassificationConfig(mixup=0.0, cutmix=0.0)


def base_imagenet() -> Recipe:
    """VLMo-Base's image encoder on ImageNet-1K at 224 pixels: 100 epochs with mixup and cutmix.

    Data:    `vlmo data prepare imagenet --root DIR --out data/imagenet`.
    Start:   the model folder of base-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-imagenet
    Expect:  not yet run; for the paper's image encoder a top-1 of 85.5 is quoted (from a secondary source; BEiT 85.2).
    """
    batch = 1024
    return Recipe(
        stage=ClassificationStage(layer_decay=0.65),
        model=model_config(VLMoConfig.base(drop_path_rate=0.1, num_fusion_layers=0)),
        data=DataConfig(source="data/imagenet", transform=_augmentation(224)),
        loader=LoaderConfig(global_batch_size=batch, num_workers=8),
        optimizer=OptimizerConfig(lr=4e-3, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=20 * _IMAGENET_1K // batch, kind="cosine"),
        trainer=TrainerConfig(
            max_steps=100 * _IMAGENET_1K // batch, precision="bf16", save_every=2500, eval_every=12_500
        ),
        init="runs/base-stage3/model",
        evaluate_on="data/imagenet",
        evaluate_split="validation",
    )


def base_plus_imagenet() -> Recipe:
    """VLMo-Base+'s image encoder on ImageNet-1K at 224 pixels: as base-imagenet, with large-imagenet's layer decay.

    Data:    as base-imagenet.
    Start:   the model folder of base-plus-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-imagenet
    Expect:  not yet run; the paper reports no figure for this size.
    """
    return replace(
        base_imagenet(),
        stage=ClassificationStage(layer_decay=0.75),
        model=model_config(VLMoConfig.base_plus(drop_path_rate=0.1, num_fusion_layers=0)),
        init="runs/base-plus-stage3/model",
    )


def large_imagenet() -> Recipe:
    """VLMo-Large's image encoder on ImageNet-1K at 224 pixels: 50 epochs with a lower learning rate.

    Data:    as base-imagenet.
    Start:   the model folder of large-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-imagenet
    Expect:  not yet run; the paper reports no figure for this size.
    """
    recipe = base_imagenet()
    batch = recipe.loader.global_batch_size
    return replace(
        recipe,
        stage=ClassificationStage(layer_decay=0.75),
        model=model_config(VLMoConfig.large(drop_path_rate=0.2, num_fusion_layers=0)),
        optimizer=replace(recipe.optimizer, lr=1e-3),
        schedule=replace(recipe.schedule, warmup_steps=5 * _IMAGENET_1K // batch),
        trainer=replace(recipe.trainer, max_steps=50 * _IMAGENET_1K // batch),
        init="runs/large-stage3/model",
    )


def base_imagenet_384() -> Recipe:
    """base-imagenet once more at 384 pixels: 30 epochs, a small learning rate, nothing mixed, no weight decay.

    Data:    as base-imagenet.
    Start:   the model folder of base-imagenet.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-imagenet-384
    Expect:  not yet run; the paper reports no figure (BEiT-Base: 86.8, after ImageNet-22K with labels).
    """
    recipe, batch = base_imagenet(), 512
    return replace(
        recipe,
        stage=ClassificationStage(losses=_UNMIXED, layer_decay=0.85),
        model=model_config(VLMoConfig.base(image_size=384, drop_path_rate=0.1, num_fusion_layers=0)),
        data=DataConfig(source="data/imagenet", transform=_augmentation(384)),
        loader=replace(recipe.loader, global_batch_size=batch),
        optimizer=OptimizerConfig(lr=2e-5, betas=_BETAS, weight_decay=1e-8),
        schedule=ScheduleConfig(warmup_steps=5 * _IMAGENET_1K // batch, kind="cosine"),
        trainer=replace(recipe.trainer, max_steps=30 * _IMAGENET_1K // batch),
        init="runs/base-imagenet/model",
    )


def base_plus_imagenet_384() -> Recipe:
    """base-plus-imagenet once more at 384 pixels: as base-imagenet-384, with large-imagenet-384's layer decay.

    Data:    as base-imagenet.
    Start:   the model folder of base-plus-imagenet.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-imagenet-384
    Expect:  not yet run; the paper reports no figure for this size.
    """
    return replace(
        base_imagenet_384(),
        stage=ClassificationStage(losses=_UNMIXED, layer_decay=0.9),
        model=model_config(VLMoConfig.base_plus(image_size=384, drop_path_rate=0.1, num_fusion_layers=0)),
        init="runs/base-plus-imagenet/model",
    )


def large_imagenet_384() -> Recipe:
    """large-imagenet once more at 384 pixels: as base-imagenet-384 with more drop path.

    Data:    as base-imagenet.
    Start:   the model folder of large-imagenet.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-imagenet-384
    Expect:  not yet run; the paper reports no figure (BEiT-Large: 88.4, after ImageNet-22K with labels).
    """
    return replace(
        base_imagenet_384(),
        stage=ClassificationStage(losses=_UNMIXED, layer_decay=0.9),
        model=model_config(VLMoConfig.large(image_size=384, drop_path_rate=0.4, num_fusion_layers=0)),
        init="runs/large-imagenet/model",
    )


def base_ade20k() -> Recipe:
    """VLMo-Base's image encoder with UPerNet on ADE20K: 160,000 steps of 16 crops of 512 pixels.

    Data:    `vlmo data prepare ade20k --root DIR --out data/ade20k`.
    Start:   the model folder of base-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-ade20k
    Expect:  not yet run; for the paper's image encoder a mIoU of 53.4 is quoted (from a secondary source; BEiT 52.8).
    """
    return Recipe(
        stage=SegmentationStage(layer_decay=0.9, channels=768),
        model=model_config(VLMoConfig.base(image_size=512, drop_path_rate=0.1, num_fusion_layers=0)),
        data=DataConfig(source="data/ade20k"),
        loader=LoaderConfig(global_batch_size=16, num_workers=8),
        optimizer=OptimizerConfig(lr=3e-5, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=1500),
        trainer=TrainerConfig(max_steps=160_000, precision="bf16", save_every=4000, eval_every=16_000),
        init="runs/base-stage3/model",
        evaluate_on="data/ade20k",
        evaluate_split="validation",
    )


def base_plus_ade20k() -> Recipe:
    """VLMo-Base+'s image encoder with UPerNet on ADE20K: as base-ade20k, with large-ade20k's layer decay.

    Data:    as base-ade20k.
    Start:   the model folder of base-plus-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-ade20k
    Expect:  not yet run; the paper reports no figure for this size.
    """
    return replace(
        base_ade20k(),
        stage=SegmentationStage(layer_decay=0.95, channels=544),
        model=model_config(VLMoConfig.base_plus(image_size=512, drop_path_rate=0.1, num_fusion_layers=0)),
        init="runs/base-plus-stage3/model",
    )


def large_ade20k() -> Recipe:
    """VLMo-Large's image encoder with UPerNet on ADE20K: as base-ade20k with a lower learning rate.

    Data:    as base-ade20k.
    Start:   the model folder of large-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-ade20k
    Expect:  not yet run; the paper reports no figure for this size.
    """
    recipe = base_ade20k()
    return replace(
        recipe,
        stage=SegmentationStage(layer_decay=0.95, channels=1024),
        model=model_config(VLMoConfig.large(image_size=512, drop_path_rate=0.2, num_fusion_layers=0)),
        optimizer=replace(recipe.optimizer, lr=2e-5),
        init="runs/large-stage3/model",
    )


def _augmentation(image_size: int) -> TransformConfig:
    # RandAugment's default are two operations of strength 9, which are BEiT's too.
    return TransformConfig(image_size=image_size, min_crop=0.08, random_erasing=0.25, fill=128)
