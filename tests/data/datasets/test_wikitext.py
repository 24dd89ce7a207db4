"""The published counts, a folder or a download, and a way out of what can go wrong."""

import functools
import gzip
import hashlib
import http.server
import shutil
import socket
import threading
import urllib.request
import zipfile

import numpy as np
import pytest

from layerdrop_jax.data import streams
from layerdrop_jax.data import tokenizers as vocabulary
from layerdrop_jax.data.datasets import wikitext

LINES = {"train": " \n = A = \n b <unk> \n", "valid": " \n a \n", "test": " c \n"}
COUNTS = {"train": 8, "valid": 3, "test": 2}


@pytest.fixture
def make_config(tmp_path):
    def make_config(path, dataset="wikitext-2"):
        return streams.StreamConfig(
            dataset=dataset,
            path=str(path),
            data_dir=str(tmp_path / "prepared"),
            tokenizer="word",
            vocab_size=7001,
            length=13,
        )

    return make_config


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(wikitext.TOKENS, "wikitext-2", COUNTS)


@pytest.fixture
def site(tmp_path, monkeypatch, tiny):
    """Serves tmp_path/site in place of the author's site."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(handler.func, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(wikitext, "URL", f"http://127.0.0.1:{server.server_port}/{{}}-v1.zip")
        yield folder
        server.shutdown()


def test_a_site_that_does_not_answer_is_given_up_at_once(make_config, monkeypatch):
    with socket.socket() as nobody:  # holds a port on which nothing listens
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/{{}}-v1.zip"
        monkeypatch.setattr(wikitext, "URL", url)
        with pytest.raises(ValueError, match=r"cannot download .*refused.*data.path=FOLDER"):
            streams.load_texts(make_config(""), "train")


def test_the_published_number_of_tokens(data_dir, make_config, tmp_path):
    config = make_config(data_dir / "wikitext", "wikitext-103")
    valid, test = (streams.load_texts(config, split) for split in ("valid", "test"))
    assert list(valid[:3]) == [" ", " = Homarus gammarus = ", " "]
    tokenizer = vocabulary.train_word_vocabulary(valid, 7001, tmp_path / "tokenizer.json")
    assert streams.prepare_blocks(config, tokenizer, valid).stats["tokens"] == 217_646
    tokens, offsets = vocabulary.encode_texts(tokenizer, test)
    assert len(tokens) == 245_569
    windows = streams.Windows(tokens, offsets, length=3072, context=2560, break_mode="complete")
    scored = [row["target"][row["weight"] > 0] for row in windows]
    np.testing.assert_array_equal(np.concatenate(scored), tokens)
    assert vocabulary.decode(tokenizer, vocabulary.encode(tokenizer, [valid[1]])) == [
        "= Homarus gammarus ="
    ]


def test_a_folder_without_training_text_serves_the_other_splits(data_dir, make_config):
    config = make_config(data_dir / "wikitext", "wikitext-103")
    assert streams.source_record(config)["texts"] == {"valid": 3760, "test": 4358}
    with pytest.raises(FileNotFoundError, match=r"neither wiki.train.tokens nor .*gz is in"):
        streams.load_texts(config, "train")


def test_files_under_their_own_names(tmp_path, make_config, tiny):
    (tmp_path / "wiki.train.tokens").write_text(LINES["train"])
    (tmp_path / "wiki.valid.tokens.gz").write_bytes(gzip.compress(LINES["valid"].encode()))
    (tmp_path / "valid.txt").write_text("not looked at")
    (tmp_path / "test.txt").write_text(LINES["test"])
    config = make_config(tmp_path)
    assert list(streams.load_texts(config, "train")) == [" ", " = A = ", " b <unk> "]
    assert list(streams.load_texts(config, "valid")) == [" ", " a "]
    assert list(streams.load_texts(config, "test")) == [" c "]


def test_other_text_is_not_taken_for_wikitext(tmp_path, make_config):
    (tmp_path / "wiki.valid.tokens").write_text(LINES["valid"])
    with pytest.raises(
        ValueError, match=r"wiki.valid.tokens has 3 tokens .* wikitext-2 has 217646; .*=text"
    ):
        streams.load_texts(make_config(tmp_path), "valid")


def test_a_folder_without_any_is_named(tmp_path, make_config):
    with pytest.raises(FileNotFoundError, match=r"none of wiki.train.tokens, .* is in"):
        streams.load_texts(make_config(tmp_path), "valid")
    with pytest.raises(FileNotFoundError, match="no folder /absent/place"):
        streams.load_texts(make_config("/absent/place"), "valid")


def test_the_archive_is_downloaded_once(site, make_config, monkeypatch, tmp_path):
    archive = site / "wikitext-2-v1.zip"
    with zipfile.ZipFile(archive, "w") as files:
        for split, lines in LINES.items():
            files.writestr(f"wikitext-2/wiki.{split}.tokens", lines)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(wikitext.SHA256, "wikitext-2", digest)
    assert list(streams.load_texts(make_config(""), "train")) == [" ", " = A = ", " b <unk> "]
    archive.unlink()
    shutil.rmtree(tmp_path / "prepared" / "wikitext")
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert streams.source_record(make_config(""))["texts"] == {"train": 3, "valid": 2, "test": 1}


def test_a_failed_download_names_the_way_out(site, make_config):
    with pytest.raises(
        ValueError, match=r"cannot download http.*wikitext-2-v1.zip .*404.*data.path=FOLDER"
    ):
        streams.load_texts(make_config(""), "train")


def test_another_file_in_place_of_the_archive_is_named(site, make_config):
    (site / "wikitext-2-v1.zip").write_text("<html>moved</html>")
    with pytest.raises(ValueError, match=r"is not the published one .*delete it and try again"):
        streams.load_texts(make_config(""), "train")
