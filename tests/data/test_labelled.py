"""Rows are the reference's, labels keep their names, and a run keeps what it is judged by."""

import collections

import grain
import numpy as np
import pytest

from layerdrop_jax.data import labelled, pipeline
from layerdrop_jax.data import tokenizers as vocabulary
from layerdrop_jax.data.labelled import Example
from layerdrop_jax.symbols import BOS, EOS, PAD

WORDS = ["a", "b", "c", "d", "e", "f", "g"]  # ids 4 to 10


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return vocabulary.train_word_vocabulary([" ".join(WORDS)], 4 + len(WORDS), path)


def make_config(**changes):
    values = {"dataset": "tsv", "vocab_size": 4 + len(WORDS), "batch_rows": 4, "length": 9}
    return labelled.LabelledConfig(**values | changes)


def make_rows(tokenizer, texts, labels=None, names=("no", "yes"), **changes):
    labels = labels or ["no"] * len(texts)
    examples = [Example(*example) for example in zip(texts, labels, strict=True)]
    return labelled.prepare_examples(make_config(**changes), tokenizer, examples, names)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = "".join(f"{n}\t{'yes' if n % 3 else 'no'}\ttext {n}\n" for n in range(30))
    (folder / "train.tsv").write_text(f"id\tlabel\tsentence\n{rows}")
    (folder / "dev.tsv").write_text("label\tsentence\nno\tü\n")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "glue/wnli"}, r"unknown data.dataset 'glue/wnli'; known: glue/mnli, .* tsv"),
        ({"batch_rows": 0}, r"data.batch_rows=0 must be at least 1"),
        ({"length": 5}, r"data.length=5 must be at least 6"),
        ({"buckets": "8,x"}, r"data.buckets='8,x' is not like \"16,32\""),
        (
            {"buckets": "7,7"},
            r"data.buckets='7,7' must increase, and lie between 6 and data.length=9",
        ),
        ({"buckets": "5,8"}, r"data.buckets='5,8' must increase"),
        ({"buckets": "8,9"}, r"data.buckets='8,9' must increase"),
        ({"max_examples": -1}, r"data.max_examples=-1 must be 0 or more"),
        ({"workers": -1}, r"data.workers=-1 must be 0 or more"),
    ],
)
def test_values_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_names_are_those_of_the_whole_split(folder):
    """However few examples are taken, and so whatever the head has outputs for."""
    examples, names = labelled.load_training(make_config(path=str(folder), max_examples=1))
    assert (len(examples), names) == (1, ("no", "yes"))


def test_splits_of_a_folder(folder):
    config = make_config(path=str(folder))
    train = labelled.load_examples(config, "train")
    assert train[:2] == [Example(("text 0",), "no"), Example(("text 1",), "yes")]
    assert labelled.load_examples(config, "valid") == [Example(("ü",), "no")]
    with pytest.raises(FileNotFoundError, match=r"neither test.tsv nor test.tsv.gz"):
        labelled.load_examples(config, "test")
    (folder / "test.tsv").write_text("sentence\nx\n")
    test = labelled.load_examples(config, "test")
    assert test == [Example(("x",), None)]
    assert labelled.has_labels(train)
    assert not labelled.has_labels(test)


def test_few_examples_are_a_fixed_choice_among_the_many(folder):
    def load(split, count):
        return labelled.load_examples(make_config(path=str(folder), max_examples=count), split)

    assert load("train", 5) == load("train", 5) == load("train", 12)[:5]
    assert load("train", 5) != load("train", 0)[:5]
    assert len(set(load("train", 12))) == 12
    assert load("train", 30) == load("train", 0)
    assert len(load("valid", 1)) == 1


def test_names_of_classes_and_what_is_measured():
    def look(dataset, *labels):
        config = make_config(dataset=dataset)
        names = labelled.label_names(config, [Example(("x",), label) for label in labels])
        return names, labelled.task_metrics(config, names)

    assert look("sst2", "1", "0", "1") == (("0", "1"), ("accuracy",))
    assert look("tsv", 2.5, 1.0) == ((), ("pearson", "spearman"))
    names = ("not_equivalent", "equivalent")
    assert look("glue/mrpc", *names[::-1]) == (names, ("accuracy", "f1"))
    assert look("glue/stsb", 0.5) == ((), ("pearson", "spearman"))
    with pytest.raises(ValueError, match=r"tsv has no labels; its file needs a column `label`"):
        look("tsv", None)
    with pytest.raises(ValueError, match=r"nothing to tell apart: its labels are \('a',\)"):
        look("tsv", "a", "a")


def test_rows_of_one_and_of_two_texts(tokenizer):
    rows = make_rows(tokenizer, [("a b",), ("a", "b c"), ("",)], ["yes", "no", "no"])
    assert [rows[n]["tokens"].tolist() for n in range(3)] == [
        [BOS, 4, 5, EOS, PAD, PAD, PAD, PAD, PAD],
        [BOS, 4, EOS, EOS, 5, 6, EOS, PAD, PAD],
        [BOS, EOS, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert [(int(rows[n]["label"]), int(rows[n]["weight"])) for n in range(3)] == [
        (1, 1), (0, 1), (0, 1),
    ]  # fmt: skip
    assert rows.stats == {
        "examples": 3, "tokens": 13, "cut": 0,
        "padding": pytest.approx(14 / 27), "majority": pytest.approx(2 / 3),
    }  # fmt: skip
    assert rows.padding["weight"] == 0
    assert rows.padding["tokens"].tolist() == rows[2]["tokens"].tolist()


def cut_one_by_one(first, second, room):
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_the_longer_text_loses_its_end_first():
    for room in range(2, 7):
        for lengths in np.ndindex(9, 9):
            texts = [list(range(100 * n, 100 * n + count)) for n, count in enumerate(lengths, 1)]
            row, fits = labelled.frame(texts, room + 4)
            assert fits == (sum(lengths) <= room)
            first, second = cut_one_by_one(*texts, room)
            assert row == [BOS, *first, EOS, EOS, *second, EOS]
    assert labelled.frame([[7, 8, 9]], 4) == ([BOS, 7, 8, EOS], False)
    assert labelled.frame([[7, 8]], 4) == ([BOS, 7, 8, EOS], True)


def test_what_is_cut_is_counted(tokenizer):
    rows = make_rows(tokenizer, [("a b c d e f g",), ("a b c d e f g", "a"), ("a",)], length=8)
    assert rows.stats["cut"] == 2
    assert rows[1]["tokens"].tolist() == [BOS, 4, 5, 6, EOS, EOS, 4, EOS]


def test_numbers_and_hidden_labels(tokenizer):
    rows = make_rows(tokenizer, [("a",), ("b",)], [0.25, 1.0], names=())
    assert [rows[n]["label"].dtype for n in range(2)] == [np.float32] * 2
    assert [float(rows[n]["label"]) for n in range(2)] == [0.25, 1.0]
    assert rows.padding["label"].dtype == np.float32
    assert "majority" not in rows.stats
    assert make_rows(tokenizer, [("a",)], [None])[0]["label"] == labelled.HIDDEN
    assert np.isnan(make_rows(tokenizer, [("a",)], [None], names=())[0]["label"])


def test_labels_and_tokenizers_that_do_not_belong_here(tokenizer):
    with pytest.raises(ValueError, match=r"the label 'maybe' is not among .* no, yes"):
        make_rows(tokenizer, [("a",)], ["maybe"])
    with pytest.raises(ValueError, match=r"the label 'no' is a name, and not a number"):
        make_rows(tokenizer, [("a",)], ["no"], names=())
    with pytest.raises(ValueError, match=r"the tokenizer has 11 entries, data.vocab_size is 99"):
        make_rows(tokenizer, [("a",)], vocab_size=99)
    with pytest.raises(ValueError, match=r"tsv has no examples"):
        make_rows(tokenizer, [])


@pytest.mark.parametrize("labels", [["no", "yes", "yes"] * 2, [0.5, 1.5, 2.5] * 2])
def test_batches_are_those_of_the_pipeline(tokenizer, labels):
    names = ("no", "yes") if isinstance(labels[0], str) else ()
    config = make_config()
    texts = [(word,) for word in WORDS[:6]]
    rows = make_rows(tokenizer, texts, labels, names)
    dtype = np.int32 if names else np.float32

    batches = pipeline.train_iterator(config, rows, seed=0, accumulate=3)
    batch = next(batches)
    batches.close()
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        "tokens": ((3, 4, 9), np.int32), "label": ((3, 4), dtype), "weight": ((3, 4), np.int32),
    }  # fmt: skip
    # Two epochs of six: every label is still that of its text.
    seen = sorted(zip(batch["tokens"][..., 1].ravel(), batch["label"].ravel(), strict=True))
    known = sorted((4 + n, rows[n]["label"]) for n in range(6))
    assert seen == sorted(2 * known)

    first, last = pipeline.eval_batches(config, rows)
    assert first["weight"].tolist() == [1] * 4
    assert last["weight"].tolist() == [1, 1, 0, 0]
    assert last["label"].dtype == dtype
    assert last["tokens"][:2, 1].tolist() == [8, 9]


@pytest.fixture(scope="module")
def many_rows(tokenizer):
    """700 examples of 2 to 32 tokens, most of them short, labelled by whether their size is odd."""
    sizes = np.random.default_rng(3).geometric(0.2, 700).clip(max=30)
    texts = [(" ".join(WORDS[n % 6] for n in range(size)),) for size in sizes]
    labels = ["yes" if size % 2 else "no" for size in sizes]
    return make_rows(tokenizer, texts, labels, length=32, buckets="8,16")


def test_examples_of_like_length_share_a_batch(many_rows):
    config = make_config(length=32, buckets="8,16")
    batches = pipeline.train_iterator(config, many_rows, seed=5, accumulate=2)
    found = [next(batches) for _ in range(300)]
    batches.close()
    seen = collections.Counter()
    for batch in found:
        size_AxB = (batch["tokens"] != PAD).sum(axis=-1)
        length = batch["tokens"].shape[-1]
        assert batch["tokens"].shape[:-1] == batch["label"].shape == (2, 4)
        assert length == min(n for n in (8, 16, 32) if n >= size_AxB.max())
        assert ((size_AxB % 2 == 1) == (batch["label"] == 1)).all()  # <s> A </s>
        seen[length] += 1
    assert seen[8] > 150
    assert min(seen[16], seen[32]) > 5
    # No order by length from batch to batch.
    lengths = [batch["tokens"].shape[-1] for batch in found]
    assert lengths != sorted(lengths)
    # 300 updates of 8 are 2,400 rows: three epochs and 300 rows. Whole windows are of 512.
    taken = np.concatenate([(b["tokens"] != PAD).sum(axis=-1).ravel() for b in found[:256]])
    order = grain.MapDataset.range(700).seed(5).shuffle().repeat(4)
    expected = [many_rows.sizes[order[place]] for place in range(2048)]
    assert sorted(taken) == sorted(expected)


def test_batches_of_like_length_go_on_and_are_shared_to_the_bit(many_rows):
    def take(count, taken=0, **changed):
        config = make_config(length=32, buckets="8,16", batch_rows=6, **changed.pop("config", {}))
        batches = pipeline.train_iterator(config, many_rows, accumulate=2, **changed)
        batches.set_state({"next_index": taken})
        found = [next(batches) for _ in range(count)]
        batches.close()
        return found

    whole = take(70, seed=5)
    for batch, again in zip(whole[60:], take(10, 60, seed=5), strict=True):
        np.testing.assert_array_equal(batch["tokens"], again["tokens"])
    parts = [take(70, seed=5, process_index=index, process_count=3) for index in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([s[name] for s in shares], axis=1))
    other = take(70, seed=6)
    assert any(a["tokens"].tolist() != b["tokens"].tolist() for a, b in zip(whole, other))


def test_evaluation_reads_examples_by_length(many_rows):
    config = make_config(length=32, buckets="8,16")
    numbers = [5, 3, 8, 600, 41, 17]
    order = pipeline.eval_order(many_rows, numbers)
    assert sorted(order) == sorted(numbers)
    assert sorted(many_rows.sizes[order]) == many_rows.sizes[order].tolist()
    for some in (numbers, None):
        order = pipeline.eval_order(many_rows, some)
        batches = list(pipeline.eval_batches(config, many_rows, numbers=some))
        found = [row for batch in batches for row in batch["tokens"][batch["weight"] > 0]]
        assert len(found) == len(order)
        for row, number in zip(found, order, strict=True):
            np.testing.assert_array_equal(row, many_rows[number]["tokens"][: len(row)])
            assert (many_rows[number]["tokens"][len(row) :] == PAD).all()
    assert {batch["tokens"].shape[1] for batch in batches} == {8, 16, 32}


def test_saved_examples_come_back(tmp_path):
    for examples in (
        [Example(("a\u2028\tb\n", 'ü "c"'), "yes"), Example(("",), "no")],
        [Example(("a",), 0.1), Example(("a",), 2.0)],
        [Example(("a", "b"), None)],
    ):
        labelled.save_examples(tmp_path, "valid", examples)
        assert labelled.load_saved_examples(tmp_path, "valid") == examples
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["valid.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", r"valid.jsonl, line 2: not JSON"),
        ('"text"', r"valid.jsonl, line 2: not an example but \"text\""),
        ('{"texts": ["a"]}', r"line 2: not an example"),
        ('{"texts": [], "label": null}', r"line 2: not an example"),
        ('{"texts": "a", "label": null}', r"line 2: not an example"),
        ('{"texts": [1], "label": null}', r"line 2: not an example"),
        ('{"texts": ["a"], "label": true}', r"line 2: not an example"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path, line, message):
    labelled.save_examples(tmp_path, "valid", [Example(("a",), "yes")])
    path = tmp_path / "data" / "valid.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        labelled.load_saved_examples(tmp_path, "valid")
    with pytest.raises(FileNotFoundError, match=r"no examples at .*test.jsonl"):
        labelled.load_saved_examples(tmp_path, "test")


def test_saved_names_come_back_in_their_order(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no label names at .*labels.json"):
        labelled.load_labels(tmp_path)
    for names in (("yes", "ü", "no"), ()):
        head = labelled.Head(names, ("question", "passage"))
        labelled.save_head(tmp_path, head)
        assert labelled.load_head(tmp_path) == head
        assert labelled.load_labels(tmp_path) == names
    for content, message in (
        ("[", r"labels.json is not JSON"),
        ('{"a": 1}', r"labels.json is no object with labels and columns"),
        ("[0, 1]", r"labels.json: labels is not a list of names"),
        ('["a", "a"]', r"labels.json: labels has a name twice"),
        ('["a"]', r"labels.json names one class"),
        ('{"labels": ["a", "b"], "columns": []}', r"labels.json names 0 texts"),
        ('{"labels": ["a", "b"], "columns": ["c", "c"]}', r"labels.json: columns has a name twice"),
    ):
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            labelled.load_labels(tmp_path)


@pytest.mark.parametrize(
    ("texts", "columns"), [(("a",), ("text",)), (("a", "b"), ("text1", "text2"))]
)
def test_a_list_of_labels_alone_is_an_earlier_version_s(tmp_path, texts, columns):
    labelled.save_examples(tmp_path, "valid", [Example(texts, "yes")])
    (tmp_path / "labels.json").write_text('["no", "yes"]')
    assert labelled.load_head(tmp_path) == (("no", "yes"), columns)


def test_texts_are_found_by_their_names(tmp_path):
    (tmp_path / "train.tsv").write_text("label\tquestion\tpassage\nyes\tq\tp\n")
    (tmp_path / "dev.tsv").write_text("id\tpassage\tlabel\tquestion\n7\tP\tno\tQ\n")
    config = make_config(dataset="tsv", path=str(tmp_path))
    assert labelled.text_columns(config) == ("question", "passage")
    assert labelled.load_examples(config, "train") == [Example(("q", "p"), "yes")]
    assert labelled.load_examples(config, "valid") == [Example(("Q", "P"), "no")]
    for header in ("label\tquestion\tanswer", "label\tquestion\tid"):
        (tmp_path / "dev.tsv").write_text(header + "\nno\tQ\t7\n")
        with pytest.raises(ValueError, match=r"dev.tsv has the texts .*question, passage"):
            labelled.load_examples(config, "valid")


def test_sst2(data_dir, monkeypatch):
    monkeypatch.setenv("LAYERDROP_DATA", str(data_dir))
    config = make_config(dataset="sst2", max_examples=100)
    train = labelled.load_examples(config, "train")
    assert len(train) == 100
    assert labelled.label_names(config, train) == ("0", "1")
    for split, count, positive in (("valid", 872, 444), ("test", 1821, 909)):
        examples = labelled.load_examples(config, split)
        assert len(examples) == count
        assert sum(example.label == "1" for example in examples) == positive


def test_modules_of_the_standard_library():
    config = make_config(dataset="pystdlib_modules")
    valid = labelled.load_examples(config, "valid")
    assert valid[0].texts[0].count("\n") == 7
    names = labelled.label_names(config, labelled.load_examples(config, "train"))
    assert len(names) == 16
    assert {example.label for example in valid} <= set(names)
