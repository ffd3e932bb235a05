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


def shown(value: object) -> str:
    """A value as a message shows it: short, in one line, in YAML's words, without secrets."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(mask_secrets(value)) if isinstance(value, str) else mask_secrets(repr(value))
    return text if len(text) <= 80 else f"{text[:76]} ..."
