"""Plain English in docstrings, comments, messages and pages: short sentences, and none of the phrases below."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import PAGES, ROOT

LONGEST = 25
"""Words in a sentence of a docstring."""

SOURCES = sorted(path for folder in ("slaterl", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))
SETTINGS = sorted((ROOT / "conf").rglob("*.yaml"))

# Archaic, headless or elided phrases, and what to write instead.
PHRASES = {
    r"\banew\b": "again",
    r"\bbeside\b": "next to",
    r"\bof which\b": "a sentence of its own",
    r"\bwhere there (is|are) (a|an|one|none|no|any)\b": "if",
    r"\bwhat there (is|was)\b": "the name of the thing",
    r"\bwhat is (missing|there) is\b": "the name of the thing",
    r"\b(it is|are|was) told\b": "gets, or knows",
    r"\bas it has (it|them)\b": "unchanged",
    r"\bwithout a word\b": "silently, or without an error",
    r"\bgoes? on from (here|there)\b": "resumes",
    r"\bfinished before,": "already finished",
    r"\bis (none|one) either\b": "a sentence of its own",
    r"\b(amiss|therein|thereof|whence|lest|hitherto|save for|to be had)\b": "everyday English",
}


def sentences(text: str) -> list[str]:
    """The sentences of a docstring, without code blocks and tables. Entries of lists and of Args count alone."""
    parts: list[list[str]] = [[]]
    in_code = False
    for line in re.sub(r"``(.+?)``", r"`\1`", text).splitlines():
        line = line.strip()
        if line.startswith("```"):
            in_code = not in_code
        elif in_code or not line or line.startswith(("|", ">>>", "$ ")):
            parts.append([])
        elif re.match(r"[-*] |\d+\. |`?[\w*]+`?(, `?[\w*]+`?)*: ", line):
            parts.append([line])
        else:
            parts[-1].append(line)
    return [
        sentence
        for part in parts
        for sentence in re.split(r"(?<!\bal)(?<!\be\.g)[.!?;:]+[\"')]*(?=\s|$)", " ".join(part))
        if sentence.strip()
    ]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """All docstrings of a module with their lines, including the strings below constants and fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def prose_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and strings of a module, adjacent ones joined, with their first lines."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    first, words = 1, []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in kinds:
            first = first if words else token.start[0]
            words.append(token.string.strip("#\"'") if token.type == tokenize.COMMENT else token.string)
        elif words and token.type not in (tokenize.NL, tokenize.NEWLINE):
            yield first, joined(words)
            words = []
    yield first, joined(words)


def joined(words: list[str]) -> str:
    """One line of text, without the quotes between adjacent strings."""
    return re.sub(r"\s+", " ", re.sub(r"[\"'] [fr]?[\"']", "", " ".join(words)))


def prose_of_settings(path: Path) -> Iterator[tuple[int, str]]:
    """The comments of a YAML file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield number, line.partition("#")[2]


def prose_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """The paragraphs of a page, without code blocks."""
    text = re.sub(
        r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.M | re.S
    )
    number = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        yield number, re.sub(r"\s+", " ", paragraph)
        number += paragraph.count("\n")


def faults(path: Path, prose: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {match[0]!r} (better: {better}) in: {text.strip()[:160]}"
        for line, text in prose
        for phrase, better in PHRASES.items()
        for match in re.finditer(phrase, text, re.I)
    ]


def test_sentences_of_docstrings_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{line}: {len(sentence.split())} words: {sentence.strip()}"
        for path in SOURCES
        for line, text in docstrings(path)
        for sentence in sentences(text)
        if len(sentence.split()) > LONGEST
    ]
    assert not long, f"{len(long)} sentences:\n" + "\n".join(long)


def test_phrases() -> None:
    found = [
        fault
        for paths, prose in ((SOURCES, prose_of_code), (SETTINGS, prose_of_settings), (PAGES, prose_of_page))
        for path in paths
        for fault in faults(path, prose(path))
    ]
    assert not found, f"{len(found)} phrases:\n" + "\n".join(found)


def test_a_long_sentence_and_a_phrase_are_seen() -> None:
    """The checks above can fail: each finds its fault in an example."""
    entries = "Short.\n\n        a: " + "word " * 25 + "\n        b, c: " + "word " * 26
    assert [len(sentence.split()) for sentence in sentences(entries)] == [1, 1, 25, 2, 26]
    assert len(sentences("It, e.g. this, ends.\n\n- one\n- two\n\n```\ncode is no sentence\n```\n")) == 3
    examples = "anew; beside it; one of which; where there is one; it is told; without a word; what is missing is done"
    assert len(faults(ROOT / "example", iter([(1, examples)]))) == 7
