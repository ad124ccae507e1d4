"""An English corpus without a download: sentences of the docstrings of installed Python packages."""

import ast
import importlib.util
import random
import re
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "sklearn", "stdlib", "torch", "transformers")
SENTENCES_PER_PACKAGE = 1_200
HELD_OUT_SHARE = 0.1

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[a-z)][.!?])\s+(?=[A-Z])")
_ROLE = re.compile(r":[\w:]+:`[~!]?([^`<]*)(?:<[^`]*>)?`|`{1,2}([^`]*)`{1,2}_?")
_ENGLISH = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()_.\-/]*[.!?]")
_FUNCTION_WORDS = set(
    ["the", "a", "an", "is", "are", "be", "of", "to", "in", "for", "with", "and", "or", "that", "this", "it"]
)


def docstring_corpus() -> DatasetDict:
    """Sentences of docstrings, labelled by package: train, validation and test splits, the same in one environment.

    Files are parsed, never imported. Code, parameter lists, tables and directives are dropped; sentences have 5 to 40
    words and occur once; every package gives at most 1,200.

    Raises:
        ValueError: if fewer than two of the packages are installed.
    """
    roots = {name: root for name in PACKAGES if (root := _root(name)) is not None}
    if len(roots) < 2:
        raise ValueError(
            f"`dataset` 'docstrings' needs at least two installed packages out of {', '.join(PACKAGES)}, got "
            f"{sorted(roots)}; install one more or give another data set."
        )
    generator, seen = random.Random(42), set[str]()
    rows: list[tuple[str, int]] = []
    for label, root in enumerate(roots.values()):
        unique = dict.fromkeys(islice(_sentences(root, generator), 13 * SENTENCES_PER_PACKAGE // 10))
        sentences = [text for text in unique if text.lower() not in seen][:SENTENCES_PER_PACKAGE]
        seen.update(text.lower() for text in sentences)
        rows += [(sentence, label) for sentence in sentences]
    generator.shuffle(rows)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(roots))})
    held_out = int(HELD_OUT_SHARE * len(rows))
    parts = {"train": rows[2 * held_out :], "validation": rows[:held_out], "test": rows[held_out : 2 * held_out]}
    return DatasetDict(
        {
            name: Dataset.from_dict({"text": [row[0] for row in part], "label": [row[1] for row in part]}, features)
            for name, part in parts.items()
        }
    )


def _root(name: str) -> Path | None:
    if name == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _sentences(root: Path, generator: random.Random) -> Iterator[str]:
    skipped = {"site-packages", "tests", "test", "idlelib", "lib2to3", "_vendor"}
    files = sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
    generator.shuffle(files)  # parsing is the cost: as many files as the wanted sentences take, from all over
    for path in files:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # templates and old encodings among installed files are no corpus
        nodes: list[ast.Module | ast.ClassDef | ast.FunctionDef] = [tree]
        while nodes:  # modules, classes and their functions: statements alone, which is faster than ast.walk
            node = nodes.pop()
            yield from _prose(ast.get_docstring(node) or "")
            if not isinstance(node, ast.FunctionDef):
                nodes += [child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef)]


def _prose(docstring: str) -> Iterator[str]:
    for paragraph in _PARAGRAPH.split(docstring):
        lines = paragraph.splitlines()
        if not lines or any(line.startswith((" ", ">>>", "..", "-", "*", "=", "|", "#", "@")) for line in lines):
            continue  # indented blocks, code, directives, lists, tables
        text = _ROLE.sub(lambda match: match[1] or match[2] or "", " ".join(lines))
        for sentence in _SENTENCE.split(" ".join(text.split())):
            words = sentence.split()
            english = _ENGLISH.fullmatch(sentence) and sum(word.lower() in _FUNCTION_WORDS for word in words) >= 2
            if 5 <= len(words) <= 40 and english:
                yield sentence
