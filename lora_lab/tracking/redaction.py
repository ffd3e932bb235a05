"""Secrets never reach a file: they are cut from every text before it is written."""

from __future__ import annotations

import os
import re

HIDDEN = "***"

SECRET_NAME = re.compile(r"(token|secret|password|passwd|credentials?|_key|apikey)$", re.IGNORECASE)
USER_INFO = re.compile(r"(?<=://)[^/@\s'\"]+@")
ASSIGNED = re.compile(
    r"(?i)\b(\w*(?:token|secret|password|passwd|signature|credential|api_?key|access_?key)=)[^\s&'\",;]+"
)
WELL_KNOWN = re.compile(r"\b(?:hf_|sk-|ghp_|glpat-|xox[bp]-)[A-Za-z0-9_-]{16,}")


def redact(text: str) -> str:
    """`text` without URL passwords, `token=...`, known token formats and secret environment values."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    text = USER_INFO.sub(f"{HIDDEN}@", text)
    text = ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return WELL_KNOWN.sub(HIDDEN, text)
