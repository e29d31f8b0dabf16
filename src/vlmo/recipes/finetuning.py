"""The paper's fine-tuning on pairs, at its three sizes (VLMo, "Fine-Tuning VLMo on Downstream Tasks" and appendix).

Pictures are larger than in pre-training: the position tables of the start folder are resized.
"""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.answering_stages import QuestionStage, ReasoningStage
from vlmo.recipes.configs import DataConfig, TextConfig, model_config
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.retrieval_stage import RetrievalStage
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_BERT = TextConfig(vocabulary="bert-base-uncased", max_length=40)
_EPOCHS = 10
_VQA_QUESTIONS = 640_000  # about: train2014 and most of val2014, those with an answer of the list
_NLVR2_SENTENCES = 86_373


def base_vqa() -> Recipe:
    """VLMo-Base on VQAv2: 3,129 answers, ten epochs at 480 pixels.

    Data:    `vlmo data prepare vqav2 --root DIR --out data/vqav2`.
    Start:   the model folder of base-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-vqa
    Expect:  not yet run; the paper reports test-dev 76.64, test-std 76.89.
    """
    steps = _EPOCHS * _VQA_QUESTIONS // 128
    return Recipe(
        stage=QuestionStage(head_lr_scale=20.0),
        model=model_config(VLMoConfig.base(image_size=480, drop_path_rate=0.15)),
        text=_BERT,
        data=_pairs("data/vqav2", image_size=480),
        loader=LoaderConfig(global_batch_size=128, num_workers=8),
        optimizer=OptimizerConfig(lr=3e-5),
        schedule=ScheduleConfig(warmup_steps=steps // 10),
        trainer=TrainerConfig(max_steps=steps, precision="bf16", save_every=2000, eval_every=5000),
        init="runs/base-stage3/model",
        evaluate_on="data/vqav2",
        evaluate_split="validation",
    )


def base_plus_vqa() -> Recipe:
    """VLMo-Base+ on VQAv2: as base-vqa.

    Data:    as base-vqa.
    Start:   the model folder of base-plus-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-vqa
    Expect:  not yet run; the paper reports test-dev 78.5.
    """
    model = model_config(VLMoConfig.base_plus(image_size=480, drop_path_rate=0.15))
    return replace(base_vqa(), model=model, init="runs/base-plus-stage3/model")


def large_vqa() -> Recipe:
    """VLMo-Large on VQAv2: as base-vqa with half the learning rate.

    Data:    as base-vqa.
    Start:   the model folder of large-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-vqa
    Expect:  not yet run; the paper reports test-dev 79.94, test-std 79.98.
    """
    return replace(
        base_vqa(),
        model=model_config(VLMoConfig.large(image_size=480, drop_path_rate=0.15)),
        optimizer=OptimizerConfig(lr=1.5e-5),
        init="runs/large-stage3/model",
    )


def base_nlvr2() -> Recipe:
    """VLMo-Base on NLVR2: sentences about two pictures, ten epochs at 384 pixels.

    Data:    `vlmo data prepare nlvr2 --root DIR --out data/nlvr2`.
    Start:   the model folder of base-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-nlvr2
    Expect:  not yet run; the paper reports dev 82.77, test-P 83.34.
    """
    steps = _EPOCHS * _NLVR2_SENTENCES // 128
    return Recipe(
        stage=ReasoningStage(),
        model=model_config(VLMoConfig.base(image_size=384, drop_path_rate=0.1)),
        text=_BERT,
        data=_pairs("data/nlvr2", image_size=384),
        loader=LoaderConfig(global_batch_size=128, num_workers=8),
        optimizer=OptimizerConfig(lr=5e-5),
        schedule=ScheduleConfig(warmup_steps=steps // 10),
        trainer=TrainerConfig(max_steps=steps, precision="bf16", save_every=1000, eval_every=1000),
        init="runs/base-stage3/model",
        evaluate_on="data/nlvr2",
        evaluate_split="validation",
    )


def base_plus_nlvr2() -> Recipe:
    """VLMo-Base+ on NLVR2: as base-nlvr2 with a lower learning rate and more drop path.

    Data:    as base-nlvr2.
    Start:   the model folder of base-plus-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train base-plus-nlvr2
    Expect:  not yet run; the paper reports test-P 85.1.
    """
    return replace(
        base_nlvr2(),
        model=model_config(VLMoConfig.base_plus(image_size=384, drop_path_rate=0.2)),
        optimizer=OptimizerConfig(lr=3e-5),
        init="runs/base-plus-stage3/model",
    )


def large_nlvr2() -> Recipe:
    """VLMo-Large on NLVR2: as base-nlvr2 with a lower learning rate and more drop path.

    Data:    as base-nlvr2.
    Start:   the model folder of large-stage3.
    Run:     torchrun --nproc-per-node 8 -m vlmo.cli train large-nlvr2
    Expect:  not yet run; the paper reports dev 85.64, test-P 86.86.
    """
    return replace(
        base_nlvr2(),
        model=model_config(VLMoConfig.large(image_size=384, drop_path_rate=0.15)),
        optimizer=OptimizerConfig(lr=3e-5),
        init="runs/large-stage3/model",
    )


def base_coco_retrieval() -> Recipe:
    """VLMo-Base on COCO (Karpathy's split): the dual encoder, by contrast over 3,072 pairs at 384 pixels.

    `--stage.losses.itm-weight 1` also trains the fusion encoder, which `vlmo evaluate --rerank` then lets reorder what
    the dual encoder found.

    Data:    `vlmo data prepare coco --root DIR --out data/coco`.
    Start:   the model folder of base-stage3.
    Run:     torchrun --nnodes 8 --nproc-per-node 8 -m vlmo.cli train base-coco-retrieval
    Expect:  not yet run; the paper reports TR@1 74.8, IR@1 57.2.
    """
    return Recipe(
        stage=RetrievalStage(),
        model=model_config(VLMoConfig.base(image_size=384, drop_path_rate=0.2)),
        text=_BERT,
        data=_pairs("data/coco", image_size=384),
        loader=LoaderConfig(global_batch_size=3072, num_workers=8),
        optimizer=OptimizerConfig(lr=3e-5),
        schedule=ScheduleConfig(warmup_steps=300),
        trainer=TrainerConfig(max_steps=3000, precision="bf16", save_every=500, eval_every=500),
        init="runs/base-stage3/model",
        evaluate_on="data/coco",
        evaluate_split="validation",
    )


def base_plus_coco_retrieval() -> Recipe:
    """VLMo-Base+ on COCO: as base-coco-retrieval.

    Data:    as base-coco-retrieval.
    Start:   the model folder of base-plus-stage3.
    Run:     torchrun --nnodes 8 --nproc-per-node 8 -m vlmo.cli train base-plus-coco-retrieval
    Expect:  not yet run; the paper reports TR@1 76.3, IR@1 58.6.
    """
    model = model_config(VLMoConfig.base_plus(image_size=384, drop_path_rate=0.2))
    return replace(base_coco_retrieval(), model=model, init="runs/base-plus-stage3/model")


def large_coco_retrieval() -> Recipe:
    """VLMo-Large on COCO: as base-coco-retrieval with a lower learning rate.

    Data:    as base-coco-retrieval.
    Start:   the model folder of large-stage3.
    Run:     torchrun --nnodes 16 --nproc-per-node 8 -m vlmo.cli train large-coco-retrieval
    Expect:  not yet run; the paper reports TR@1 78.2, IR@1 60.6.
    """
    return replace(
        base_coco_retrieval(),
        model=model_config(VLMoConfig.large(image_size=384, drop_path_rate=0.2)),
        optimizer=OptimizerConfig(lr=2e-5),
        init="runs/large-stage3/model",
    )


def base_flickr30k_retrieval() -> Recipe:
    """VLMo-Base on Flickr30K (Karpathy's split), from the model for COCO: half as many steps.

    Data:    `vlmo data prepare flickr30k --root DIR --out data/flickr30k`.
    Start:   the model folder of base-coco-retrieval.
    Run:     torchrun --nnodes 8 --nproc-per-node 8 -m vlmo.cli train base-flickr30k-retrieval
    Expect:  not yet run; the paper reports TR@1 92.3, IR@1 79.3.
    """
    recipe = base_coco_retrieval()
    return replace(
        recipe,
        model=model_config(VLMoConfig.base(image_size=384, drop_path_rate=0.15)),
        data=_pairs("data/flickr30k", image_size=384),
        schedule=ScheduleConfig(warmup_steps=150),
        trainer=replace(recipe.trainer, max_steps=1500),
        init="runs/base-coco-retrieval/model",
        evaluate_on="data/flickr30k",
    )


def base_plus_flickr30k_retrieval() -> Recipe:
    """VLMo-Base+ on Flickr30K, from stage 3 and with more drop path than base-flickr30k-retrieval.

    Data:    as base-flickr30k-retrieval.
    Start:   the model folder of base-plus-stage3.
    Run:     torchrun --nnodes 8 --nproc-per-node 8 -m vlmo.cli train base-plus-flickr30k-retrieval
    Expect:  not yet run; the paper reports TR@1 93.2, IR@1 81.8.
    """
    model = model_config(VLMoConfig.base_plus(image_size=384, drop_path_rate=0.2))
    return replace(base_flickr30k_retrieval(), model=model, init="runs/base-plus-stage3/model")


def large_flickr30k_retrieval() -> Recipe:
    """VLMo-Large on Flickr30K, from the model for COCO.

    Data:    as base-flickr30k-retrieval.
    Start:   the model folder of large-coco-retrieval.
    Run:     torchrun --nnodes 16 --nproc-per-node 8 -m vlmo.cli train large-flickr30k-retrieval
    Expect:  not yet run; the paper reports TR@1 95.3, IR@1 84.5.
    """
    return replace(
        base_flickr30k_retrieval(),
        model=model_config(VLMoConfig.large(image_size=384, drop_path_rate=0.2)),
        optimizer=OptimizerConfig(lr=2e-5),
        init="runs/large-coco-retrieval/model",
    )


def _pairs(source: str, *, image_size: int) -> DataConfig:
    # Sentences speak of left and right, so nothing is mirrored.
    return DataConfig(source=source, transform=TransformConfig(image_size=image_size, horizontal_flip=0.0, fill=128))
