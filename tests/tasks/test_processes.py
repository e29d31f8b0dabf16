"""Two processes share the rows of every evaluation and give the metrics and predictions of one."""

from tests.distributed.gloo import run_processes

from vlmo.tasks import evaluate

CASES = {  # model folder and arguments of each evaluation
    "retrieval": ("retrieval", {"rerank": 4, "split": "train"}),
    "vqa": ("vqa", {}),
    "nlvr2": ("nlvr2", {}),
    "classification": ("classification", {}),
    "segmentation": ("segmentation", {}),
    "one row": ("vqa", {"limit": 1}),
}


def evaluated(folders: dict[str, str], sources: dict[str, str]) -> dict[str, tuple]:
    """Metrics and predictions of every case on an odd number of rows, ready to be sent to another process."""
    results = {}
    for name, (task, changes) in CASES.items():
        arguments = {"limit": 5, "batch_size": 2} | changes
        result = evaluate(folders[task], source=sources[task], device="cpu", **arguments)
        results[name] = result.metrics, result.chance, result.predictions
    return results


def test_two_processes_give_the_results_of_one(folders, sources):
    arguments = [{name: str(path) for name, path in paths.items()} for paths in (folders, sources)]
    alone = evaluated(*arguments)
    assert run_processes(evaluated, *arguments) == [alone, alone]
