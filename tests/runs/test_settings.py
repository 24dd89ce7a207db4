"""A config's checks: names, types, values, what differs and what may."""

import copy
import dataclasses
import pathlib
import re

import numpy as np
import pytest

from layerdrop_jax.runs import settings
from layerdrop_jax.step.dropping import describe_rates
from layerdrop_jax.step.optimizers import make_optimizer
from tests import tiny_run


def changed(**sections):
    return tiny_run.tiny_config(pathlib.Path("no-folder-is-read"), **sections)


def lm(**sections):
    return tiny_run.tiny_lm_config(pathlib.Path("no-folder-is-read"), **sections)


def without(config, section, key):
    return config | {section: {k: v for k, v in config[section].items() if k != key}}


def test_sections_become_dataclasses():
    parsed = settings.parse(changed(model={"encoder_layers": 3}, optimizer={"rate": 1}))
    assert parsed.model.encoder_layers == 3
    assert parsed.optimizer.rate == 1  # an int where a float is wanted
    assert (parsed.seed, parsed.data.dataset) == (1, "text")
    parsed = settings.parse(lm(model={"adaptive_cutoffs": ""}, train={"label_smoothing": 0.1}))
    assert isinstance(parsed, settings.LanguageModelSettings)
    assert (parsed.model.cutoffs, parsed.evaluate.length) == ((), 29)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(train={"stepz": 3}), "section train has no 'stepz': it has accumulate, eval_ever"),
        (changed() | {"trainer": {}}, "the config has no 'trainer': it has checkpoint, data, de"),
        (without(changed(), "model", "ffn_dim"), "section model lacks ffn_dim"),
        ({k: v for k, v in changed().items() if k != "seed"}, "the config lacks seed"),
        (changed() | {"data": 3}, "section data is 3, not names with values"),
        ({k: v for k, v in changed().items() if k != "task"}, "the config lacks a task, one of tr"),
        (changed() | {"task": "summing"}, "task='summing' is unknown: it is one of transl"),
        (changed() | {"task": []}, r"task=\[\] is unknown"),
        (changed() | {"task": "language_modelling"}, "the config lacks evaluate"),
        ([1], r"the config is \[1\], not names with values"),
        (changed(train={"steps": 1.5}), "train.steps=1.5 is a float, not a int"),
        (changed(train={"steps": True}), "train.steps=True is a bool, not a int"),
        (changed(model={"dropout": False}), "model.dropout=False is a bool, not a float"),
        (changed(model={"norm": None}), "model.norm=None is a NoneType, not a str"),
        (changed(decode={"normalize": 1}), "decode.normalize=1 is a int, not a bool"),
        (changed() | {"seed": "1"}, "seed='1' is a str, not a int"),
        (changed() | {"seed": -1}, "seed=-1 is not from 0 to 4,294,967,295"),
        (changed() | {"seed": 2**32}, "seed=4294967296 is not from 0 to 4,294,967,295"),
        (changed(drop={"mode": "jump"}), "drop.mode='jump' is unknown: it is one of ski"),
        (changed(drop={"schedule": "cubic"}), "drop.schedule='cubic' is unknown: it is"),
        (changed(drop={"heads": -0.1}), r"drop.heads=-0.1 is not in \[0, 1\]"),
        (changed(drop={"over_time": "later"}), "drop.over_time='later' is unknown: it is one of"),
        (changed(drop={"over_steps": 0}), "drop.over_steps=0 is not 1 or more"),
        (changed(drop={"protect": "0;1"}), "drop.protect='0;1' is not a list of layers"),
        (changed(drop={"protect": "3"}), "drop.protect='3', encoder: cannot protect layer 3"),
        (changed(drop={"exact": True, "rescale": True}), "drop.exact and drop.rescale do not go"),
        (changed(model={"saved": "some"}), "model.saved='some' is unknown: it is one of all, do"),
        (changed(model={"drop_path_rows": "few"}), "model.drop_path_rows='few' is unknown"),
        (changed(model={"drop_path": 1.0}), r"model.drop_path=1.0 is not in \[0, 1\)"),
        (
            changed(model={"drop_block": 0.1, "drop_block_size": 30}),
            "model.drop_block_size=30 is more than data.source_length=29",
        ),
        (changed(optimizer={"dropped_layers": "lost"}), "optimizer.dropped_layers 'lost' is unk"),
        (changed(drop={"decoder": 1.1}), r"drop.decoder=1.1 is not in \[0, 1\]"),
        (changed(drop={"encoder": float("nan")}), "drop.encoder=nan is not"),
        (changed(train={"accumulate": 0}), "train.accumulate=0 must be at least 1"),
        (changed(train={"label_smoothing": 1.0}), r"train.label_smoothing=1.0 is not in \[0, 1\)"),
        (changed(model={"norm": "mid"}), "model.norm='mid' is unknown: it is one of post, pre"),
        (changed(data={"dataset": "europarl"}), "unknown data.dataset 'europarl'; known: wmt14_tr"),
        (
            changed(model={"max_target_length": 22}),
            "data.max_length=23 is more than model.max_target_length=22",
        ),
        (
            changed() | {"model": changed()["model"] | {"source_vocab_size": 300}},
            "source_vocab_size=300 differs from data.vocab_size=331|needs one vocabulary",
        ),
        (changed(model={"share_layers": 0}), "model.share_layers=0 is not 1 or more"),
        (
            changed(model={"encoder_layers": 3, "share_layers": 2}),
            "model.encoder_layers=3 is not a multiple of model.share_layers=2",
        ),
        (lm(model={"encoder_layers": 2}), "section model has no 'encoder_layers': it has activ"),
        (lm(drop={"encoder": 0.1}), "section drop has no 'encoder': it has decoder"),
        (lm(drop={"decoder": -0.1}), r"drop.decoder=-0.1 is not in \[0, 1\]"),
        (lm(drop={"protect": "4"}), "drop.protect='4', decoder: cannot protect layer 4"),
        (
            lm() | {"model": lm()["model"] | {"vocab_size": 300}},
            "model.vocab_size=300 differs from data.vocab_size=331",
        ),
        (lm(data={"length": 48}), "data.length=48 is more than model.max_length=47"),
        (lm(evaluate={"length": 48}), "evaluate.length=48 is more than model.max_length=47"),
        (lm(decode={"max_tokens": 48}), "decode.max_tokens=48 is more than model.max_length=47"),
        (lm(evaluate={"context": 29}), "evaluate.context=29 must be 0 or more and less than"),
        (
            lm(evaluate={"break_mode": "eos"}),
            "unknown evaluate.break_mode 'eos'; known: none, complete",
        ),
        (lm(evaluate={"batch_rows": 0}), "evaluate.batch_rows=0 is not 1 or more"),
        (lm(train={"label_smoothing": 0.1}), "train.label_smoothing=0.1 needs the logits of all"),
        (lm(model={"norm": "post", "final_norm": True}), "model.final_norm=True needs model.norm"),
        (lm(model={"adaptive_cutoffs": "9;20"}), "model.adaptive_cutoffs='9;20' is not like"),
        (lm(model={"adaptive_cutoffs": "331"}), "model.adaptive_cutoffs='331' must increase and"),
        (
            lm(model={"drop_block": 0.1, "drop_block_size": 24}),
            "model.drop_block_size=24 is more than data.length=23",
        ),
        (changed(prune={"sample_rows": 0}), "prune.sample_rows=0 is not 1 or more"),
        (changed(prune={"draws": 0}), "prune.draws=0 is not 1 or more"),
        (changed(prune={"seed": -1}), "prune.seed=-1 is not 0 or more"),
        (changed(prune={"survives": 0.0}), "prune.survives=0.0 is not above 0 and at most 1"),
        (changed(prune={"encoder": "3"}), "prune.encoder='3': cannot keep 3 of 2 layers"),
        (changed(prune={"decoder": "half"}), "prune.decoder='half': cannot read layers to ke"),
        (changed(prune={"decoder": 2}), "prune.decoder=2 is a int, not a str"),
        (changed(prune={"prompt_tokens": 42}), "prune.prompt_tokens=42 is more than 41, which is"),
        (changed(prune={"new_tokens": 44}), "prune.new_tokens=44 is more than 42, which is wh"),
        (lm(prune={"encoder": "all"}), "section prune has no 'encoder': it has batch, budget"),
        (
            lm(prune={"prompt_tokens": 40, "new_tokens": 8}),
            "prune.prompt_tokens . prune.new_tokens=48 is more than model.max_length=47",
        ),
        (changed(init={"moments": "old"}), "init.moments='old' is unknown: it is one of anew, pr"),
        (changed(init={"run": "a", "distill": 1.5}), r"init.distill=1.5 is not in \[0, 1\]"),
        (changed(init={"temperature": 0.0}), "init.temperature=0.0 is not above 0"),
        (changed(init={"layers": "decoder:0"}), "init.layers='decoder:0' needs init.run, the fol"),
        (changed(init={"moments": "prune"}), "init.moments='prune' needs init.run"),
        (changed(init={"distill": 0.5}), "init.distill=0.5 needs init.run"),
        (
            changed(init={"run": "a", "layers": "decoder:0;1"}),
            "init.layers='decoder:0;1' is not like \"encoder:0,1 decoder:0,2,4\"",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        settings.parse(config)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400, 1e-46])
@pytest.mark.parametrize("task", settings.TASKS)
def test_every_float_of_every_section_is_finite_as_float32(task, value):
    make = {
        "translation": tiny_run.tiny_config,
        "summarisation": tiny_run.tiny_summary_config,
        "language_modelling": tiny_run.tiny_lm_config,
        "masked_lm": tiny_run.tiny_masked_config,
        "classification": tiny_run.tiny_classification_config,
    }[task]
    config = make(pathlib.Path("no-folder-is-read"))
    floats = [
        (section.name, field.name)
        for section in dataclasses.fields(settings.find_task(task).settings)
        if dataclasses.is_dataclass(section.type)
        for field in dataclasses.fields(section.type)
        if field.type is float
    ]
    assert ("optimizer", "warmup_init_rate") in floats
    for section, name in floats:
        bad = config | {section: config[section] | {name: value}}
        with pytest.raises(
            ValueError, match=f"^{section}.{name}={re.escape(str(value)[:10])}.*float32"
        ):
            settings.parse(bad)


def test_differences_are_named_with_both_values():
    old, new = changed(), changed(model={"ffn_dim": 41}, train={"steps": 7})
    del new["decode"]["beam"]
    assert settings.differences(old, new) == [
        "decode.beam: 2 -> 'absent'",
        "model.ffn_dim: 37 -> 41",
        "train.steps: 60 -> 7",
    ]
    assert settings.differences(old, changed()) == []


def test_changeable_keys_exist():
    names = settings.flatten(changed()) | settings.flatten(lm())
    for key in settings.CHANGEABLE:
        assert any(name == key or (key.endswith(".") and name.startswith(key)) for name in names)
    # A name that merely begins like one of them would pass as changeable.
    for key in settings.CHANGEABLE:
        assert key.endswith(".") or [name for name in names if name.startswith(key)] == [key]


def test_rates_and_expected_depth_in_words():
    parsed = settings.parse(changed(drop={"encoder": 0.5, "decoder": 0.4, "schedule": "linear"}))
    np.testing.assert_allclose(parsed.drop.rates(parsed.model)["encoder"]["layers"], [0.25, 0.5])
    assert describe_rates(parsed) == [
        "encoder: 2 layers, drop rate 0.25, 0.5, expected depth 1.25",
        "decoder: 4 layers, drop rate 0.1, 0.2, 0.3, 0.4, expected depth 3.00",
    ]
    drop = {"encoder": 0.2, "decoder": 0.5, "heads": 0.1, "ffns": 0.25, "protect": "0"}
    drop |= {"over_time": "warm-up", "over_steps": 3000}
    parsed = settings.parse(changed(drop=drop))
    mean = (parsed.train.steps - 1) / 2 / 3000  # of the line up, which the run is too short for
    assert describe_rates(parsed) == [
        "encoder: 2 layers, drop rate 0, 0.2, expected depth 1.80; heads 0, 0.1; ffns 0, 0.25; "
        f"warm-up over 3,000 steps, mean depth {2 - 0.2 * mean:.2f}",
        "decoder: 4 layers, drop rate 0, 0.5, 0.5, 0.5, expected depth 2.50; "
        "heads 0, 0.1, 0.1, 0.1; ffns 0, 0.25, 0.25, 0.25; "
        f"warm-up over 3,000 steps, mean depth {4 - 1.5 * mean:.2f}",
    ]
    assert describe_rates(settings.parse(lm())) == [
        "decoder: 4 layers, drop rate 0.2 each, expected depth 3.20"
    ]
    exact = settings.parse(changed(drop={"encoder": 0.5, "decoder": 0.5, "exact": True}))
    assert describe_rates(exact)[1].endswith("expected depth 2 in every step")
    scaled = settings.parse(changed(drop={"rescale": True, "sublayers": 0.5}))
    assert describe_rates(scaled)[0].endswith("; sublayers 0.5 each; rescaled")


def test_layers_to_begin_with_are_named_by_stack():
    init = settings.parse(changed(init={"run": "a", "layers": "encoder:1 decoder:"})).init
    assert init.chosen() == {"encoder": (1,), "decoder": ()}
    assert settings.parse(changed()).init.chosen() == {}


def test_a_strategy_that_measures_is_checked_where_it_runs():
    for text in ("search_on_valid:3", "random:2", "0", "0,2", "every_other:0.5"):
        assert settings.parse(lm(prune={"decoder": text})).prune.decoder == text


def test_decoding_and_pruning_can_be_changed_for_once():
    config = {
        "seed": 1,
        "decode": {"beam": 2, "flag": True, "name": "a"},
        "prune": {"decoder": "all", "budget": 5},
        "train": {"steps": 3},
    }
    before = copy.deepcopy(config)
    changes = ["decode.beam=4", "decode.flag=False", "decode.name=b", "prune.budget=7"]
    assert settings.change(config, changes) == config | {
        "decode": {"beam": 4, "flag": False, "name": "b"},
        "prune": {"decoder": "all", "budget": 7},
    }
    assert config == before
    for text in ("decode.beam", "decode.width=4", "train.steps=4", "seed=3"):
        with pytest.raises(ValueError, match=f"--set={text} is not KEY=VALUE for one of decode.b"):
            settings.change(config, [text])


def test_other_sections_can_be_changed_where_they_are_named():
    config = {"seed": 1, "train": {"steps": 3}, "decode": {"beam": 2}}
    changed = settings.change(config, ["train.steps=5", "seed=2"], ("train", "seed"))
    assert changed == config | {"train": {"steps": 5}, "seed": 2}
    with pytest.raises(ValueError, match="--set=decode.beam=4 is not KEY=VALUE for one of seed, t"):
        settings.change(config, ["decode.beam=4"], ("train", "seed"))


@pytest.mark.parametrize("text", ["2", "0,2", "every_other:0.5", "True", "1e3", ""])
def test_a_text_that_looks_like_a_number_stays_a_text(text):
    config = {"prune": {"decoder": "all"}}
    found = settings.change(config, [f"prune.decoder={text}"])
    assert found == {"prune": {"decoder": text}}


# Keys that are given and not read

NAG = {"name": "nag"}
MASKED = tiny_run.tiny_masked_config(pathlib.Path("no-folder-is-read"))


@pytest.mark.parametrize(
    ("config", "key", "why"),
    [
        (changed(data={"dataset": "cldr"}), "data.path", "data.dataset='cldr'"),
        (changed(), "data.seed", "data.dataset='text'"),
        (lm(data={"dataset": "pystdlib"}), "data.path", "data.dataset='pystdlib'"),
        (changed(), "optimizer.momentum", "optimizer.name='adam'"),
        (changed(optimizer=NAG), "optimizer.epsilon", "optimizer.name='nag'"),
        (changed(), "optimizer.power", "optimizer.schedule='cosine'"),
        (changed(), "drop.over_steps", "drop.over_time='constant'"),
        (changed(), "drop.score_rate", "drop.score_units=0"),
        (changed(), "drop.teach", "drop.method='layerdrop'"),
        (changed(), "model.drop_path_rows", "model.drop_path=0"),
        (changed(), "model.drop_block_size", "model.drop_block=0"),
        (changed(), "init.temperature", "init.distill=0"),
        (changed(decode={"normalize": False}), "decode.length_penalty", "decode.normalize=False"),
        (lm(decode={"temperature": 0}), "decode.top_p", "decode.temperature=0"),
        (lm(model={"adaptive_cutoffs": ""}), "model.adaptive_factor", "adaptive_cutoffs is empty"),
        (MASKED, "model.pooler_dropout", "model.num_classes=0"),
    ],
)
def test_a_key_that_nothing_reads_is_named_with_the_reason(config, key, why):
    parsed = settings.parse(config)
    with pytest.raises(ValueError, match=f"--config.{key} is given, but .*{why}") as caught:
        settings.check_read(["train.steps", key], parsed)
    assert len(str(caught.value).splitlines()) == 1


def test_keys_that_are_read_pass():
    joined = {"dataset": "pystdlib+sst2"}
    everything = settings.flatten(changed())
    parsed = settings.parse(changed(data={"dataset": "cldr"}))
    assert set(settings.unread(parsed)) < set(everything)
    for config, keys in (
        (changed(), ["data.path", "data.data_dir", "optimizer.period_updates"]),
        (changed(data={"dataset": "cldr"}), ["data.seed"]),
        (MASKED | {"data": MASKED["data"] | joined}, ["data.path"]),
        (lm(optimizer=NAG | {"schedule": "polynomial"}), ["optimizer.momentum", "optimizer.power"]),
        (changed(drop={"over_time": "warm-up"}), ["drop.over_steps"]),
        (changed(drop={"score_units": 3}), ["drop.score_rate"]),
        (lm(), ["model.adaptive_factor", "decode.top_p", "decode.seed"]),
    ):
        settings.check_read(keys, settings.parse(config))


@pytest.mark.parametrize("name", ["adam", "nag"])
@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "polynomial"])
def test_what_an_optimizer_does_not_read_changes_none_of_its_updates(name, schedule):
    own = {"name": name, "schedule": schedule, "rate": 0.1, "warmup_updates": 2, "min_rate": 0.01}
    own |= {"period_updates": 5, "warmup_init_rate": 1e-3}
    others = {"momentum": 0.5, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.1, "min_rate": 0.02}
    others |= {"period_updates": 3, "period_mult": 2.0, "period_shrink": 0.5, "power": 2.0}

    def updates(**values):
        config = settings.parse(changed(optimizer=own | values)).optimizer
        optimizer, _ = make_optimizer(config)
        params = {"w": np.float32([1.0, -2.0])}
        state, found = optimizer.init(params), []
        for step in range(12):
            grads = {"w": np.float32([0.1 * step - 0.3, 1.0])}
            update, state = optimizer.update(grads, state, params)
            found.append(np.asarray(update["w"]))
        return np.stack(found)

    unread = settings.unread(settings.parse(changed(optimizer=own)))
    before = updates()
    for key, value in others.items():
        same = np.array_equal(before, updates(**{key: value}))
        assert same == (f"optimizer.{key}" in unread), key
