"""The steps of deploy/Containerfile where no container engine runs: what it copies, installs and starts, in a clean virtual environment.

    python tests/study_image.py

installs the whole lock, which takes minutes and 2.7 GB and needs an index of packages or the folder wheels/, then makes and releases a version
with the commands of the image, starts the API, and prints seconds, sizes and memory. `test_deploy.py` takes the same steps with less to install.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import httpx
import psutil

from mlops_core import core

CONTAINERFILE = core.home() / "deploy" / "Containerfile"


def instructions(word: str) -> list[str]:
    "The rest of each instruction of the Containerfile that begins with `word`, without comments, on one line."
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [line.split(maxsplit=1)[1] for line in whole.splitlines() if line.startswith(f"{word} ")]


def lay_out(root: Path) -> Path:
    "Copy into `root` what the image copies; returns the folder in which its steps run."
    workdir = root / instructions("WORKDIR")[0].lstrip("/")
    workdir.mkdir(parents=True)
    (root / "var/lib/mlops").mkdir(parents=True)
    (root / "tmp").mkdir()
    for copied in instructions("COPY"):
        *sources, target = copied.split()
        for source in sources:
            if source.endswith("/"):
                shutil.copytree(core.home() / source, workdir / target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(core.home() / source, workdir / target)
    return workdir


def environment(root: Path, python: Path) -> dict[str, str]:
    "The variables of a process in the image, with its folders below `root` and the programs beside `python` first."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLOPS_", "PYTHON", "VIRTUAL_ENV"))}
    said = dict(pair.split("=", 1) for pair in shlex.split(" ".join(instructions("ENV"))))
    moved = {name: f"{root}{value}" if value.startswith("/") else value for name, value in said.items()}
    return kept | moved | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}


def installations() -> list[str]:
    "The steps that install packages, in order: the lock, then this project."
    return [step for step in instructions("RUN") if "pip install" in step]


def health_check() -> list[str]:
    "The words of the image's health check."
    return json.loads(instructions("HEALTHCHECK")[0].split("CMD", 1)[1])


@contextlib.contextmanager
def started(folder: Path, variables: dict[str, str], seconds: float = 120):
    """Run the image's CMD until its HEALTHCHECK succeeds; gives address and process. The port is a free one, since 8080 may be taken here.

    Raises `RuntimeError` with what the process said if it ends or is not healthy within `seconds`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command, check = ([word.replace("8080", port) for word in words] for words in (json.loads(instructions("CMD")[0]), health_check()))
    with tempfile.TemporaryFile("w+") as said:
        program = shutil.which(command[0], path=variables["PATH"])
        process = subprocess.Popen([program, *command[1:]], cwd=folder, env=variables, stdout=said, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + seconds
            while subprocess.run(check, cwd=folder, env=variables, capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    raise RuntimeError(f"the image's command is not healthy: {said.read()[-2000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    "Take all steps, with the whole lock."
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(core.home() / "wheels")} if list(core.home().glob("wheels/*.whl")) else {}
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        root, python = Path(scratch) / "root", Path(scratch) / "venv" / "bin" / "python"
        folder = lay_out(root)
        venv.create(python.parents[1], with_pip=True)
        variables = environment(root, python) | offline | {"TORCH_INDEX": os.environ.get("TORCH_INDEX", ""), "PIP_QUIET": "1"}

        def timed(what, words):
            begin = time.monotonic()
            subprocess.run(words, cwd=folder, env=variables, check=True)
            print(f"{time.monotonic() - begin:7.1f} s  {what}", flush=True)

        for step in installations():
            timed(step, ["sh", "-ec", step])
        size = sum(path.stat().st_size for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink())
        print(f"{size / 1e9:7.2f} GB installed", flush=True)
        workspace, mlops = variables["MLOPS_WORKSPACE"], python.parent / "mlops"
        report = ["report", "credit_risk", "-p", "workspace", workspace, "--reports", f"{workspace}/reports"]
        for words in (report, ["release", "credit_risk", "--actor", "cho", "--role", "devops"]):
            timed(f"mlops {words[0]}", [mlops, *words])
        begin = time.monotonic()
        with started(folder, variables) as (address, process):
            print(f"{time.monotonic() - begin:7.1f} s  until it is healthy")
            ready = httpx.get(f"{address}/ready")
            print(f"{psutil.Process(process.pid).memory_info().rss / 1e6:7.0f} MB in memory; /ready: {ready.status_code} {ready.text}")
            sys.exit(ready.status_code != 200)


if __name__ == "__main__":
    main()
