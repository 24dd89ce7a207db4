"""Checkpoints of the reference's: in, out, and what it wrote itself."""

import argparse
import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import architectures, llama, wmt
from layerdrop_jax.commands.export_run import export_run
from layerdrop_jax.commands.import_run import import_run, task_of_folder
from layerdrop_jax.data.tokenizers import encode
from layerdrop_jax.interop import fairseq, fairseq_files
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from layerdrop_jax.runs.run import load_run
from tests import tiny_run
from tests.interop.test_ctranslate2 import drawn, seq2seq_config

# Its checkpoints here, a config of the same kind, and whether the names within are v0.10.0's.
RECORDED = {
    "nmt_post": (Seq2SeqConfig, architectures.transformer_iwslt_de_en, True),
    "nmt_post_v090": (Seq2SeqConfig, architectures.transformer_iwslt_de_en, False),
    "lm_adaptive": (LMConfig, architectures.transformer_lm_wiki103, True),
    "roberta_v0100": (EncoderConfig, architectures.roberta_base, True),
    "roberta_head": (EncoderConfig, architectures.roberta_base, False),
}
SMALL_LM = architectures.transformer_lm_wiki103 | {"vocab_size": 61, "embed_dim": 24, "ffn_dim": 36}
SMALL_LM |= {"decoder_layers": 3, "attention_heads": 4, "max_length": 20}
SMALL_ENCODER = architectures.roberta_base | {"vocab_size": 61, "embed_dim": 24, "ffn_dim": 36}
SMALL_ENCODER |= {"encoder_layers": 3, "attention_heads": 4, "max_length": 20}
CONFIGS = {
    "post": seq2seq_config(),
    "pre": seq2seq_config(norm="pre", positions="learned", share_embeddings="all"),
    "bart": seq2seq_config(
        positions="learned",
        share_embeddings="all",
        embedding_norm=True,
        scale_embeddings=False,
        activation="gelu_tanh",
    ),
    "adaptive": LMConfig(**SMALL_LM | {"adaptive_cutoffs": "20,40"}),
    "adaptive_untied": LMConfig(
        **SMALL_LM
        | {"adaptive_cutoffs": "20,40", "tie_embeddings": False, "tie_projections": False}
    ),
    "lm": LMConfig(**SMALL_LM | {"adaptive_cutoffs": "", "final_norm": True}),
    "lm_untied": LMConfig(
        **SMALL_LM | {"adaptive_cutoffs": "", "positions": "learned", "tie_embeddings": False}
    ),
    "masked": EncoderConfig(**SMALL_ENCODER),
    "classes": EncoderConfig(**SMALL_ENCODER | {"num_classes": 3}),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch")


def read_as(kind, base, args, state):
    fields = fairseq_files.fields(args, state)
    return kind(**base | fields), fields


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_comes_back_as_it_went_out(name):
    config = CONFIGS[name]
    params, args = drawn(config), config.export_config("fairseq")
    state = fairseq.uniform(config.export_params("fairseq", params))
    fields = fairseq_files.fields(args, state)
    found = dataclasses.replace(config, **fields)
    means_nothing = {} if getattr(config, "cutoffs", 1) else {"tie_projections": True}
    assert dataclasses.replace(found, **means_nothing) == config
    back = found.import_params("fairseq", state)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("name", RECORDED)
def test_what_the_reference_wrote_goes_out_as_it_came_in(name, golden_dir, torch):
    kind, base, same_names = RECORDED[name]
    path = golden_dir / f"{name}.pt"
    args, state = fairseq_files.read(path)
    config, fields = read_as(kind, base, args, state)
    params = config.import_params("fairseq", state)
    out = config.export_params("fairseq", params)
    for key, array in fairseq.uniform(out).items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)
    left = state.keys() - fairseq.uniform(out).keys()
    assert {key.partition(".")[0] for key in left} <= {"classification_heads"}
    ours = config.export_config("fairseq")
    assert fairseq_files.fields(ours, out) == fields
    if not same_names:
        return
    with torch.serialization.safe_globals([argparse.Namespace]):
        theirs = torch.load(path, weights_only=True)
    heads = {key for key in theirs["model"] if key.startswith("classification_heads.")}
    assert out.keys() == theirs["model"].keys() - heads
    for key, tensor in theirs["model"].items():
        assert key in heads or tuple(tensor.shape) == out[key].shape, key
    # Settings that describe the network agree, where both say them; a task's own may differ.
    said = vars(theirs["args"])
    free = {
        "arch",
        "criterion",
        "optimizer",
        "lr_scheduler",
        "lr",
        "data",
        "adam_eps",
        "adam_betas",
    }
    free |= {"weight_decay", "sample_break_mode", "adaptive_softmax_dropout"}
    free |= {"dropout", "attention_dropout", "activation_dropout", "pooler_dropout"}
    for key in (ours.keys() & said.keys()) - free:
        assert ours[key] == said[key] or not (ours[key] or said[key]), key


def test_a_checkpoint_with_two_dictionaries_is_refused(golden_dir, torch):
    with pytest.raises(ValueError, match="dictionaries of 45 and 52 entries"):
        task_of_folder(golden_dir / "nmt_pre.pt")


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("post", {"arch": "lightconv"}, "arch='lightconv'"),
        ("post", {"decoder_ffn_embed_dim": 8}, "decoder_ffn_embed_dim=8"),
        ("post", {"decoder_normalize_before": True}, "decoder_normalize_before=True"),
        ("post", {"adaptive_softmax_cutoff": "20"}, "adaptive_softmax_cutoff='20'"),
        ("post", {"no_cross_attention": True}, "no_cross_attention=True"),
        ("post", {"activation_fn": "swish"}, "activation_fn='swish'"),
        ("adaptive", {"adaptive_input": False}, "adaptive_input=False"),
        ("adaptive", {"adaptive_input_factor": 2.0}, "adaptive_input_factor=2.0"),
        ("lm", {"character_embeddings": True}, "character_embeddings=True"),
        ("lm", {"decoder_input_dim": 8}, "decoder_input_dim=8"),
        ("masked", {"untie_weights_roberta": True}, "untie_weights_roberta=True"),
        ("masked", {"task": "sentence_ranking"}, "task='sentence_ranking'"),
    ],
)
def test_settings_that_this_network_lacks_are_named(name, changed, message):
    config = CONFIGS[name]
    state = config.export_params("fairseq", drawn(config))
    with pytest.raises(ValueError, match=message):
        fairseq_files.fields(config.export_config("fairseq") | changed, state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["post"], {"exit_maps": True}),
        (CONFIGS["post"], {"decoder_layers": 0}),
        (CONFIGS["lm"], {"norm_type": "rms"}),
        (CONFIGS["lm"], {"positions": "rotary"}),
        (CONFIGS["lm"], {"kv_heads": 2}),
        (CONFIGS["adaptive"], {"norm": "post"}),
        (CONFIGS["masked"], {"norm_epsilon": 1e-12}),
    ],
)
def test_what_the_reference_lacks_is_named(config, message):
    ((key, value),) = message.items()
    with pytest.raises(ValueError, match=f"model.{key}={value!r}"):
        dataclasses.replace(config, **message).export_config("fairseq")


def test_queries_keys_and_values_of_one_map_are_taken_apart():
    """As v0.8.0 wrote them."""
    state = CONFIGS["lm"].export_params("fairseq", drawn(CONFIGS["lm"]))
    old, at = dict(state), "decoder.layers.1.self_attn."
    for part in ("weight", "bias"):
        thirds = [old.pop(f"{at}{name}_proj.{part}") for name in "qkv"]
        old[f"{at}in_proj_{part}"] = np.concatenate(thirds)
    jax.tree.map(np.testing.assert_array_equal, fairseq.uniform(old), fairseq.uniform(state))


def test_files_that_hold_more_than_weights_are_not_loaded(tmp_path, torch):
    with pytest.raises(FileNotFoundError, match="is missing"):
        fairseq_files.read(tmp_path / "absent.pt")
    for content, message in (
        ({"model": {}, "args": tmp_path}, "it holds a pathlib"),
        ({"args": argparse.Namespace()}, "no state dict under 'model'"),
        ({"model": {}}, "neither args nor cfg"),
    ):
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(ValueError, match=message) as caught:
            fairseq_files.read(tmp_path / "c.pt")
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "c.pt").write_bytes(b"no file of torch's")
    with pytest.raises(ValueError, match="weights and settings alone"):
        fairseq_files.read(tmp_path / "c.pt")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_translation_run_comes_back(text, tmp_path, torch):
    config = tiny_run.tiny_config(text, model={"norm": "post"})
    run = tiny_run.write_untrained(tmp_path / "run", config)
    export_run(run, tmp_path / "out", library="fairseq", flags={"decoder": "explicit:1,3"})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"checkpoint.pt", "dict.en.txt", "dict.de.txt", "tokenizer.json", "README.md"}
    back = tmp_path / "back"
    changes = [
        "data.dataset=text",
        f"data.path={text}",
        f"data.data_dir={text / 'prepared'}",
        "decode.beam=2",
    ]
    config = wmt.get_config("demo").to_dict()
    record = import_run(tmp_path / "out" / "checkpoint.pt", back, config, changes=changes)
    assert "numbers, read back" in record["compared"]
    here, there = load_run(run), load_run(back)
    params = here.params | {
        "decoder": jax.tree.map(lambda a: a[np.array([1, 3])], here.params["decoder"])
    }
    jax.tree.map(np.testing.assert_array_equal, params, there.params)
    ids = [encode(each.tokenizer, ["one two"]) for each in (here, there)]
    assert ids[0] == ids[1]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_language_model_of_words_comes_in(lm_text, tmp_path, torch):
    """With its dictionary alone, and with merges beside it, whose pieces it may lack."""
    config = LMConfig(
        **SMALL_LM
        | {"adaptive_cutoffs": "", "final_norm": True, "tie_projections": False}
        | {"vocab_size": 8}
    )
    params = drawn(config)
    args, state = config.export_config("fairseq"), config.export_params("fairseq", params)
    fairseq_files.write(tmp_path / "checkpoint.pt", args, state)
    (tmp_path / "dict.txt").write_text("one 9\ntw@@ 5\no 4\nmadeupword0000 0\n")
    changes = tiny_run.own_text(lm_text)

    def come_in(name):
        config = llama.get_config("demo").to_dict()
        import_run(tmp_path / "checkpoint.pt", tmp_path / name, config, changes=changes)
        return load_run(tmp_path / name)

    with pytest.raises(ValueError, match="pieces of words, 'tw@@' say"):
        come_in("refused")
    (tmp_path / "codes").write_text("#version: 0.2\nt w\no n\non e</w>\n")
    run = come_in("run")
    assert encode(run.tokenizer, ["one two", "on"]) == [[4, 5, 6], [10, 3]]
    table = np.asarray(run.params["embedding"]["table"])
    np.testing.assert_array_equal(table[:8], params["embedding"]["table"])
    for row in table[8:]:  # t, w, n, on, e
        np.testing.assert_array_equal(row, params["embedding"]["table"][3])


def test_a_masked_language_model_and_its_dictionary(tmp_path, torch):
    config = CONFIGS["masked"]
    args, state = config.export_config("fairseq"), config.export_params("fairseq", drawn(config))
    fairseq_files.write(tmp_path / "c.pt", args, state)
    assert task_of_folder(tmp_path / "c.pt") == "masked_lm"
    assert fairseq_files.has_mask(args)
    assert fairseq_files.languages(args) == ()
    assert json.loads(json.dumps(args))  # settings are plain values, which every loader takes
