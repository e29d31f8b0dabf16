"""Attack what reads models of strangers: folders, adapters, checkpoints and training states that were made to harm.

    python -m attacks.models --out attacks/results/models.json            # a thousand files
    python -m attacks.models --scale 0.05                                 # a trial

Run it from the repository's folder. Each hostile folder is a copy of a good one with one change: a pipe, a link,
damage, or a value that nobody writes. Whatever a command does with it, it ends soon, within its memory, with an
answer or with one line, and nothing outside its folders is read or written. Exits with 1 if a promise is broken.
"""

import io
import json
import os
import pickle
import random
import resource
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from attacks.common import Attack, run_attack
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import forkserver
from tests.integrations.toy_gallery import trained_folder
from tests.training.toy_run import make_trainer

from vlmo.training import TrainerConfig, TrainingError
from vlmo.training.checkpoint import state_path

SOON_S = 60.0
MOST_BYTES = 1_500_000_000
"""Of a process beyond what it had when it was forked; the models have a megabyte."""
SECRET = "a secret that no output may hold"
VALUES = (
    None,
    -1,
    0,
    1 << 20,
    1 << 24,
    10**9,
    float("nan"),
    "",
    "x",
    "(" * 30 + "a*" + ")*" * 30,
    "\0",
    [],
    {},
    [[]],
)
STEPS = 2


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def zipped(pickled: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file of torch with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def pickles(folder: Path) -> list[bytes]:
    """Return files that run code, hang or grow where they are simply unpickled."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60))
    bare = [
        pickle.dumps({"state_dict": Runs(folder / "ran")}, 2),
        b"\x80\x02})q\x00" + pairs + b"K\x01s.",  # a key whose hash takes forever
        b"\x80\x02}]q\x00"
        + pairs
        + b"R.",  # a function whose name does, in the message that refuses it
        b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
        b"\x80\x02cpathlib\nPath\nN}X\x06\x00\x00\x00existsK\x01s\x86b.",  # another method of a class
        b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",  # a key whose hash ends the process
        b"\x80\x02}X\x01\x00\x00\x00wctorch\nTensor\nJ\x00\x00\x00\x10\x85Rs.",  # a gigabyte of memory as it is
    ]
    return [
        *bare,
        *map(zipped, bare),
        zipped(pickle.dumps({"w": bytes(10**9)}, 4), zipfile.ZIP_DEFLATED),
    ]


def changed(value: Any, choose: random.Random, names: list[str]) -> Any:
    """Return JSON with one value, at any depth, replaced."""
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(list(value))
        return value | {key: changed(value[key], choose, names)}
    if isinstance(value, list) and value and choose.random() < 0.9:
        place = choose.randrange(len(value))
        return [*value[:place], changed(value[place], choose, names), *value[place + 1 :]]
    return choose.choice((*VALUES, *names))


class Target:
    """Good files to start from, and a secret beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secret = folder, folder / "secret"
        self.model, self.adapter, self.run = (
            trained_folder(folder / "model"),
            folder / "adapter",
            folder / "run",
        )
        self.secret.write_text(SECRET)
        self.adapter.mkdir()
        layer = "vlmo.blocks.0.experts.vision.fc1"
        outputs, inputs = load_file(self.model / "model.safetensors")[f"{layer}.weight"].shape
        halves = {"lora_A": torch.ones(2, inputs), "lora_B": torch.ones(outputs, 2)}
        weights = {f"base_model.model.{layer}.{name}.weight": half for name, half in halves.items()}
        save_file(weights, self.adapter / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "base_model_name_or_path": str(self.model),
        }
        settings |= {
            "target_modules": ["fc1"],
            "megatron_config": None,
            "rank_pattern": {},
            "use_dora": False,
        }
        (self.adapter / "adapter_config.json").write_text(json.dumps(settings))
        base = {"start": str(self.model)}
        base["config"] = json.loads((self.model / "config.json").read_text())
        (self.adapter / "base.json").write_text(json.dumps(base))
        train(self.run)
        for unfinished in (state_path(self.run / "state", STEPS), self.run / "model"):
            shutil.rmtree(unfinished)

    def harm(self, file: Path, choose: random.Random) -> str:
        """Change a file in one way, and return which."""
        content, kind = (
            file.read_bytes(),
            choose.choice(["pipe", "link", "cut", "flip", "json", "json", "json", "deep"]),
        )
        names = [
            str(self.secret),
            "../secret",
            str(self.model / "model.safetensors"),
            "hf://[",
            "/dev/zero",
        ]
        if kind in {"pipe", "link"}:
            file.unlink()
            os.mkfifo(file) if kind == "pipe" else file.symlink_to(self.secret)
        elif kind == "cut":
            file.write_bytes(content[: choose.randrange(len(content))])
        elif kind == "json" and file.suffix == ".json":
            file.write_text(json.dumps(changed(json.loads(content), choose, names)))
        elif kind == "deep":
            file.write_bytes(b"[" * 100_000)
        else:
            place = choose.randrange(len(content))
            file.write_bytes(content[:place] + choose.randbytes(4) + content[place + 4 :])
        return kind


def train(folder: Path) -> None:
    """Train, or go on."""
    make_trainer(folder, config=TrainerConfig(max_steps=STEPS, save_every=1, log_every=1)).fit()


def within_bounds(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function with little memory more than there is; print an error that has a line of its own."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, resource.RLIM_INFINITY))
    try:
        function(*arguments)
    except (ValueError, TrainingError) as error:
        os.write(2, f"vlmo: {error}\n".encode())
        os._exit(2)


def command(arguments: list[str]) -> None:
    """Run `vlmo`."""
    from vlmo import cli

    cli.main(arguments)


def fault(target: Target, process: forkserver.Process, out: Path) -> str:
    """Return what a process has done that it should not have."""
    process.join(SOON_S)
    if process.is_alive():
        process.kill()
        process.join()
        return "still running"
    said = process.stdout + process.stderr
    if process.exitcode not in {0, 2} or "Traceback" in said:
        return f"{process.exitcode}: {said[-400:]}"
    files = [file for file in out.rglob("*") if file.is_file()] if out.is_dir() else []
    if SECRET in said or any(SECRET.encode() in file.read_bytes() for file in files):
        return "the secret is out"
    if target.secret.read_text() != SECRET or (target.folder / "ran").exists():
        return "something was written or run"
    return ""


def attack_files(
    attack: Attack, target: Target, *, name: str, good: Path, files: int, use: Callable[..., Any]
) -> None:
    """Harm a file of a copy of `good` in one way after the other, and use the copy."""
    kinds, ended, faults = Counter[str](), Counter[str](), []
    for number in range(files + 1):
        hostile, out = target.folder / "hostile" / name, target.folder / "out"
        for folder in (hostile, out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, hostile)
        there = sorted(
            path for path in hostile.rglob("*") if path.is_file() and path.stat().st_size
        )
        file, kind = attack.choose.choice(there), "nothing"
        if number:  # the first is good, and must be used
            kinds[kind := target.harm(file, attack.choose)] += 1
        process = forkserver.start(within_bounds, *use(hostile, out))
        if wrong := fault(target, process, out) or (
            "was refused" if not number and process.exitcode else ""
        ):
            faults.append(f"{kind} in {file.name}: {wrong}")
        ended[str(process.exitcode)] += 1
        attack.progress.update(name, number, files)
    measured = {"files": files, "kinds": dict(kinds), "exit_codes": dict(ended)}
    attack.promise(name, kept=not faults, **measured, faults=faults[:5])


def attack_with_pickles(attack: Attack, target: Target) -> None:
    """Import checkpoints that are hostile pickles."""
    faults, file, out = [], target.folder / "checkpoint.pt", target.folder / "out"
    contents = pickles(target.folder)
    for number, content in enumerate(contents):
        file.write_bytes(content)
        process = forkserver.start(within_bounds, command, ["import", str(file), str(out)])
        if wrong := fault(target, process, out) or (
            "" if process.exitcode == 2 else "was imported"
        ):
            faults.append(f"pickle {number}: {wrong}")
        attack.progress.update("pickles", number + 1, len(contents))
    attack.promise("pickles", kept=not faults, files=len(contents), faults=faults[:5])


def run(attack: Attack, folder: Path, scale: float) -> None:
    """Attack with a thousand files."""
    target = Target(folder)
    image = target.folder / "image.png"
    Image.new("RGB", (64, 64), "red").save(image)
    uses: dict[str, tuple[Path, Callable[[Path, Path], tuple[Any, ...]]]] = {
        "model folders": (
            target.model,
            lambda model, out: (
                command,
                ["index", str(model), str(image), "--out", str(out / "index")],
            ),
        ),
        "adapters": (
            target.adapter,
            lambda adapter, out: (command, ["merge", str(adapter), "--out", str(out)]),
        ),
        "run folders": (target.run, lambda run, _: (train, run)),
    }
    for name, (good, use) in uses.items():
        attack_files(
            attack, target, name=name, good=good, files=max(round(330 * scale), 1), use=use
        )
    attack_with_pickles(attack, target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print what was kept and broken, and write it with `--out`."""
    run_attack(
        run,
        name="models",
        description=__doc__,
        packages=("vlmo", "torch", "transformers"),
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
