"""A run's config as frozen dataclasses, checked before anything is trained or written."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping

from layerdrop_jax.data.pipeline import DataConfig
from layerdrop_jax.decoding.beam import BeamConfig
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from layerdrop_jax.training.checkpoints import CheckpointConfig
from layerdrop_jax.training.dropping import DropConfig
from layerdrop_jax.training.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Attributes:
      steps: updates in all.
      accumulate: micro-batches of an update; each draws its own keep mask.
      label_smoothing: share of the target's mass that is spread over the vocabulary.
      log_every, eval_every: updates between two lines of metrics, and two validations.
      shard_parameters: whether each device holds a part of the parameters and moments, and gathers
        a layer when it runs, instead of all of them.
    """

    steps: int
    accumulate: int
    label_smoothing: float
    log_every: int
    eval_every: int
    shard_parameters: bool

    def __post_init__(self):
        for name in ("steps", "accumulate", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing} is not in [0, 1)")


_SECTIONS = {
    "data": DataConfig,
    "model": Seq2SeqConfig,
    "drop": DropConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "decode": BeamConfig,
}

# What may change between the start of a run and its resumption: nothing here moves a parameter
# of a step already taken.
CHANGEABLE = (
    "checkpoint.",
    "decode.",
    "data.data_dir",
    "data.path",
    "data.workers",
    "drop.mode",
    "train.eval_every",
    "train.log_every",
    "train.steps",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole config; each section maps one to one onto its dataclass."""

    seed: int
    data: DataConfig
    model: Seq2SeqConfig
    drop: DropConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    decode: BeamConfig

    def __post_init__(self):
        for side in ("source", "target"):
            limit = getattr(self.model, f"max_{side}_length")
            if self.data.max_length > limit:
                raise ValueError(
                    f"data.max_length={self.data.max_length} is more than "
                    f"model.max_{side}_length={limit}, the positions that the model has"
                )
            if getattr(self.model, f"{side}_vocab_size") != self.data.vocab_size:
                raise ValueError(
                    f"model.{side}_vocab_size={getattr(self.model, f'{side}_vocab_size')} differs "
                    f"from data.vocab_size={self.data.vocab_size}"
                )
            if self.model.drop_block and self.model.drop_block_size > (
                length := getattr(self.data, f"{side}_length")
            ):
                raise ValueError(
                    f"model.drop_block_size={self.model.drop_block_size} is more than "
                    f"data.{side}_length={length}, the positions of a row"
                )
        self.drop.rates(self.model)  # refuses a layer to protect that there is not


def parse(config: Mapping) -> Settings:
    """Builds `Settings` from a config or from a run's config.json.

    Raises:
      ValueError: a section or key that is missing or unknown (the known ones are listed), or a
        value that its dataclass refuses.
    """
    _check_names("the config", config, {"seed"} | set(_SECTIONS))
    sections = {}
    for name, section in _SECTIONS.items():
        fields = dataclasses.fields(section)
        _check_names(f"section {name}", config[name], {field.name for field in fields})
        for field in fields:
            _check_type(f"{name}.{field.name}", config[name][field.name], field.type)
        sections[name] = section(**config[name])
    _check_type("seed", config["seed"], int)
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed={config['seed']} is not from 0 to {2**32 - 1:,}")
    return Settings(seed=config["seed"], **sections)


def _check_names(where, mapping, known):
    if not hasattr(mapping, "keys"):
        raise ValueError(f"{where} is {mapping!r}, not names with values")
    unknown = sorted(set(mapping) - known)
    if unknown:
        raise ValueError(f"{where} has no {unknown[0]!r}: it has {', '.join(sorted(known))}")
    missing = sorted(known - set(mapping))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


def _check_type(name, value, wanted):
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}, not a {wanted.__name__}")


def differences(old: Mapping, new: Mapping) -> list[str]:
    """The dotted keys whose values differ, each as ``key: old -> new``."""
    old, new = flatten(old), flatten(new)
    absent = object()
    return [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def flatten(mapping: Mapping, prefix: str = "") -> dict:
    """The values of nested mappings by dotted names."""
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_overrides(argv, load) -> None:
    """Checks ``--config=PATH[:VARIANT]`` and every ``--config.SECTION.KEY=VALUE`` before absl does.

    absl takes ``--config PATH`` and ``--noconfig.SECTION.KEY`` too, and so does this.

    Args:
      argv: the command line.
      load: ``load("PATH:VARIANT")`` gives the config.

    Raises:
      ValueError: no such file or key; lists those that there are.
    """
    given = {}
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        given[name] = value if equals else following
    path = given.get("config")
    if not path:
        return
    file = pathlib.Path(path.partition(":")[0])
    if not _is_config(file):
        known = ", ".join(
            str(f) for f in sorted(pathlib.Path("configs").glob("*.py")) if _is_config(f)
        )
        raise ValueError(f"--config={path} names no config file; there are {known}")
    config = load(path).to_dict()
    for name in given:
        node, where, keys = config, "config", name.split(".")
        for key in keys[1:] if keys[0] in ("config", "noconfig") else ():
            if not isinstance(node, Mapping) or key not in node:
                known = ", ".join(sorted(node)) if isinstance(node, Mapping) else "no keys"
                raise ValueError(f"--{name}: {where} has no {key!r}: it has {known}")
            node, where = node[key], f"{where}.{key}"


def _is_config(file: pathlib.Path) -> bool:
    return file.is_file() and "get_config" in file.read_text(encoding="utf-8", errors="replace")
