from __future__ import annotations

from sweep_process import lab, prepared_folder  # noqa: F401 -- fixtures
