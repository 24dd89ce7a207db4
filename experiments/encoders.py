"""The encoders that several studies pre-train and fine-tune, at each scale.

* demo: Python's own library, its source and docstrings; fine-tuned to tell its modules apart;
* sst2: as the demo, on docstrings and the sentences of SST-2, fine-tuned on SST-2, which is read
  from $LAYERDROP_DATA/sst2;
* small: WikiText-103, then GLUE's SST-2, on one GPU;
* paper: the paper's own settings.
"""

from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import compare, on_split
from layerdrop_jax.studies.study import VARIANTS

ENCODER_VARIANTS = (*VARIANTS, "sst2")
_SST2 = {
    "data.dataset": "pystdlib_docstrings+sst2",
    "train.steps": 1500,
    "train.eval_every": 500,
    "checkpoint.every": 500,
    "optimizer.warmup_updates": 150,
    "optimizer.period_updates": 1350,
}
PRETRAINING = {
    "demo": ("configs/roberta.py:demo", {}),
    "sst2": ("configs/roberta.py:demo", _SST2),
    "small": ("configs/roberta.py:small", {}),
    "paper": ("configs/roberta.py", {}),
}
TASKS = {
    "demo": {"modules": "configs/glue.py:demo"},
    "sst2": {"SST-2": "configs/glue.py:demo_sst2"},
    "small": {"SST-2": "configs/glue.py:small"},
    "paper": {
        "MNLI-m": "configs/glue.py:mnli",
        "MRPC": "configs/glue.py:mrpc",
        "QNLI": "configs/glue.py:qnli",
        "SST-2": "configs/glue.py:sst2",
    },
}
SETTING = {
    "demo": "12 layers, 96 wide; pre-trained on the source and docstrings of Python's standard "
    "library for 600 updates of 2,048 tokens, fine-tuned for 600 of 16 examples to say which of 16 "
    "modules some lines come from",
    "sst2": "12 layers, 96 wide; pre-trained on docstrings of Python's standard library and the "
    "training sentences of SST-2 for 1,500 updates of 2,048 tokens, fine-tuned on SST-2 for 800 "
    "of 32 examples",
    "small": "12 layers, 256 wide; pre-trained on WikiText-103 for 20,000 updates, fine-tuned on "
    "GLUE's SST-2",
    "paper": "the paper's setting; its book corpus, which was never published, is pg19 here",
}
# Where its labels are public the test set: the checkpoint was chosen on the dev set. The paper
# reports dev accuracy.
SPLIT = {"demo": "test", "sst2": "test", "small": "valid", "paper": "valid"}
SHOWN = {"test": "test accuracy", "valid": "dev accuracy"}
LAYERS = 12  # of all these networks, and of the paper's that are cut


def pretrained(variant, rate, *, depth=None, config="") -> StudyRun:
    """Makes an encoder, pre-trained with a drop rate; of ``depth`` layers, or the config's.

    Args:
      variant: demo, sst2, small or paper.
      rate: LayerDrop's.
      depth: None for the config's own depth.
      config: another one than the variant's.
    """
    own, overrides = PRETRAINING[variant]
    overrides = overrides | {"drop.encoder": rate}
    name = f"roberta_{config.partition(':')[2]}" if config else "roberta"
    if depth is not None:
        overrides |= {"model.encoder_layers": depth, "prune.encoder": "all"}
        name += f"_layers_{depth}"
    return StudyRun(name=f"{name}_rate_{rate:g}", config=config or own, overrides=overrides)


def distilled(variant, depth) -> StudyRun:
    """Makes a small encoder, which the large one teaches, of every other of its layers: DistilBERT.

    Its loss is half that of the masks and half the distance from the teacher's distributions at
    temperature 2. The teacher knows no LayerDrop. Begun from trained layers, it is trained twice as
    long as the others.
    """
    return StudyRun(
        name=f"roberta_distilled_{depth}",
        start=pretrained(variant, 0.0),
        layers={"encoder": str(depth)},
        overrides={"init.distill": 0.5, "init.temperature": 2.0},
    )


def short_name(task) -> str:
    """Names a task in the names of runs and figures: "sst2"."""
    return task.lower().replace("-", "")


def accuracy(variant):
    """Gives the score of a fine-tuned network, as a function of its result."""
    return on_split(SPLIT[variant])


def shown(variant) -> str:
    """Names `accuracy`."""
    return SHOWN[SPLIT[variant]]


def claim_of_paper(what, scores, paper, figure="") -> list:
    """Claims of two networks what the paper finds, which is better; [] where it finds nothing.

    Args:
      what: it is about.
      scores: {name: a value for each seed} of two.
      paper: the paper's two numbers, in their order; both None where it has another task: there its
        first is expected to be the better one.
      figure: as in `compare`.
    """
    first, second = paper
    if (first is None) != (second is None) or (first is not None and first == second):
        return []
    names = list(scores)
    if first is not None and first < second:
        names.reverse()
    better, worse = names
    numbers = f" ({max(paper)} to {min(paper)})" if first is not None else ""
    ordered = {name: scores[name] for name in names}
    return [compare(f"{what}: {better} is better than {worse}{numbers}", ordered, "higher", figure)]


def finetuned(variant, task, network, *, depth=LAYERS) -> StudyRun:
    """Makes a pre-trained encoder on a task, cut to ``depth`` layers before that.

    LayerDrop stays on where nothing is cut, as in the paper; what is cut is fine-tuned without.

    Args:
      variant: demo, sst2, small or paper.
      task: one of TASKS[variant].
      network: a `StudyRun` of `pretrained` or `distilled`.
      depth: layers that stay; those of a network that has no more are all of it.
    """
    own = network.overrides.get("model.encoder_layers", 0) or int(
        network.layers.get("encoder", LAYERS)
    )
    rate = network.overrides.get("drop.encoder", 0.0) if depth >= own else 0.0
    name = f"{short_name(task)}_{network.name}"
    return StudyRun(
        name=name if depth >= own else f"{name}_cut_{depth}",
        config=TASKS[variant][task],
        start=network,
        layers={} if depth >= own else {"encoder": str(depth)},
        overrides={"drop.encoder": rate},
        seeds=network.seeds,
    )
