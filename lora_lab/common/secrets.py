"""Secrets are cut from every text before it is shown or written: passwords in addresses, tokens, secret variables."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIDDEN = "***"
SHORTEST_VALUE = 8
"""Characters of a variable's value that is looked for in texts; a shorter one would be found in ordinary words."""

_NAMES = r"token|secret|password|passwd|passphrase|pwd|signature|credentials?|api_?key|access_?key|private_?key"
_SECRET_VARIABLE = re.compile(rf"(?:{_NAMES}|_key|_pat)$", re.IGNORECASE)
_FOLDER_VARIABLES = ("PWD", "OLDPWD")
"""Variables in which a shell keeps folders, although their names end as a password's."""
_ADDRESS_VARIABLE = re.compile(r"(?:ur[il]|dsn)$", re.IGNORECASE)
# Lengths are bounded, so that a long text without any secret is read in linear time.
_ADDRESS = re.compile(r"://[^\s\"]+")
_SPACED_PASSWORD = re.compile(r"(?<=://)(?!/)[^\s@/:]{0,200}:(?!\d{1,5}(?:\W|$))[^\n@]{1,200}@")
_QUERY = re.compile(r"([?&]\w{0,40}?(?:pass|pwd|secret|token|key|sig)\w{0,40}=)[^&\s'\"#]*", re.IGNORECASE)
_ASSIGNED = re.compile(rf"\b(\w{{0,40}}(?:{_NAMES})=)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s&'\",;]+)", re.IGNORECASE)
_WRITTEN = re.compile(
    r"\b(\w{0,40}(?:password|passwd|passphrase|secret|api_?key|access_?key|access_?token|auth_?token)[\"']?\s{0,4}:\s{0,4})"
    r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;{}\[\]]+)",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(--[\w-]{0,40}(?:token|password|passwd|secret|api-key|access-key)\s)\S+", re.IGNORECASE)
_BEARER = re.compile(r"\b(bearer\s)[\w.~+/-]{8,}=*", re.IGNORECASE)
_WELL_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{10,}|(?:sk|glpat|xox[abeoprs])-[A-Za-z0-9_-]{10,}|gh[oprsu]_[A-Za-z0-9]{10,}|"
    r"github_pat_[A-Za-z0-9_]{10,}|AKIA[A-Z0-9]{16})"
)


def redact(text: str, known: Iterable[str] = ()) -> str:
    """The text without secrets; each is replaced by `***`.

    Found are user and password of addresses, values with a secret's name (`?token=...`, `password: ...`, `--api-key
    ...`), tokens of known formats, the values of secret environment variables, and those in `known` (`secrets_of`).
    """
    for value in sorted({*known, *_secret_values()}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _ADDRESS.sub(lambda found: f"://{_without_user(found[0][3:])}", text)
    text = _SPACED_PASSWORD.sub(f"{HIDDEN}@", text)
    for named in (_QUERY, _ASSIGNED, _WRITTEN, _OPTION, _BEARER):
        text = named.sub(rf"\1{HIDDEN}", text)
    return _WELL_KNOWN.sub(HIDDEN, text)


def redact_address(address: str) -> str:
    """One whole address without its secrets, whatever its password holds: `@`, `/`, spaces, line breaks."""
    scheme, separator, rest = address.partition("://")
    return redact(f"{scheme}{separator}{_without_user(rest)}" if separator else address)


def secrets_of(address: str) -> set[str]:
    """The password and the secret query values of an address, as written and decoded, to be cut from other texts."""
    rest = address.partition("://")[2]
    password = rest[: max(0, _user_end(rest))].partition(":")[2]
    queried = [value for name, value in parse_qsl(rest.partition("?")[2]) if _QUERY.match(f"?{name}=")]
    return {form for value in (password, *queried) for form in (value, unquote(value)) if form}


def shown(value: object) -> str:
    """A value as a message shows it: short, in one line, in YAML's words, without secrets."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(redact_address(value)) if isinstance(value, str) else redact(repr(value))
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _without_user(rest: str) -> str:
    end = _user_end(rest)
    return rest if end < 0 else f"{HIDDEN}{rest[end:]}"


def _user_end(rest: str) -> int:
    """Where the `@` behind user and password stands in what follows `://`; -1 where there is none.

    A password that was not encoded may hold `@`, `/` and `?`: it is better to cut too much than too little. A path
    such as `host/@scope` stays, and so does a file, which has no host.
    """
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return rest.rfind("@") if "@" in host or ":" in host else -1


def _secret_values() -> Iterator[str]:
    """Values of secret environment variables, and the passwords in those that hold addresses."""
    for name, value in os.environ.items():
        if name in _FOLDER_VARIABLES:
            continue
        if _SECRET_VARIABLE.search(name):
            found: Iterable[str] = [value]
        else:
            found = secrets_of(value) if "://" in value and _ADDRESS_VARIABLE.search(name) else []
        yield from (secret for secret in found if len(secret) >= SHORTEST_VALUE)
