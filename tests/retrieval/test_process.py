"""The tables of an index in a process of their own. Its methods are those of `Store`, through `vlmo search`."""

import subprocess
import sys

TRIED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from vlmo.retrieval.process import StoreProcess

def failing(store):
    try:
        store.columns()
    except (ValueError, EOFError) as error:
        print(error)

ended, killed = StoreProcess(Path(sys.argv[1])), StoreProcess(Path(sys.argv[1]))
for process in multiprocessing.active_children():
    os.kill(process.pid, signal.SIGINT)
failing(ended)
failing(killed)
for process in multiprocessing.active_children():
    if process.name.endswith("-2"):
        process.kill()
        process.join()
failing(killed)
ended._pipe.close()
for process in multiprocessing.active_children():
    process.join()
    print(process.exitcode)
"""


def test_errors_come_back_ctrl_c_is_left_to_the_caller_and_no_process_is_left(tmp_path):
    line = [sys.executable, "-c", TRIED, tmp_path]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=600, check=True)
    assert not shown.stderr
    first, second, third, last = shown.stdout.splitlines()
    assert first == second
    assert f"{tmp_path}: the index is damaged, or no index (Table 'pictures' was not found" in first
    assert "has been ended" in third
    assert last == "0"
