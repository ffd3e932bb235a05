"""Taking secrets out of text that is shown."""

from __future__ import annotations

import re

# Greedy up to the last `@`: a password may itself hold `@`, `/` or spaces.
_URL_USER = re.compile(r"://.*@", re.DOTALL)
_QUERY = re.compile(r"([?&](?:\w*pass\w*|pwd|token|\w*secret|\w*key)=)[^&\s'\"]*", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{4,}")


def mask_secrets(text: str) -> str:
    """The text without the credentials of URLs and without Hub tokens; each is replaced by `***`."""
    masked = _URL_USER.sub("://***@", text)
    return _HUB_TOKEN.sub("hf_***", _QUERY.sub(r"\1***", masked))
