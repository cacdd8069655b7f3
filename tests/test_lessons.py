"""Every lesson runs, and with it every assertion that it makes: nbdev executes the notebooks, a quarter of them in one process."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlops_core import core

LESSONS = sorted(path.name for path in (core.home() / "nbs").glob("*.ipynb"))


@pytest.mark.parametrize("part", np.array_split(LESSONS, 4), ids=lambda part: f"{part[0]} to {part[-1]}")
def test_lessons_run(part):
    command = [Path(sys.executable).with_name("nbdev_test"), "--do_print", "--n_workers", "1"]
    chosen = f"^({'|'.join(map(re.escape, part))})$"
    done = subprocess.run([*command, "--file_re", chosen], cwd=core.home(), capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and all(f"Completed {core.home() / 'nbs' / name}" in said for name in part), said[-8000:]
