from __future__ import annotations

from sweep_process import lab, migrated_database  # noqa: F401 -- fixtures
