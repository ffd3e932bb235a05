"""One PostgreSQL server for all of these tests, and a database of its own for each."""

from __future__ import annotations

import itertools

import pytest
from postgres_server import PostgresServer, missing

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres():
    reason = missing()
    if reason:
        pytest.skip(reason)
    server = PostgresServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def url(postgres):
    """The address of an empty database."""
    name = f"d{next(_numbers)}"
    postgres.sql(f"create database {name}")
    return postgres.url(name)


@pytest.fixture(scope="session")
def restartable():
    reason = missing()
    if reason:
        pytest.skip(reason)
    one = PostgresServer()
    yield one
    one.close()


@pytest.fixture
def server(restartable):
    """A server that a test may stop, with an empty database at its `own_url`."""
    restartable.start()
    name = f"d{next(_numbers)}"
    restartable.sql(f"create database {name}")
    restartable.own_url = restartable.url(name)
    yield restartable
    if restartable.runs:
        restartable.stop("immediate")
