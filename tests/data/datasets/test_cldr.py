"""CLDR pairs: the same for the same seed, in any pair of locales, splits without a common line."""

import itertools
import random

import babel
import pytest

from layerdrop_jax.data.datasets import cldr, cldr_phrases, prepared
from layerdrop_jax.data.pairs import DataConfig, load_pairs

SIZES = {"train": 701, "valid": 53, "test": 59}


def open_all(source, target, data_dir, **settings):
    config = cldr.cldr_config(source, target, sizes=SIZES, **settings)
    builder = prepared.prepare(cldr.Cldr, config, str(data_dir))
    return {
        split: list(prepared.Pairs(builder.as_data_source(split), source, target))
        for split in SIZES
    }


@pytest.fixture(scope="module")
def english_german(tmp_path_factory):
    return open_all("en", "de", tmp_path_factory.mktemp("cldr"))


def test_splits_have_their_sizes_and_share_no_sentence(english_german):
    assert {split: len(pairs) for split, pairs in english_german.items()} == SIZES
    everything = list(itertools.chain(*english_german.values()))
    assert len({source for source, _ in everything}) == len(everything)
    assert len({target for _, target in everything}) == len(everything)
    assert all(source and target and source != target for source, target in everything)


def test_the_same_seed_gives_the_same_pairs_and_another_others(english_german, tmp_path):
    assert open_all("en", "de", tmp_path) == english_german
    other = open_all("en", "de", tmp_path, seed=1)
    assert other["train"] != english_german["train"]


def test_what_was_asked_before_changes_nothing(english_german, tmp_path):
    """Babel fills shared tables with the words of whichever locale asks first."""
    for code in ("fr", "ja", "de", "en"):
        assert babel.Locale.parse(code).quarters["stand-alone"]["wide"]
    assert open_all("en", "de", tmp_path) == english_german
    quarters = [
        cldr_phrases.fresh_locale(code).quarters["stand-alone"]["wide"][1]
        for code in ("de", "fr", "ja")
    ]
    assert quarters == ["1. Quartal", "1er trimestre", "第1四半期"]


def test_the_default_set_has_the_documented_sizes():
    assert dict(cldr.SIZES) == {"train": 20_000, "valid": 500, "test": 500}


@pytest.mark.parametrize("kind", sorted(set(cldr_phrases.KINDS), key=lambda kind: kind.__name__))
def test_every_kind_speaks_english_and_german(kind):
    """No kind falls out silently because Babel has no pattern for it."""
    locales = cldr_phrases.fresh_locale("en"), cldr_phrases.fresh_locale("de")
    inventory = cldr_phrases.Inventory.shared(*locales, seed=0)
    rng = random.Random(0)
    phrases = [kind(rng, inventory) for _ in range(101)]
    spoken = [[phrase(locale) for locale in locales] for phrase in phrases]
    assert sum(english != german for english, german in spoken) > 50
    assert len({english for english, _ in spoken}) > 12


def test_there_are_at_least_six_kinds():
    assert len(set(cldr_phrases.KINDS)) >= 6


def say(kind, code, seed=0):
    locale = cldr_phrases.fresh_locale(code)
    inventory = cldr_phrases.Inventory.shared(locale, cldr_phrases.fresh_locale("en"), seed=0)
    return kind(random.Random(seed), inventory)(locale)


def test_both_sides_say_the_same_by_their_own_rules():
    assert say(cldr_phrases.quarter, "en").split()[0][0] == say(cldr_phrases.quarter, "de")[0]
    english, german = say(cldr_phrases.large_number, "en"), say(cldr_phrases.large_number, "de")
    assert english.split()[0].replace(".", ",") == german.split("\u00a0")[0].split()[0]
    assert english != german


@pytest.mark.parametrize(("source", "target"), [("fr", "ja"), ("pt_BR", "zh_Hant"), ("de", "en")])
def test_other_pairs_of_locales(source, target, tmp_path):
    splits = open_all(source, target, tmp_path)
    assert {split: len(pairs) for split, pairs in splits.items()} == SIZES
    text = " ".join(f"{source} {target}" for source, target in splits["train"])
    for code in ("duration-", "length-", "mass-"):
        assert code not in text, "the code of a unit stands where its pattern is missing"


def test_an_unknown_locale_is_named_with_the_way_to_list_them():
    with pytest.raises(ValueError, match=r"unknown locale 'xx'.*pybabel --list-locales"):
        cldr.cldr_config("en", "xx")
    with pytest.raises(ValueError, match=r"unknown locale '../en'"):
        cldr.cldr_config("../en", "de")


def test_an_unknown_locale_is_the_same_error_from_the_config(tmp_path):
    config = DataConfig(dataset="cldr", target="klingon", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown locale 'klingon'"):
        load_pairs(config, "train")


def test_locales_too_close_to_each_other_are_an_error():
    with pytest.raises(ValueError, match=r"only \d+ different sentence pairs for en-en_US, not 50"):
        list(cldr.make_pairs("en", "en_US", seed=0, count=50))


def test_the_name_of_the_config_holds_what_decides_the_content(monkeypatch):
    name = cldr.cldr_config("en", "de").name
    assert name.startswith("en-de-seed0-20000-500-500-babel")
    others = [
        cldr.cldr_config("de", "en").name,
        cldr.cldr_config("en", "de", seed=1).name,
        cldr.cldr_config("en", "de", sizes=SIZES).name,
    ]
    monkeypatch.setattr(cldr_phrases, "KINDS", cldr_phrases.KINDS[::-1])
    others.append(cldr.cldr_config("en", "de").name)
    assert len({name, *others}) == 5
    monkeypatch.undo()
    assert cldr.cldr_config("en", "de").name == name
