"""Prose and code read out of the running Python's standard library.

Nothing is copied into this package: the text is read where Python is installed, under Python's own licence.
The lists below name files that exist under the same path in CPython 3.11 to 3.14 and changed little between
them, so that two Pythons give nearly the same rows.  A file belongs to one split only: text is split by file
first and sampled afterwards.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CODE_TRAIN_FILES = (
    "cmd.py", "codecs.py", "collections/__init__.py", "compileall.py", "email/feedparser.py",
    "email/generator.py", "email/message.py", "fileinput.py", "ftplib.py", "gettext.py", "graphlib.py",
    "heapq.py",
    "http/cookiejar.py", "http/server.py", "imaplib.py", "json/decoder.py", "json/encoder.py", "mailbox.py",
    "multiprocessing/managers.py", "multiprocessing/pool.py", "multiprocessing/synchronize.py", "optparse.py",
    "pprint.py", "profile.py", "pstats.py", "pyclbr.py", "re/_compiler.py", "shlex.py", "textwrap.py",
    "trace.py", "tracemalloc.py", "unittest/case.py", "weakref.py", "xml/dom/expatbuilder.py",
    "xml/dom/minidom.py", "xml/etree/ElementTree.py", "xmlrpc/server.py",
)  # fmt: skip
CODE_VALIDATION_FILES = (
    "asyncio/proactor_events.py", "asyncio/sslproto.py", "concurrent/futures/_base.py", "difflib.py",
    "email/_parseaddr.py", "email/charset.py", "email/header.py", "email/headerregistry.py", "html/parser.py",
    "http/cookies.py", "modulefinder.py", "multiprocessing/shared_memory.py", "multiprocessing/util.py",
    "netrc.py", "smtplib.py", "socketserver.py", "subprocess.py", "tomllib/_parser.py", "unittest/suite.py",
    "urllib/parse.py", "urllib/robotparser.py", "wsgiref/handlers.py", "wsgiref/validate.py",
    "xml/dom/pulldom.py", "xml/sax/saxutils.py", "xmlrpc/client.py", "zoneinfo/_zoneinfo.py",
)  # fmt: skip
PROSE_TRAIN_FILES = (
    "asyncio/events.py", "calendar.py", "codecs.py", "contextlib.py", "doctest.py", "email/header.py",
    "email/message.py", "functools.py", "gettext.py", "http/client.py", "http/server.py", "ipaddress.py",
    "logging/handlers.py", "mailbox.py", "mimetypes.py", "modulefinder.py", "multiprocessing/managers.py",
    "netrc.py", "pickle.py", "pprint.py", "shelve.py", "smtplib.py", "socket.py", "socketserver.py",
    "tarfile.py", "timeit.py", "trace.py", "unittest/mock.py", "urllib/parse.py", "urllib/request.py",
    "wsgiref/validate.py", "xml/sax/handler.py", "xmlrpc/server.py",
)  # fmt: skip
PROSE_VALIDATION_FILES = (
    "bdb.py", "cmd.py", "collections/__init__.py", "difflib.py", "email/policy.py", "fileinput.py",
    "ftplib.py", "heapq.py", "http/cookiejar.py", "imaplib.py", "optparse.py", "pyclbr.py",
    "sched.py", "subprocess.py", "textwrap.py", "unittest/case.py", "uuid.py", "weakref.py",
    "xml/sax/xmlreader.py", "xmlrpc/client.py",
)  # fmt: skip

_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#[^\n]*\n)+", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#+ ?", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z]+")
_LEGAL = re.compile(r"copyright|licen[cs]|all rights reserved|contributed by", re.IGNORECASE)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def library_folder() -> Path:
    """The folder that holds the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_source(relative_path: str) -> str:
    """The source of one standard-library file; `InputError` if this Python came without it."""
    path = library_folder() / relative_path
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = (
            f"the built-in stdlib datasets read {path}, which this Python does not have ({error}); "
            "use a Python with the complete standard library, or name another dataset"
        )
        raise InputError(message) from error


def prose_passages(source: str) -> list[str]:
    """Docstrings and comment blocks of a module, without doctests, tables and legal notices."""
    documented = [node for node in ast.walk(ast.parse(source)) if isinstance(node, _DOCUMENTED)]
    texts = [ast.get_docstring(node) or "" for node in documented]
    texts += [_COMMENT_MARK.sub("", block) for block in _COMMENT_BLOCK.findall(source)]
    passages = [clean_prose(text) for text in texts]
    return [passage for passage in passages if len(passage) >= 40]


def clean_prose(text: str) -> str:
    """The paragraphs of a text that are prose, with blank lines between them; "" when there are none."""
    if _LEGAL.search(text):
        return ""
    text = "\n".join(line.rstrip() for line in text.expandtabs().split("\n"))
    return "\n\n".join(part.strip("\n") for part in _PARAGRAPH.split(text) if _is_prose(part))


def _is_prose(paragraph: str) -> bool:
    words = " ".join(paragraph.split())
    letters = sum(character.isalpha() or character == " " for character in words)
    return ">>>" not in words and words.isascii() and letters > 0.75 * len(words)


class _WithoutDocstrings(ast.NodeTransformer):
    """Takes the docstrings out of functions and classes."""

    def visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node


def function_texts(source: str) -> Iterator[str]:
    """The functions and methods of a module in `ast.unparse` form: no docstrings, no comments."""
    for node in ast.parse(source).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.unparse(_WithoutDocstrings().visit(member))


def windows(texts: Iterable[str], cost_limit: float) -> Iterator[str]:
    """Consecutive lines of `texts`, cut into windows of at most `cost_limit` by `token_cost`.

    A text with a line above half of that limit is left out, because it would make windows of very uneven
    length, and so are the lines after the last full window.
    """
    window: list[str] = []
    total = 0.0
    for text in texts:
        lines = text.split("\n")
        costs = [token_cost(line) for line in lines]
        if max(costs) > cost_limit / 2:
            continue
        for line, cost in zip(lines, costs, strict=True):
            if total + cost > cost_limit:
                yield "\n".join(window).strip("\n")
                window, total = [], 0.0
            window.append(line)
            total += cost


def token_cost(line: str) -> float:
    """About the number of tokens of a line, within 12% over a window.

    Fitted by least squares to the tiny-llama tokenizer on lines of code; it is an estimate so that the rows
    of a dataset can be made without loading a tokenizer.
    """
    words = _WORD.findall(line)
    letters = sum(map(len, words))
    marks = len("".join(line.split())) - letters
    return 2.0 + 1.05 * marks + 0.18 * len(words) + 0.42 * letters
