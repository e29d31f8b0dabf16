"""Parts of a recipe as plain frozen dataclasses."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmo.data.stream import StreamConfig
from vlmo.model import VLMoConfig
from vlmo.model.visual_tokenizer import VQVisualTokenizerConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.vocabulary import LEARN_VOCABULARY

# What no pre-training stage reads.
_NOT_PRE_TRAINED = (
    "use_pooler",
    "use_match_head",
    "segmentation_layers",
    "segmentation_channels",
    "tie_word_embeddings",
)


def _declared(config_class: type, *, leave_out: Iterable[str] = ()) -> list[tuple[str, Any, Any]]:
    """Fields that a Hugging Face configuration declares itself: (name, type, field with default)."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    return [
        (name, kind, dataclasses.field(default=fields[name].default))
        for name, kind in config_class.__annotations__.items()
        if name in fields and name not in leave_out
    ]


# Plain dataclasses with the fields of the Hugging Face configurations: those cannot be frozen, nor shown as options.
ModelConfig: Any = dataclasses.make_dataclass(
    "ModelConfig",
    _declared(VLMoConfig, leave_out=("pad_token_id", *_NOT_PRE_TRAINED)),
    frozen=True,
    namespace={"__module__": __name__},
)
VisualTokenizerConfig: Any = dataclasses.make_dataclass(
    "VisualTokenizerConfig", _declared(VQVisualTokenizerConfig), frozen=True, namespace={"__module__": __name__}
)


def model_config(config: VLMoConfig) -> Any:
    """The recipe's form of a preset; sizes that follow from hidden_size are left to follow it."""
    settings = {field.name: vars(config)[field.name] for field in dataclasses.fields(ModelConfig)}
    for name, factor in (("intermediate_size", 4), ("projection_size", 1)):
        if settings[name] == factor * config.hidden_size:
            settings[name] = None
    return ModelConfig(**settings)


@dataclass(frozen=True)
class TextConfig:
    """From words to ids."""

    vocabulary: str = LEARN_VOCABULARY
    """`learn` (WordPiece, on `learn_from`), or BERT's `vocab.txt` or a folder that holds it."""
    vocab_size: int = 30522
    """Size of a vocabulary that is learnt."""
    learn_from: tuple[str, ...] = ()
    """Data sets whose captions a vocabulary is learnt on."""
    max_length: int = 40
    """Most tokens of a text; longer ones are cut."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is made ready."""

    source: str = ""
    """A built-in name or a path (docs/data.md)."""
    split: str = "train"
    """Part of the source."""
    transform: TransformConfig = TransformConfig()
    """Augmentation; its image_size follows the model's."""
    mlm_probability: float = 0.15
    """Share of text tokens that are masked, as whole words."""
    max_bad_share: float = 0.01
    """Share of unreadable samples above which the run does not start; of streams, above which it ends."""
    cache_images: bool = False
    """Keep decoded pictures in memory (small sets)."""
    streams: StreamConfig = StreamConfig()
    """Shards to read instead of `source`, for pre-training and fine-tuning for retrieval (docs/data.md, "Streams")."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: No data are named, or a share is not from 0 to 1.
        """
        if not self.source and not self.streams.patterns:
            raise ValueError("data.source is empty, and data.streams.patterns too; name what is to be read")
        if not 0 < self.mlm_probability <= 1 or not 0 <= self.max_bad_share <= 1:
            raise ValueError(
                f"mlm_probability is {self.mlm_probability} and max_bad_share {self.max_bad_share}; give shares, "
                "from 0 to 1 (the former above 0)"
            )
