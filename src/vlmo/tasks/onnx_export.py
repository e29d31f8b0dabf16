"""ONNX export with the recall of each variant: where a model folder, its graphs and data meet."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlmo.export.onnx import OnnxReport, add_recalls, write_onnx
from vlmo.export.runtime import OnnxRetrievalModel
from vlmo.export.sessions import Precision
from vlmo.progress import Progress
from vlmo.retrieval.engines import calibration_samples
from vlmo.tasks.base import quarantine_of
from vlmo.tasks.registry import task_of
from vlmo.tasks.retrieval import PairSet, RetrievalStage


def export_onnx(
    folder: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    recall_on: str | None = None,
    split: str = "test",
    console: Console | None = None,
) -> OnnxReport:
    """`write_onnx` and, with `recall_on`, what each variant finds among the pairs of that source.

    Scales of int8 activations are calibrated for models that retrieve; see `calibration_samples`.

    Args:
        recall_on: Name of a source, as in `vlmo evaluate`. Its recalls go into the folder's description too.
        console: Where differences and recalls are printed.

    Raises:
        ValueError: As `write_onnx`; or `recall_on` was given for a model that does not search.
    """
    rows = None
    if recall_on is not None:  # before the work, as this may fail
        _, processor = RetrievalStage.load(folder, device="cpu")
        rows = PairSet.read(recall_on, split=split, processor=processor, quarantine=quarantine_of(folder, split))
    retrieves = (Path(folder) / "processor_config.json").is_file() and task_of(folder) is RetrievalStage
    samples = calibration_samples(Path(folder)) if int8 and retrieves else None
    with Progress.on_stderr() if console is not None else Progress(None) as progress:
        report = write_onnx(folder, out, int8=int8, samples=samples, report=progress.update)
    if console is not None:
        console.print("\n".join(report.lines()), markup=False, highlight=False)
    if rows is not None:
        variants: list[Precision] = ["float32", "int8"] if int8 else ["float32"]
        results = {name: rows.outputs(OnnxRetrievalModel(out, precision=name), console=console) for name in variants}
        report = add_recalls(report, {name: result.metrics for name, result in results.items()}, source=str(recall_on))
        if console is not None:
            table = Table(title=f"ONNX Runtime on {recall_on} {split}, recall in percent")
            for name in ["", *results, *(["int8 loses"] if int8 else []), "chance"]:
                table.add_column(name, justify="right" if name else "left")
            for name, chance in results["float32"].chance.items():
                values = [result.metrics[name] for result in results.values()]
                values += [values[0] - values[1]] if int8 else []
                table.add_row(name.upper(), *(f"{100 * value:.1f}" for value in [*values, chance]))
            console.print(table)
    return report
