"""Functions and what their docstrings say: what is cut out, what is left out, which split."""

import ast
import textwrap

import pytest

from layerdrop_jax.data import summaries
from layerdrop_jax.data.datasets import pystdlib_summaries as pairs_lib

SOURCE = textwrap.dedent('''
    """A module says what it is for."""
    import os


    @decorated(1)
    def first(x):
        """Return the first one.  It is "é".

        More of it.
        """
        # a comment
        return x[0]


    class Holder:
        """A class is no function at all."""

        async def held(self): "Hold on to this thing"; return self

        def trivial(self):
            """Two words."""
            return 1

        def empty(self):
            """Only a docstring is in here."""

        def silent(self):
            def inner():
                """Says what nobody else
                does here."""
                pass
            return inner
''')


def test_pairs_are_functions_without_docstring_and_its_first_line():
    found = list(pairs_lib.read_pairs(SOURCE))
    assert [line for _, line in found] == [
        'Return the first one. It is "é".',
        "Hold on to this thing",
        "Says what nobody else",
    ]
    functions = [function for function, _ in found]
    assert functions[0] == "@decorated(1)\ndef first(x):\n    # a comment\n    return x[0]"
    assert functions[1] == "async def held(self): return self"
    assert ast.get_docstring(ast.parse(functions[2]).body[0]) is None
    assert functions[2].startswith("def inner():\n    pass")


def test_columns_count_bytes():
    source = 'def f(ä="é"): """Says a few words."""; return ä\n'
    assert list(pairs_lib.read_pairs(source)) == [('def f(ä="é"): return ä', "Says a few words.")]


def test_a_function_that_occurs_again_is_left_out():
    seen = set()
    again = SOURCE.replace("    # a", "\n      # a")  # other white space is no other function
    assert len(list(pairs_lib.new_pairs([SOURCE], seen))) == 3
    assert list(pairs_lib.new_pairs([again], seen)) == []


@pytest.mark.parametrize("source", ["def f(:", "\0"])
def test_what_cannot_be_parsed_has_no_pairs(source):
    assert list(pairs_lib.read_pairs(source)) == []


@pytest.mark.slow
def test_splits_share_no_function(tmp_path):
    config = summaries.SummaryConfig(dataset="pystdlib_summaries", data_dir=str(tmp_path))
    found = {s: list(summaries.load_pairs(config, s)) for s in ("train", "valid", "test")}
    assert len(found["train"]) > 3000
    for split in ("valid", "test"):
        assert 80 < len(found[split]) < 0.1 * len(found["train"])
    functions = [function for pairs in found.values() for function, _ in pairs]
    assert len(set(functions)) == len(functions)
    assert all(len(line.split()) >= 3 for pairs in found.values() for _, line in pairs)
    again = summaries.load_pairs(config, "test")
    assert list(again) == found["test"]
