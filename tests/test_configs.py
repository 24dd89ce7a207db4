"""Every configuration is complete and locked, and every one of its leaves is read by something."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import os
import re
import sys
from pathlib import Path

import pytest

from configs import common
from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.export_run import export_run
from layerdrop_jax.commands.finetune import finetune
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.data import labelled
from layerdrop_jax.depth import frontier, importance, latency
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.runs import settings
from layerdrop_jax.step.dropping import describe_rates
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.training import fitting
from layerdrop_jax.training.train import train
from tests import tiny_run
from tests.tiny_run import quick_compile, tiny_config, tiny_lm_config, write_lines, write_text

ROOT = Path(__file__).resolve().parents[1]
HELPERS = {"common", "architectures"}
CONFIGS = sorted({file.stem for file in (ROOT / "configs").glob("*.py")} - HELPERS)


def get_config(name, variant=None):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def variants(name):
    """The variants that the error about an unknown one lists."""
    with pytest.raises(ValueError, match="'no_such_variant'.*: it is one of ") as caught:
        get_config(name, "no_such_variant")
    return re.search(r"it is one of (.*)", str(caught.value))[1].split(", ")


def every_config():
    return [(name, variant) for name in CONFIGS for variant in variants(name)]


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_paper_is_the_default(name):
    assert get_config(name).to_dict() == get_config(name, "paper").to_dict()


@pytest.fixture(scope="module")
def own_text(tmp_path_factory):
    """A folder with files of every kind that a user may bring."""
    folder = tmp_path_factory.mktemp("own")
    for write in (write_text, write_lines, tiny_run.write_labelled):
        write(folder)
    return folder


def with_numbers(config, folder):
    """A config as a run writes it: what it leaves to the text has been found there."""
    config = config.to_dict()
    if common.FROM_TEXT in settings.flatten(config["data"]).values():
        config["data"] |= {"path": str(folder), "data_dir": str(folder / "prepared")}
    return fitting.fit(config)


@pytest.mark.parametrize(("name", "variant"), every_config())
def test_config_is_locked_and_every_section_fits_its_dataclass(name, variant, own_text):
    config = get_config(name, variant)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.optimizer.no_such_key = 1
    found = with_numbers(config, own_text)
    assert dataclasses.asdict(settings.parse(found)) == found


@pytest.mark.parametrize(("name", "variant"), every_config())
def test_a_stray_key_is_an_error(name, variant, own_text):
    config = with_numbers(get_config(name, variant), own_text)
    config["train"]["no_such_key"] = 1
    with pytest.raises(ValueError, match="no_such_key"):
        settings.parse(config)


# Which leaves are read


@contextlib.contextmanager
def recorded_reads(classes):
    """Collects (class, field) for each field of `classes` that the project's own code reads.

    Checking a value is not using it, so reads in __post_init__ do not count. Reads by the standard
    library on the project's behalf (`dataclasses.asdict`) count as its own; those by generated
    methods (comparison, repr) do not.
    """
    reads = set()
    project = (str(ROOT / "layerdrop_jax"), str(ROOT / "launch.py"), os.path.realpath(__file__))
    file_of = functools.cache(os.path.realpath)

    def recorder(cls):
        fields = {field.name for field in dataclasses.fields(cls)}

        def read(self, name):
            if name in fields:
                frame = sys._getframe(1)
                while frame.f_code.co_filename == dataclasses.__file__:
                    frame = frame.f_back
                code = frame.f_code
                ours = file_of(code.co_filename).startswith(project)
                if ours and "__post_init__" not in code.co_qualname:
                    reads.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        return read

    for cls in classes:
        cls.__getattribute__ = recorder(cls)
    try:
        yield reads
    finally:
        for cls in classes:
            del cls.__getattribute__


def unread(classes, reads):
    fields = {(cls.__name__, field.name) for cls in classes for field in dataclasses.fields(cls)}
    return sorted(fields - reads)


def test_an_unread_field_is_caught():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Example:
        used: int
        copied: int
        checked: int
        compared: int

        def __post_init__(self):
            if any(self.checked < bound for bound in (0,)):
                raise ValueError

    @dataclasses.dataclass(frozen=True)
    class Copied:
        field: int

    with recorded_reads([Example, Copied]) as reads:
        example = Example(used=1, copied=2, checked=3, compared=4)
        assert example.used == 1
        assert example == Example(used=1, copied=2, checked=3, compared=4)
        assert dataclasses.asdict(Copied(5)) == {"field": 5}
    assert unread([Example, Copied], reads) == [
        ("Example", "checked"),
        ("Example", "compared"),
        ("Example", "copied"),
    ]


@pytest.mark.slow
def test_every_leaf_is_read(tmp_path, monkeypatch):
    write_text(tmp_path / "text", (("train", 40), ("valid", 3), ("test", 3)))
    config = tiny_config(
        tmp_path / "text",
        # One output matrix of its own is the only case with a target vocabulary of its own.
        model={"encoder_layers": 1, "decoder_layers": 1, "share_embeddings": "none"}
        | {"drop_path": 0.1},  # drop_path_rows is read where there is something to drop
        train={"steps": 2, "accumulate": 1, "eval_every": 2},
    )
    classes = dataclasses_of(settings.TranslationSettings)
    with quick_compile(tmp_path / "compiled"), recorded_reads(classes) as reads:
        train(config, tmp_path / "run", command="")
        evaluate(tmp_path / "run")
        cut_and_go_on(tmp_path / "run", monkeypatch)
        describe_nested(config)
        make_every_optimizer(config)
    assert unread(classes, reads) == []


@pytest.mark.slow
def test_every_leaf_of_a_language_model_is_read(tmp_path, monkeypatch):
    write_lines(tmp_path / "text", (("train", 40), ("valid", 3), ("test", 3)))
    config = tiny_lm_config(
        tmp_path / "text",
        model={"decoder_layers": 1, "drop_path": 0.1},
        train={"steps": 2, "accumulate": 1, "eval_every": 2},
    )
    plain = tiny_run.tiny_llama_config(
        tmp_path / "text",
        model={"decoder_layers": 1, "tie_embeddings": False},
        train={"steps": 1, "accumulate": 1, "eval_every": 1, "label_smoothing": 0.1},
    )
    (tmp_path / "prompts").write_text("one two\n")
    classes = dataclasses_of(settings.LanguageModelSettings)
    with quick_compile(tmp_path / "compiled"), recorded_reads(classes) as reads:
        train(config, tmp_path / "run", command="")
        evaluate(tmp_path / "run")
        generate(tmp_path / "run", str(tmp_path / "prompts"), str(tmp_path / "output"))
        cut_and_go_on(tmp_path / "run", monkeypatch)
        describe_nested(config)
        make_every_optimizer(config)
        train(plain, tmp_path / "plain", command="")
    assert unread(classes, reads) == []


@pytest.mark.slow
def test_every_leaf_of_an_encoder_is_read(tmp_path, monkeypatch):
    """By pre-training, or by the classification that goes on from it."""
    sizes = (("train", 40), ("valid", 3), ("test", 3))
    short = {
        "model": {"encoder_layers": 1, "drop_path": 0.1},
        "train": {"steps": 2, "accumulate": 1, "eval_every": 2},
    }
    config = tiny_run.tiny_masked_config(write_lines(tmp_path / "text", sizes), **short)
    examples = tiny_run.write_labelled(tmp_path / "labelled", sizes)
    short["model"] |= {"num_classes": 3}
    other = tiny_run.tiny_classification_config(examples, **short)
    (tmp_path / "lines").write_text("one <mask>\n")
    tasks = (settings.MaskedLMSettings, settings.ClassificationSettings)
    classes = list(dict.fromkeys(cls for task in tasks for cls in dataclasses_of(task)))
    with quick_compile(tmp_path / "compiled"), recorded_reads(classes) as reads:
        train(config, tmp_path / "run", command="")
        evaluate(tmp_path / "run")
        generate(tmp_path / "run", str(tmp_path / "lines"), str(tmp_path / "output"))
        tuned = finetune(
            tmp_path / "run", str(tmp_path / "classifier"), flags={}, changes=[], command="",
            config=other,
        )  # fmt: skip
        evaluate(tuned)
        export_run(tuned, tmp_path / "exported")
        cut_and_go_on(tmp_path / "classifier", monkeypatch, stack="encoder")
        read_glue(other, monkeypatch)
        describe_nested(other)
        make_every_optimizer(other)
    assert unread(classes, reads) == []


def dataclasses_of(cls):
    """The dataclass of a whole config, and those of its sections."""
    kinds = [field.type for field in dataclasses.fields(cls)]
    return [cls, *filter(dataclasses.is_dataclass, kinds)]


def cut_and_go_on(folder, monkeypatch, stack="decoder"):
    """Every mode that reads the sections prune and init, and drop's learned rates."""
    monkeypatch.setattr(latency, "ROUNDS", 1)
    changes = [f"prune.{stack}=search_on_valid:1"]
    prune(folder, folder.with_name("small"), flags={}, changes=changes)
    importance.measure(folder, command="")
    frontier.measure(folder, flags={}, changes=["prune.batch=1"], command="")
    changes = ["init.moments=prune", "init.distill=0.5", "train.steps=1", "drop.score_units=3"]
    finetune(folder, str(folder.with_name("tuned")), flags={}, changes=changes, command="")


def read_glue(config, monkeypatch):
    """Of labelled texts only the sets of TFDS look at its folder."""
    monkeypatch.setattr(labelled.glue, "open_examples", lambda *_: [(("one",), "entailment")])
    config = {**config, "data": config["data"] | {"dataset": "glue/rte"}}
    assert labelled.load_examples(settings.parse(config).data, "valid")


def describe_nested(config):
    """LayerDrop alone draws no sub-networks, so the run's keys of `nested` are read here."""
    changed = copy.deepcopy(config)
    last = [stack for stack in ("encoder", "decoder") if stack in config["drop"]][-1]
    for stack in ("encoder", "decoder"):
        if stack in config["drop"]:
            changed["drop"][stack] = 0.0
            changed["model"][f"{stack}_layers"] = 3
    changed["drop"] |= {"method": "nested", "score_units": 0}
    assert any("nested" in line for line in describe_rates(settings.parse(changed)))
    changed["drop"] |= {"sets": "first", "exit_loss": "every"}
    changed["drop"] |= {key: "all" for key in changed["drop"] if key.endswith("_depths")}
    changed["drop"][f"{last}_depths"] = "2"
    parsed = settings.parse(changed)
    depth_P, *_ = parsed.drop.exit_shares(parsed.model, step=0)
    assert depth_P.tolist() == [2]


def make_every_optimizer(config):
    """A tiny run has only one of the optimizers, and of the schedules."""
    for name, schedule in (("adam", "inverse_sqrt"), ("nag", "cosine"), ("adam", "polynomial")):
        config["optimizer"] |= {"name": name, "schedule": schedule}
        make_optimizer(settings.parse(config).optimizer)
