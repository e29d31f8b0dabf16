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
    found = {}
    for name, (folder, arguments) in CASES.items():
        task = arguments.get("task", folder)
        given = {"limit": 5, "batch_size": 2} | arguments
        result = evaluate(folders[folder], source=sources[task], device="cpu", **given)
        found[name] = result.metrics, result.chance, result.predictions
    return found


def test_two_processes_give_the_results_of_one(folders, sources):
    arguments = ({name: str(path) for name, path in paths.items()} for paths in (folders, sources))
    arguments = tuple(arguments)
    alone = evaluated(*arguments)
    for shared in run_processes(evaluated, *arguments):
        for name in CASES:
            assert shared[name] == alone[name], name
