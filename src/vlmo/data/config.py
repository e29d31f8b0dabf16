"""Settings of the training data."""

from dataclasses import dataclass
from typing import Literal

from vlmo.data.loader import LoaderConfig
from vlmo.processing import TransformConfig


@dataclass(frozen=True)
class StreamConfig:
    """Shards that are read as streams, and their mixture."""

    patterns: tuple[str, ...] = ()
    """Tar shards or parquet files: paths, wildcards, braces, folders or fsspec URLs. Each pattern is a source."""
    weights: tuple[float, ...] = ()
    """Shares of the sources among the samples, relative to each other; equal ones if none are given."""
    lanes: int = 8
    """Rows of shards that are read side by side; a multiple of processes x accumulation. Where a source has
    fewer shards, several lanes read one, and give some of its samples each."""
    shuffle: int = 4096
    """Samples that are kept in memory and shuffled, over all processes."""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is below 1, or the weights do not fit the patterns."""
        if self.lanes < 1 or self.shuffle < 1:
            raise ValueError(
                f"streams: lanes is {self.lanes} and shuffle {self.shuffle}; give 1 or more"
            )
        if self.weights and (len(self.weights) != len(self.patterns) or min(self.weights) <= 0):
            number = len(self.patterns)
            raise ValueError(
                f"streams: weights are {self.weights} for {number} patterns; give each a number above 0"
            )


@dataclass(frozen=True)
class DataConfig:
    """Training data, and how they are read."""

    source: str = ""
    """A built-in name or a path (docs/data.md), or several with "+" between them."""
    split: str = "train"
    """Part of the source."""
    weights: tuple[float, ...] = ()
    """Visits to each caption in an epoch of pairs, a number for each of several sources ("A+B"); () is one visit. With
    0.5, half of the captions are visited, the same ones in each epoch."""
    unit: Literal["image", "pair"] = "image"
    """Example of an epoch: an image with one of its captions, or each pair of an image and a caption, as in the
    published code. Streams have an image with one of its captions."""
    transform: TransformConfig = TransformConfig()
    """Augmentation; its image_size follows the model's."""
    mlm_probability: float = 0.15
    """Share of text tokens that are masked, as whole words."""
    mask_only: tuple[str, ...] = ()
    """Words that are masked alone, all of a caption at once, in a share `mask_only_share` of the captions that have
    any: those that no other word tells, such as "left" and "right", are learnt sooner beside words that are seen. What
    the vocabulary does not have as a whole word is left out."""
    mask_only_share: float = 0.4
    """See `mask_only`."""
    max_bad_share: float = 0.01
    """Share of unreadable samples above which the run does not start; of streams, above which it ends."""
    streams: StreamConfig = StreamConfig()
    """Shards to read instead of `source`, for pre-training and fine-tuning for retrieval (docs/data.md, "Streams")."""

    def __post_init__(self) -> None:
        """Raise ValueError if no data are named, settings disagree, or a share is not from 0 to 1."""
        if not self.source and not self.streams.patterns:
            raise ValueError(
                "data.source is empty, and data.streams.patterns too; name the data to read"
            )
        if self.weights and self.unit != "pair":
            raise ValueError(
                f"data.weights is {self.weights}, which weighs pairs; set data.unit to pair"
            )
        if self.transform.keep_aspect and self.streams.patterns:
            raise ValueError(
                "data.transform.keep_aspect needs to know all shapes; give data.source, not data.streams"
            )
        for name in ("mlm_probability", "mask_only_share", "max_bad_share"):
            if not 0 <= (share := vars(self)[name]) <= 1 or (
                name == "mlm_probability" and not share
            ):
                raise ValueError(
                    f"data.{name} is {share}; give a share, from 0 to 1 (of mlm_probability above 0)"
                )


def validate_lanes(config: StreamConfig, *, loader: LoaderConfig, processes: int) -> None:
    """Raise ValueError unless lanes can be divided over processes and micro-steps, and rows of a batch over lanes."""
    pieces = processes * loader.accumulation
    lanes = config.lanes
    size = loader.global_batch_size
    if lanes % pieces:
        raise ValueError(
            f"streams.lanes is {lanes}, not a multiple of {processes} processes x {loader.accumulation} micro-steps: "
            f"change it to a multiple of {pieces}"
        )
    if size % lanes:
        raise ValueError(
            f"global_batch_size is {size}, not a multiple of {lanes} lanes (streams.lanes): change one"
        )
