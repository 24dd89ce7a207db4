"""The reference's recipe on files of the same form, small and made up."""

import pytest

from layerdrop_jax.data.datasets import iwslt14
from layerdrop_jax.data.pairs import DataConfig, load_pairs

HEAD = ["<url>http://a</url>", "<keywords>k, l</keywords>", "<talkid>7</talkid>"]


def xml(sentences):
    segments = [f'<seg id="{n}"> {text} </seg>' for n, text in enumerate(sentences, start=1)]
    return "\n".join(["<?xml version='1.0'?>", "<doc>", *segments, "</doc>", ""])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "iwslt" / "de-en"
    folder.mkdir(parents=True)
    for language, mark in (("de", "ä"), ("en", "a")):
        talks = [
            *HEAD,
            f"<title>Der {mark} Titel</title>",
            f"<description>Von {mark}</description>",
        ]
        talks += [f"Satz {mark} Nummer {number} ." for number in range(60)]
        (folder / f"train.tags.de-en.{language}").write_text("\n".join(talks) + "\n")
        for name in iwslt14.TEST:
            text = [f"{name} {mark}", "R&amp;D It\u2019s"]
            (folder / f"{name}.{language}.xml").write_text(xml(text))
    return folder


@pytest.fixture
def load(folder, tmp_path):
    def load(split, source="de", target="en", path=folder.parent):
        config = DataConfig(
            dataset="iwslt14", source=source, target=target, path=str(path), data_dir=str(tmp_path)
        )
        return list(load_pairs(config, split))

    return load


def test_titles_stay_markup_goes_and_text_is_lower_case(load):
    train = load("train")
    assert train[0] == ("der ä titel", "der a titel")
    assert train[1] == ("von ä", "von a")
    assert train[2] == ("satz ä nummer 0 .", "satz a nummer 0 .")


def test_every_23rd_pair_is_validation(load):
    kept = 62
    assert len(load("valid")) == kept // 23 == 2
    assert len(load("train")) == kept - 2
    assert load("valid")[0] == ("satz ä nummer 20 .", "satz a nummer 20 .")  # the 23rd that is left


def test_the_test_set_is_the_five_evaluation_sets_in_order(load):
    test = load("test")
    assert [source for source, _ in test[::2]] == [f"{name} ä".lower() for name in iwslt14.TEST]
    assert test[1] == ("r&d it's", "r&d it's")


def test_the_other_direction_and_the_inner_folder(load, folder):
    assert load("train", "en", "de", path=folder)[0] == ("der a titel", "der ä titel")


@pytest.mark.parametrize(
    ("german", "english", "kept"),
    [
        ("a " * 175, "b " * 175, True),
        ("a " * 176, "b " * 175, False),
        ("a b", "c d e", True),  # 1 to 1.5
        ("a b", "c d e.", False),  # a full stop counts
        ("", "b", False),
    ],
)
def test_training_pairs_are_filtered_by_length_and_ratio(folder, load, german, english, kept):
    for language, line in (("de", german), ("en", english)):
        with open(folder / f"train.tags.de-en.{language}", "a") as file:
            file.write(line + "\n")
    assert len(load("train") + load("valid")) == 62 + kept


def test_unequal_sides_are_named(folder, load):
    with open(folder / "train.tags.de-en.en", "a") as file:
        file.write("one more\n")
    with pytest.raises(ValueError, match=r"train.tags.de-en.de has 62 lines, .*en has 63"):
        load("train")


def test_a_missing_file_a_missing_folder_and_other_languages(folder, load):
    (folder / f"{iwslt14.TEST[1]}.en.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither IWSLT14.TEDX.dev2012.de-en.en.xml nor"):
        load("train")
    with pytest.raises(FileNotFoundError, match=r"unpacked de-en.tgz"):
        load("train", path="")
    with pytest.raises(ValueError, match=r"languages de and en, not de and fr"):
        load("train", target="fr")
