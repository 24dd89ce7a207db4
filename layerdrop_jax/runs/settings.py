"""A run's config as frozen dataclasses, checked before anything is trained or written."""

import copy
import dataclasses
import importlib
import json
from collections.abc import Mapping

import numpy as np

from layerdrop_jax.data.labelled import LabelledConfig
from layerdrop_jax.data.pairs import DataConfig
from layerdrop_jax.data.pretraining import PretrainingConfig
from layerdrop_jax.data.streams import StreamConfig, check_windows
from layerdrop_jax.data.summaries import SummaryConfig
from layerdrop_jax.decoding.beam import BeamConfig
from layerdrop_jax.decoding.sampling import SampleConfig
from layerdrop_jax.models.blocks import check_choice, check_sizes
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.quantized import check_quantize
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from layerdrop_jax.runs.checkpoints import CheckpointConfig
from layerdrop_jax.runs.depth_settings import (
    DecoderPrune,
    EncoderDecoderPrune,
    EncoderPrune,
    InitConfig,
    check_layers,
    exit_depths,
)
from layerdrop_jax.runs.trackers import TRACKERS
from layerdrop_jax.scores.rouge import TOKENIZERS
from layerdrop_jax.step.dropping import DecoderDrop, EncoderDecoderDrop, EncoderDrop
from layerdrop_jax.step.optimizers import OptimizerConfig
from layerdrop_jax.step.sharding import check_mesh, parse_mesh

LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Attributes:
      steps: updates in all.
      accumulate: micro-batches of an update; each draws its own keep mask.
      label_smoothing: share of the target's mass that is spread over the vocabulary.
      log_every, eval_every: updates between two lines of metrics, and two validations.
      mesh: how the devices are laid out: ``data=8,model=2`` splits rows over eight groups of two,
        which share the heads and the FFN of each layer; "" splits rows alone. See
        `layerdrop_jax.step.sharding.parse_mesh`.
      shard_parameters: whether each device holds a part of the parameters and moments, and gathers
        a layer when it runs, instead of all of them.
      tracker: where the numbers go beside metrics.jsonl: ``tensorboard``, ``wandb`` (the package
        wandb, which is not installed by itself) or ``none``.
    """

    steps: int
    accumulate: int
    label_smoothing: float
    log_every: int
    eval_every: int
    mesh: str
    shard_parameters: bool
    tracker: str

    def __post_init__(self):
        parse_mesh(self.mesh)
        check_choice("train", "tracker", self.tracker, tuple(TRACKERS))
        for name in ("steps", "accumulate", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing} is not in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a language model's perplexity is measured: see `layerdrop_jax.data.streams.Windows`.

    Attributes:
      length: tokens of a window, context included.
      context: the most tokens before those that are scored.
      break_mode: ``complete``, no line is cut in two, or ``none``.
      batch_rows: windows computed at a time; moves no result.
    """

    length: int
    context: int
    break_mode: str
    batch_rows: int

    def __post_init__(self):
        check_sizes("evaluate", self, ("length", "batch_rows"))
        check_windows(self.length, self.context, self.break_mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RougeConfig:
    """How answers are scored.

    Attributes:
      rouge_tokenizer: what ROUGE takes for words: ``porter``, the library's, for English;
        ``words`` or ``characters``, for every script. See `layerdrop_jax.scores.rouge`.
    """

    rouge_tokenizer: str

    def __post_init__(self):
        check_choice("evaluate", "rouge_tokenizer", self.rouge_tokenizer, tuple(TOKENIZERS))


# The sections that say how a trained network is used.
CHANGED_AFTER = ("decode", "evaluate", "prune")
# What may change between the start of a run and its resumption: nothing here moves a parameter
# of a step already taken.
CHANGEABLE = (
    "checkpoint.",
    "decode.",
    "evaluate.",
    "prune.",
    "data.data_dir",
    "data.path",
    "data.workers",
    "drop.mode",
    "train.eval_every",
    "train.log_every",
    "train.mesh",
    "train.shard_parameters",
    "train.steps",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationSettings:
    """A whole config for an encoder-decoder; each section maps one to one onto its dataclass."""

    task: str
    seed: int
    data: DataConfig
    model: Seq2SeqConfig
    drop: EncoderDecoderDrop
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    decode: BeamConfig
    prune: EncoderDecoderPrune
    init: InitConfig

    def __post_init__(self):
        _check_encoder_decoder(self, {"source": "max_length", "target": "max_length"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummarisationSettings:
    """A whole config for summaries or answers; each section maps one to one onto its dataclass."""

    task: str
    seed: int
    data: SummaryConfig
    model: Seq2SeqConfig
    drop: EncoderDecoderDrop
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    evaluate: RougeConfig
    decode: BeamConfig
    prune: EncoderDecoderPrune
    init: InitConfig

    def __post_init__(self):
        _check_encoder_decoder(self, {"source": "max_source", "target": "max_target"})


def _check_encoder_decoder(settings, longest):
    """Raises a ValueError where the sections of an encoder-decoder's config do not fit together.

    ``longest`` has for each side the key of section data that limits its texts.
    """
    model, data = settings.model, settings.data
    for side, name in longest.items():
        limit = getattr(model, f"max_{side}_length")
        if getattr(data, name) > limit:
            raise ValueError(
                f"data.{name}={getattr(data, name)} is more than model.max_{side}_length={limit}, "
                "the positions that the model has"
            )
        if getattr(model, f"{side}_vocab_size") != data.vocab_size:
            raise ValueError(
                f"model.{side}_vocab_size={getattr(model, f'{side}_vocab_size')} differs from "
                f"data.vocab_size={data.vocab_size}"
            )
        _check_block(model, f"{side}_length", getattr(data, f"{side}_length"))
    if 2 * settings.decode.beam >= data.vocab_size:  # what `beam_search` asks for
        raise ValueError(
            f"decode.beam={settings.decode.beam} needs data.vocab_size={data.vocab_size} to be at "
            f"least {2 * settings.decode.beam + 1}: use a smaller beam"
        )
    for side in longest:  # what `decode_sentences` asks for
        if getattr(model, f"max_{side}_length") < 2:
            raise ValueError(
                f"model.max_{side}_length={getattr(model, f'max_{side}_length')} has no room for a "
                "token and its eos"
            )
    for name, limit in (
        ("prompt_tokens", model.max_source_length),
        ("new_tokens", model.max_target_length - 1),  # the end symbol takes one
    ):
        if getattr(settings.prune, name) > limit:
            raise ValueError(
                f"prune.{name}={getattr(settings.prune, name)} is more than {limit}, which is what "
                "the model has positions for"
            )
    _check_depths(settings)
    _check_decode(settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelSettings:
    """A whole config for a language model; each section maps one to one onto its dataclass."""

    task: str
    seed: int
    data: StreamConfig
    model: LMConfig
    drop: DecoderDrop
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    evaluate: WindowConfig
    decode: SampleConfig
    prune: DecoderPrune
    init: InitConfig

    def __post_init__(self):
        if self.model.vocab_size != self.data.vocab_size:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} differs from "
                f"data.vocab_size={self.data.vocab_size}"
            )
        for name, length in (
            ("data.length", self.data.length),
            ("evaluate.length", self.evaluate.length),
            ("decode.max_tokens", self.decode.max_tokens),
            ("prune.prompt_tokens + prune.new_tokens", _request_tokens(self.prune)),
        ):
            if length > self.model.max_length:
                raise ValueError(
                    f"{name}={length} is more than model.max_length={self.model.max_length}, the "
                    "positions that the model has"
                )
        if self.model.cutoffs and self.train.label_smoothing:
            raise ValueError(
                f"train.label_smoothing={self.train.label_smoothing} needs the logits of all "
                "words, which an adaptive softmax never computes: set it to 0"
            )
        _check_block(self.model, "length", self.data.length)
        _check_depths(self)
        _check_decode(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLMSettings:
    """A whole config for pre-training an encoder; each section maps onto its dataclass."""

    task: str
    seed: int
    data: PretrainingConfig
    model: EncoderConfig
    drop: EncoderDrop
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    prune: EncoderPrune
    init: InitConfig

    def __post_init__(self):
        if self.model.num_classes:
            raise ValueError(
                f"model.num_classes={self.model.num_classes}: masked_lm has no classes, set it to 0"
            )
        if self.train.label_smoothing:
            raise ValueError(
                f"train.label_smoothing={self.train.label_smoothing}: masked_lm has none, set it "
                "to 0"
            )
        _check_encoder(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """A whole config for fine-tuning an encoder; each section maps onto its dataclass."""

    task: str
    seed: int
    data: LabelledConfig
    model: EncoderConfig
    drop: EncoderDrop
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    prune: EncoderPrune
    init: InitConfig

    def __post_init__(self):
        if not self.model.num_classes:
            raise ValueError(
                "model.num_classes=0: a classification needs the number of its classes, 1 for a "
                "regression"
            )
        if self.model.num_classes == 1 and self.train.label_smoothing:
            raise ValueError(
                f"train.label_smoothing={self.train.label_smoothing}: a regression "
                "(model.num_classes=1) has none, set it to 0"
            )
        _check_encoder(self)


def _check_depths(settings):
    """Raises a ValueError for layers, depths or strategies that the model cannot have."""
    settings.drop.rates(settings.model)
    settings.drop.subnetworks(settings.model)
    settings.prune.check(settings.model, settings.drop)


def _check_decode(settings):
    """Raises a ValueError where the network cannot decode as the section says."""
    _check_draft(settings)
    _check_exit(settings)
    check_quantize(settings.decode.quantize)


def quantize_of(settings) -> str:
    """Looks up ``decode.quantize``, how a run rounds its weights to answer; "" without that key."""
    return getattr(getattr(settings, "decode", None), "quantize", "")


def _check_draft(settings):
    """Raises a ValueError where the decoder has no such sub-network as ``decode.draft``."""
    model, text = settings.model, settings.decode.draft
    if text:
        try:
            check_layers(text, model.cut_stack, model, settings.drop, settings.prune.budget)
        except ValueError as error:
            raise ValueError(f"decode.draft={text!r}: {error}") from None


def _check_exit(settings):
    """Raises a ValueError where the decoder has no such depths as ``decode.exit_depths``."""
    if not exit_depths(settings) and settings.decode.exit:
        depth = settings.model.depth(settings.model.cut_stack)
        raise ValueError(
            f"decode.exit={settings.decode.exit!r} needs a depth to leave at, and the decoder has "
            f'{depth} layer{"" if depth == 1 else "s"} in all: set it to ""'
        )


def _check_encoder(settings):
    model = settings.model
    if model.vocab_size != settings.data.vocab_size:
        raise ValueError(
            f"model.vocab_size={model.vocab_size} differs from "
            f"data.vocab_size={settings.data.vocab_size}"
        )
    for name, length in (
        ("data.length", settings.data.length),
        ("prune.prompt_tokens", settings.prune.prompt_tokens),
    ):
        if length > model.max_length:
            raise ValueError(
                f"{name}={length} is more than model.max_length={model.max_length}, the positions "
                "that the model has"
            )
    _check_block(model, "length", settings.data.length)
    _check_depths(settings)


Settings = (
    TranslationSettings
    | SummarisationSettings
    | LanguageModelSettings
    | MaskedLMSettings
    | ClassificationSettings
)

# Where each task is declared. They import this file, so they are imported by name, when asked for.
TASKS = {
    name: f"layerdrop_jax.tasks.{name}:TASK"
    for name in (
        "translation",
        "summarisation",
        "language_modelling",
        "masked_lm",
        "classification",
    )
}


def find_task(name):
    """Finds the `layerdrop_jax.tasks.task.Task` of a name, as a config has it.

    Args:
      name: one of `TASKS`, or "module:NAME" for another one's.

    Raises:
      ValueError: there is no such task.
    """
    place = (TASKS.get(name) or name) if isinstance(name, str) else ""
    module, colon, attribute = place.partition(":")
    if not colon:
        raise ValueError(
            f"task={name!r} is unknown: it is one of {', '.join(TASKS)}, or MODULE:NAME of a Task"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"task={name!r} cannot be imported: {error}") from error


def _request_tokens(prune):
    return prune.prompt_tokens + prune.new_tokens


def _check_block(model, name, length):
    if model.drop_block and model.drop_block_size > length:
        raise ValueError(
            f"model.drop_block_size={model.drop_block_size} is more than "
            f"data.{name}={length}, the positions of a row"
        )


def parse(config: Mapping) -> Settings:
    """Builds the settings of a task from a config or from a run's config.json.

    Raises:
      ValueError: a section or key that is missing or unknown (the known ones are listed), or a
        value that its dataclass refuses.
    """
    _check_mapping("the config", config)
    if "task" not in config:
        raise ValueError(
            f"the config lacks a task, one of {', '.join(TASKS)}: it may be an older version's"
        )
    settings = find_task(config["task"]).settings
    kinds = {field.name: field.type for field in dataclasses.fields(settings)}
    _check_names("the config", config, set(kinds))
    values = {}
    for name, kind in kinds.items():
        if not dataclasses.is_dataclass(kind):
            _check_type(name, config[name], kind)
            values[name] = config[name]
            continue
        fields = dataclasses.fields(kind)
        _check_names(f"section {name}", config[name], {field.name for field in fields})
        for field in fields:
            _check_type(f"{name}.{field.name}", config[name][field.name], field.type)
        values[name] = kind(**config[name])
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed={config['seed']} is not from 0 to {2**32 - 1:,}")
    check_mesh(values["train"].mesh, values["model"], learned=bool(values["drop"].score_units))
    return settings(**values)


def unread(settings: Settings) -> dict[str, str]:
    """Finds the keys that a run with these settings never looks at, and why, by dotted name.

    They keep their values for the settings under which they count. Where prepared data lives
    (``data.data_dir``) is not among them: it says nothing about a run.
    """
    data, model, optimizer, drop = settings.data, settings.model, settings.optimizer, settings.drop
    found = {}

    def never(section, names, why, when=True):
        if when:
            fields = {field.name for field in dataclasses.fields(getattr(settings, section))}
            found.update({f"{section}.{name}": why for name in names.split() if name in fields})

    if hasattr(data, "dataset"):  # a task from outside may have one source alone
        sets = data.dataset.split("+")
        of_files = not any(name in READ_FROM_FILES for name in sets)
        never("data", "path", f"data.dataset={data.dataset!r} has its own text", of_files)
        never("data", "seed", f"data.dataset={data.dataset!r} draws nothing", sets != ["cldr"])
    name, schedule = f"optimizer.name={optimizer.name!r}", optimizer.schedule
    never("optimizer", "momentum", name, optimizer.name == "adam")
    never("optimizer", "beta1 beta2 epsilon", name, optimizer.name == "nag")
    of_schedule = {
        "inverse_sqrt": "min_rate period_updates period_mult period_shrink power",
        "cosine": "power",
        "polynomial": "period_mult period_shrink",
    }
    never("optimizer", of_schedule[schedule], f"optimizer.schedule={schedule!r}")
    over_time = f"drop.over_time={drop.over_time!r}"
    never("drop", "over_steps", over_time, drop.over_time == "constant")
    nested = "sets draws smallest share teach encoder_depths decoder_depths together"
    never("drop", nested, "drop.method='layerdrop'", drop.method == "layerdrop")
    never("drop", "together", "the model has one stack", len(model.stacks) < 2)
    never("drop", "exit_loss", "drop.method='layerdrop'", drop.method == "layerdrop")
    drawn, given = "draws smallest share together", f"drop.exit_loss={drop.exit_loss!r}"
    never("drop", drawn, given, drop.method == "nested" and drop.exit_loss)
    never("drop", "exit_scale", "drop.exit_loss is empty", not drop.exit_loss)
    never("drop", "score_rate score_rates", "drop.score_units=0", not drop.score_units)
    never("model", "drop_path_rows", "model.drop_path=0", not model.drop_path)
    never("model", "drop_block_size", "model.drop_block=0", not model.drop_block)
    adaptive = "adaptive_factor tie_projections adaptive_dropout adaptive_buffer "
    adaptive += "adaptive_ignored_targets adaptive_padding_rows"
    whole = not getattr(model, "adaptive_cutoffs", "")
    never("model", adaptive, "model.adaptive_cutoffs is empty", whole)
    added = getattr(model, "positions", "")
    never("model", "rope_theta", f"model.positions={added!r}", added != "rotary")
    headless = not getattr(model, "num_classes", 0)
    never("model", "pooler_dropout", "model.num_classes=0", headless)
    never("init", "temperature", "init.distill=0", not settings.init.distill)
    decode = getattr(settings, "decode", None)
    greedy = getattr(decode, "temperature", 1) == 0
    never("decode", "top_k top_p seed", "decode.temperature=0", decode and greedy)
    stays = not getattr(decode, "exit", "")
    never("decode", "exit_depths", "decode.exit is empty", decode and stays)
    whole = getattr(decode, "normalize", True)
    never("decode", "length_penalty", "decode.normalize=False", decode and not whole)
    return found


# The sets that are read from files in data.path.
READ_FROM_FILES = ("text", "iwslt14", "multi30k", "wikitext-103", "wikitext-2", "sst2", "tsv")


def check_read(keys, settings: Settings, flag: str = "--config.") -> None:
    """Raises a ValueError where one of the keys that a user gave is not looked at, see `unread`.

    Args:
      keys: dotted names.
      settings: of the run.
      flag: by which they were given.
    """
    known = unread(settings)
    for key in keys:
        if key in known:
            raise ValueError(
                f"{flag}{key} is given, but {known[key]}, so nothing would read it: leave it out, "
                "or change that"
            )


def _check_mapping(where, mapping):
    if not hasattr(mapping, "keys"):
        raise ValueError(f"{where} is {mapping!r}, not names with values")


def _check_names(where, mapping, known):
    _check_mapping(where, mapping)
    unknown = sorted(set(mapping) - known)
    if unknown:
        raise ValueError(f"{where} has no {unknown[0]!r}: it has {', '.join(sorted(known))}")
    missing = sorted(known - set(mapping))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: it may be an older version's")


def _check_type(name, value, wanted):
    kinds = (int, float) if wanted is float else wanted
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}, not a {wanted.__name__}")
    # What is read as float32 becomes inf above its largest number, and 0 below its smallest.
    if wanted is float and value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(
            f"{name}={value!r:.40} is not 0 or from {SMALLEST:.3g} to {LARGEST:.3g} in size, which "
            "is what float32 holds"
        )


def differences(old: Mapping, new: Mapping) -> list[str]:
    """Lists the dotted keys whose values differ, each as ``key: old -> new``."""
    old, new = flatten(old), flatten(new)
    absent = object()
    return [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def change(config: Mapping, changes, sections=CHANGED_AFTER) -> dict:
    """Copies a run's config, with other values for some keys in some of its sections.

    Args:
      config: nested mappings.
      changes: strings such as "decode.temperature=0".
      sections: where values may change.

    Raises:
      ValueError: a change that is not KEY=VALUE, or of an unknown key; lists the known ones.
    """
    changed = copy.deepcopy(dict(config))
    known = [key for key in flatten(config) if key.split(".")[0] in sections]
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise ValueError(f"--set={text} is not KEY=VALUE for one of {', '.join(known)}")
        *sections_of_key, name = key.split(".")
        node = changed
        for section in sections_of_key:
            node = node[section]
        try:
            found = json.loads(value.lower())
        except ValueError:
            found = value
        # a text that looks like a number, such as a depth, stays a text
        node[name] = value if isinstance(node[name], str) else found
    return changed


def flatten(mapping: Mapping, prefix: str = "") -> dict:
    """Flattens nested mappings: {dotted name: value}."""
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
