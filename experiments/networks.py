"""The networks that several studies train, at each scale. A run of one name is trained once.

* demo: text that is made on the spot or read from Python's own library, minutes on a CPU core;
* small: WikiText-103 and Multi30k on one GPU;
* paper: the paper's own settings.
"""

import jax

from layerdrop_jax.runs import settings
from layerdrop_jax.step.flops import (
    FORWARD_AND_BACKWARD,
    expected_flops,
    lm_flops,
    nominal_flops,
)
from layerdrop_jax.studies.jobs import Measure, StudyRun, load_config
from layerdrop_jax.studies.results import results_of

# Enough updates for networks of some quality; the configs' own demos are shorter.
_LM_DEMO = {
    "train.steps": 3000,
    "train.eval_every": 500,
    "checkpoint.every": 500,
    "optimizer.period_updates": 2900,
}
_MT_DEMO = {
    "train.steps": 2700,
    "train.eval_every": 450,
    "checkpoint.every": 450,
    "optimizer.period_updates": 2600,
}
_SUM_DEMO = {
    "train.steps": 1500,
    "train.eval_every": 300,
    "checkpoint.every": 300,
    "optimizer.period_updates": 1400,
}
_MT_SMALL = {  # six decoder layers to cut, as in the paper
    "model.encoder_layers": 6,
    "model.decoder_layers": 6,
    "train.steps": 3000,
    "train.eval_every": 240,
    "optimizer.period_updates": 2600,
}
LM = {
    "demo": ("configs/wikitext103.py:demo", _LM_DEMO),
    "small": ("configs/wikitext103.py:small", {}),
    "paper": ("configs/wikitext103.py", {}),
}
MT = {
    "demo": ("configs/wmt.py:demo", _MT_DEMO),
    "small": ("configs/multi30k.py:small", _MT_SMALL),
    "paper": ("configs/wmt.py", {}),
}
SUM = {
    "demo": ("configs/cnn_dailymail.py:demo", _SUM_DEMO),
    "small": ("configs/cnn_dailymail.py:small", {}),
    "paper": ("configs/cnn_dailymail.py", {}),
}
ANSWERS = {"small": ("configs/eli5.py:small", {}), "paper": ("configs/eli5.py", {})}
LM_SETTING = {
    "demo": "pystdlib (the source of Python's standard library), 12 layers, 96 wide, 3,000 updates "
    "of 2,048 tokens; perplexity per BPE token",
    "small": "WikiText-103, 16 layers, 512 wide, 20,000 updates",
    "paper": "WikiText-103, the paper's setting",
}
MT_SETTING = {
    "demo": "CLDR phrases en-de, 12 + 6 layers, 64 wide, 2,700 updates; sacreBLEU",
    "small": "Multi30k en-de, 6 + 6 layers, 128 wide, 3,000 updates; sacreBLEU",
    "paper": "WMT en-de, Transformer big; tokenized BLEU, compounds split",
}
SUM_SETTING = {
    "demo": "pystdlib_summaries (a function of Python's standard library, and the first line "
    "of its docstring), 6 + 6 layers, 96 wide, 1,500 updates; ROUGE by rouge-score",
    "small": "CNN-DailyMail and ELI5, Transformer base, 40,000 updates; ROUGE by rouge-score",
    "paper": "CNN-DailyMail, Transformer base, and ELI5, Transformer big; ROUGE by rouge-score",
}
SEARCH_BUDGET = {"demo": 300, "small": 1000, "paper": 1000}  # sets that a search scores
LM_LAYERS = {"demo": 12, "small": 16, "paper": 16}
MT_LAYERS = SUM_LAYERS = 6


def label(rate) -> str:
    """Names a network by its drop rate, for tables and figures."""
    return f"LayerDrop {rate:g}" if rate else "without LayerDrop"


def language_model(variant, rate, *, depth=None, name="", **more) -> StudyRun:
    """Makes a language model with a drop rate; ``depth`` layers from the start, or the config's.

    Args:
      variant: demo, small or paper.
      rate: LayerDrop's.
      depth: None for the config's own depth.
      name: of the run, where further overrides make it another one.
      **more: of `StudyRun`; ``overrides`` are added.
    """
    config, overrides = LM[variant]
    overrides = overrides | {"drop.decoder": rate} | more.pop("overrides", {})
    parts = ["lm"]
    if depth is not None:
        overrides["model.decoder_layers"] = depth
        parts.append(f"depth_{depth}")
    if rate or depth is None:
        parts.append(f"rate_{rate:g}")
    if variant == "paper" and not rate:
        overrides["model.dropout"] = 0.3  # as the reference has it without LayerDrop
    return StudyRun(name=name or "_".join(parts), config=config, overrides=overrides, **more)


def data_driven(variant, *, rates=(), **more) -> StudyRun:
    """Makes the language model of Data Driven pruning, which learns rates, 0.5 in the mean.

    Args:
      variant: demo, small or paper.
      rates: means, 0.5 on average, of which each micro-batch draws one; () is 0.5 always.
      **more: of `StudyRun`.
    """
    overrides = {"drop.score_units": 16}
    if rates:
        overrides["drop.score_rates"] = ",".join(map(str, rates))
    name = "lm_data_driven_any" if rates else "lm_data_driven_0.5"
    return language_model(variant, 0.5, name=name, overrides=overrides, **more)


def cuts(variant, strategies) -> Measure:
    """Makes the evaluation of a language model cut by strategies, each a text."""
    texts, budget = ";".join(strategies), SEARCH_BUDGET[variant]
    return Measure("evaluate", {"decoder": texts}, {"prune.budget": budget})


def translation(variant, rate, *, encoder=None, decoder=None, name="", **more) -> StudyRun:
    """Makes a translation network with a drop rate in both stacks; its depths, or the config's.

    Args:
      variant: demo, small or paper.
      rate: LayerDrop's.
      encoder, decoder: layers; None for the config's own.
      name: of the run, where further overrides make it another one.
      **more: of `StudyRun`; ``overrides`` are added.
    """
    config, overrides = MT[variant]
    overrides = overrides | {"drop.encoder": rate, "drop.decoder": rate}
    overrides |= more.pop("overrides", {})
    parts = ["mt"]
    for stack, depth in (("encoder", encoder), ("decoder", decoder)):
        if depth is not None:
            overrides[f"model.{stack}_layers"] = depth
            parts.append(f"{stack}_{depth}")
    if rate or decoder is None:
        parts.append(f"rate_{rate:g}")
    return StudyRun(name=name or "_".join(parts), config=config, overrides=overrides, **more)


def summarisation(variant, rate, *, decoder=None, answers=False, **more) -> StudyRun:
    """Makes a network for summaries with a drop rate in both stacks; its decoder, or the config's.

    Args:
      variant: demo, small or paper.
      rate: LayerDrop's.
      decoder: its layers; None for the config's own.
      answers: ELI5's long answers instead, which have no demo.
      **more: of `StudyRun`.
    """
    config, overrides = (ANSWERS if answers else SUM)[variant]
    overrides = overrides | {"drop.encoder": rate, "drop.decoder": rate}
    parts = ["answers" if answers else "sum"]
    if decoder is not None:
        overrides["model.decoder_layers"] = decoder
        parts.append(f"decoder_{decoder}")
    if rate or decoder is None:
        parts.append(f"rate_{rate:g}")
    if variant == "paper" and not (rate or answers):
        overrides["model.dropout"] = 0.3  # as Edunov et al. have it without LayerDrop
    return StudyRun(name="_".join(parts), config=config, overrides=overrides, **more)


# By the letters that the names of runs begin with.
NETWORK = {"lm": language_model, "mt": translation}
TASKS = {"lm": "language_modelling", "mt": "translation"}
NAMES = {"lm": "Language modelling", "mt": "Translation"}
DEPTH = {"lm": LM_LAYERS, "mt": dict.fromkeys(LM_LAYERS, MT_LAYERS)}  # of the stack that is cut


def scratch(task, variant, depth) -> StudyRun:
    """Makes a network without LayerDrop that has ``depth`` layers from the start, lm or mt."""
    how = {"depth": depth} if task == "lm" else {"decoder": depth}
    return NETWORK[task](variant, 0.0, **how)


def by_rate(found, variant, rates, network=language_model) -> dict:
    """Looks up the results of a network at some drop rates: {rate: [a `Result` for each seed]}.

    Args:
      found: run name -> `Result`s.
      variant: demo, small or paper.
      rates: LayerDrop's.
      network: network(variant, rate) gives the run.
    """
    return {rate: results_of(found, network(variant, rate)) for rate in rates}


def lm_cost(config, overrides) -> float:
    """Counts the FLOPs that a micro-batch of a language model is expected to run.

    Of nested training it also counts what teaching takes beyond the sub-networks: of each the
    distribution over the vocabulary, forward and backward, and the teacher's, forward.

    Args:
      config: as `StudyRun.config`.
      overrides: what differs from it.
    """
    parsed = settings.parse(load_config(config, overrides))
    model, drop, data = parsed.model, parsed.drop, parsed.data
    total = expected_flops(_lm_costs(parsed), model, drop, data.batch_rows)
    tables = drop.subnetworks(model)
    if tables and drop.teach:
        number = drop.expected_exits(model)
        forward = 2 * model.embed_dim * model.vocab_size * data.batch_rows * data.length
        total += number * (FORWARD_AND_BACKWARD + 1) * forward
    return total


def equal_cost(config, overrides) -> dict:
    """Overrides with as many updates as cost what the config's own do when nothing is dropped.

    Cost is the FLOPs of what runs, as expected from the drop rates; a cosine's period follows.

    Args:
      config: of a language model, as `StudyRun.config`.
      overrides: what is dropped.
    """
    parsed = settings.parse(load_config(config, overrides))
    whole = nominal_flops(_lm_costs(parsed), {"decoder": parsed.model.decoder_layers})
    steps = round(parsed.train.steps * whole / lm_cost(config, overrides))
    longer = steps - parsed.train.steps
    return {
        **overrides,
        "train.steps": steps,
        "optimizer.period_updates": parsed.optimizer.period_updates + longer,
    }


def warmup(config) -> int:
    """Reads how many updates of a config warm up."""
    return settings.parse(load_config(config)).optimizer.warmup_updates


def _lm_costs(parsed) -> dict:
    shape = jax.ShapeDtypeStruct((parsed.data.batch_rows, parsed.data.length), "int32")
    return lm_flops(parsed.model, {"input": shape})
