"""Rows for the studies of a real base: what functions of the standard library do, and prose to be kept.

Instructions are the documentation of the running Python's library: the signature of a public function is asked, the
first sentence of its docstring is the answer. It is real text under Python's license, short enough for two CPU cores,
and the base knows its content while its form is new. Nothing is downloaded or copied into the repository. Rows of
another Python differ a little: results compare within one.

A module is held out as a whole, so that no class is asked about on both sides, and a held-out row goes whose answer is
nearly the answer of another row: "Close the connection." stands in many modules.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.builtin.standard_library import clean_prose, library_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = dict[str, Any]
"""A row of `messages`, or of `text`."""
Pair = tuple[str, str]
"""A question and its answer."""

SYSTEM = "Say what this Python function does."
LEFT_OUT = frozenset(
    {"__phello__", "__pycache__", "config", "ctypes", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib"}
    | {"lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tkinter", "turtle", "turtledemo", "venv"}
)
"""Parts of the library that some Pythons lack, and such as are no documentation."""
HELD_OUT_OF = 4
"""One module in so many is held out."""
NEARLY_THE_SAME = 0.5
"""Share of the words of two answers that they have in common, from which on they count as one."""
MOST_ROWS = {"train": 1024, "validation": 256}
PROSE_WORDS = (16, 30)
"""A row has at least the first number of words and at most the second."""

_SENTENCE = re.compile(r"[A-Z][^.:;<>`*|\\]{14,88}\.(?=\s|$)")
_PLAIN = re.compile(r"[A-Z][^`*_|<>\[\]@]*\.")
_WORD = re.compile(r"[a-z]+")


def documentation(library: Path | None = None) -> dict[str, list[Row]]:
    """The splits "train" and "validation", each in an order that a changed module moves only its own rows in."""
    library = library or library_folder()
    train: list[Pair] = []
    held_out: list[Pair] = []
    for module, signature, sentence in documented_functions(library):
        rows = held_out if _fraction(module.partition(".")[0]) < 1 / HELD_OUT_OF else train
        rows.append((signature, sentence))
    train = distinct(_shuffled(train), most=MOST_ROWS["train"])
    held_out = distinct(_shuffled(held_out), most=MOST_ROWS["validation"], apart_from=train)
    return {"train": [_asked(*row) for row in train], "validation": [_asked(*row) for row in held_out]}


def documented_functions(library: Path) -> Iterator[tuple[str, str, str]]:
    """Module, signature, and first sentence of every public function and method that has a short one."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not parts or parts[0] in LEFT_OUT or any(part.startswith(("_", "test")) for part in parts):
            continue
        module = ".".join(parts)
        for name, function in _public_functions(_parsed(path)):
            sentence = _first_sentence(ast.get_docstring(function) or "")
            signature = f"{module}.{name}({_parameters(function.args)})"
            if sentence and len(signature) <= 64 and signature.isascii():
                yield module, signature, sentence


def _parsed(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in the library
        return ast.parse(path.read_text(encoding="utf-8", errors="replace"))


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name, method in _public_functions(ast.Module(node.body, [])):
                yield f"{node.name}.{name}", method
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node


def _parameters(arguments: ast.arguments) -> str:
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    return re.sub(r"^(self|cls)(, |$)", "", ast.unparse(arguments))


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    found = _SENTENCE.match(paragraph)
    return found.group() if found and paragraph.isascii() and ">>>" not in paragraph else ""


def _asked(signature: str, sentence: str) -> Row:
    turns = (("system", SYSTEM), ("user", signature), ("assistant", sentence))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def prose(descriptions: Path | None = None) -> list[Row]:
    """English prose that is neither documentation nor instructions, for what a base must not forget: `text` rows.

    It comes from the descriptions of datasets (flowers, wines, exercise, newsgroups, ...) in scikit-learn, under the
    BSD license, which every installation of lora_lab has.
    """
    found = find_spec("sklearn")
    folder = descriptions or Path(str(found and found.origin)).parent / "datasets" / "descr"
    paragraphs = (
        " ".join(paragraph.split())
        for file in sorted(folder.glob("*.rst"))
        for paragraph in clean_prose(file.read_text(encoding="utf-8")).split("\n\n")
    )
    texts = {text for paragraph in paragraphs if _PLAIN.fullmatch(paragraph) for text in _windows(paragraph.split())}
    return [{"text": text} for text in sorted(texts, key=_fraction)]


def _windows(words: list[str]) -> Iterator[str]:
    fewest, most = PROSE_WORDS
    for start in range(0, len(words) - fewest + 1, most):
        yield " ".join(words[start : start + most])


def distinct(pairs: Iterable[Pair], *, most: int, apart_from: Iterable[Pair] = ()) -> list[Pair]:
    """The first pairs whose answers are nearly the same as none before them, and as none of `apart_from`."""
    kept: list[Pair] = []
    known = [_words(answer) for _, answer in apart_from]
    for question, answer in pairs:
        words = _words(answer)
        if not any(len(words & other) >= NEARLY_THE_SAME * len(words | other) for other in known):
            kept.append((question, answer))
            known.append(words)
        if len(kept) == most:
            break
    return kept


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _shuffled(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted(set(pairs), key=lambda pair: _fraction("\n".join(pair)))


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
