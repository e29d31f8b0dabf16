"""Tables of the site that are made from the package's own."""

from __future__ import annotations

from vlmo.released.published import MODELS, NamedModel

_METRICS = {
    "tr@1": "TR@1",
    "ir@1": "IR@1",
    "accuracy": "accuracy",
    "top1": "top-1",
    "cider": "CIDEr",
}
_STARTS = {
    "pre-training": "coco-retrieval",
    "text": "stage3",
    "images": "stage2",
    "classification": "imagenet",
}


def command(model: NamedModel) -> str:
    """Return the command that a reader of the table would try first."""
    name, size = model.name, model.size.replace("_", "-")
    if model.task == "vqa":
        return f"vlmo evaluate {name} --data prepared/vqav2 --split validation"
    if model.task == "nlvr2":
        return f"vlmo evaluate {name} --data prepared/nlvr2"
    if "nocaps" in name:
        return f"vlmo caption {name} PHOTOS --out PHOTOS/captions.jsonl"
    if model.data:
        return f"vlmo evaluate {name} --data prepared/{model.data}" + " --split validation" * (
            model.data == "imagenet"
        )
    if model.task in _STARTS:
        plain = " --model.position-embedding absolute --model.layer-scale-init None" * (
            name == "beit-base-pt1k-800ep"
        )
        return f"vlmo train {size}-{_STARTS[model.task]} --init {name}{plain}"
    return (
        f"vlmo index {name} PHOTOS --out photos"
        if model.task == "retrieval"
        else f"vlmo models {name}"
    )


def published_models() -> str:
    """Return a row for each published model: task, size, file, published results and their source, a command."""
    lines = [
        "| name | task | px | file | published, % | where | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in MODELS.values():
        file = (
            f"[{model.address.rpartition('/')[2]}]({model.address})"
            if model.address
            else "in the package"
        )
        numbers = ", ".join(
            f"{split} {_METRICS[metric]} {percent:g}" for split, metric, percent in model.reported
        )
        numbers = f"{model.data} {numbers}" if numbers else ""
        cells = (
            model.task,
            str(model.image_size),
            file,
            numbers,
            model.source,
            f"`{command(model)}`",
        )
        lines.append(f"| `{model.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"published models": published_models}
"""Tables by the name in a page's line "Table: NAME"."""
