"""A function's docstring says what it does, so it begins with a verb: "Reads a run's folder."."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("layerdrop_jax", "configs", "experiments", "benchmarks", "examples")
FILES = [ROOT / "launch.py", *(file for name in FOLDERS for file in (ROOT / name).rglob("*.py"))]
# Plurals and others that end as a verb does.
NO_VERBS = {"Always", "As", "Features", "Hours", "Is", "Its", "Keys", "Layers", "Logits", "Losses"}
NO_VERBS |= {"Pairs", "Parameters", "Perhaps", "Rows", "Shapes", "Texts", "This", "Us", "Words"}


def openings(source):
    """(line, name, first word) of each function's docstring; a property is named like a value."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
        if text and not decorators & {"property", "cached_property"}:
            yield node.lineno, node.name, text.split()[0].rstrip(".,:;")


def is_verb(word):
    return word.isalpha() and word.istitle() and word.endswith("s") and word not in NO_VERBS


@pytest.mark.parametrize("path", sorted(str(file.relative_to(ROOT)) for file in FILES))
def test_docstrings_begin_with_a_verb(path):
    found = openings((ROOT / path).read_text(encoding="utf-8"))
    assert [(line, name, word) for line, name, word in found if not is_verb(word)] == []


@pytest.mark.parametrize("text", ["The rates.", "Which layers run.", "Rows of ids.", "[B, T]."])
def test_a_docstring_without_a_verb_is_caught(text):
    ((line, name, word),) = openings(f'def f():\n    """{text}"""\n')
    assert (line, name) == (1, "f")
    assert not is_verb(word)


def test_a_property_may_be_named_like_a_value():
    source = '@property\ndef f():\n    """The rates."""\ndef g():\n    """Draws."""\n'
    assert [(name, is_verb(word)) for _, name, word in openings(source)] == [("g", True)]
