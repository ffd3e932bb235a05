from __future__ import annotations

import pytest
from export_made import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with made-up rows."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder
