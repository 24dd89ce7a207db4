"""GLUE: fine-tuning a pre-trained encoder, whole or cut, for the paper's Tables 4, 5 and 7.

  python launch.py --mode=finetune --workdir=ROBERTA --config=configs/glue.py:sst2 --output=RUN
  python launch.py --mode=finetune --workdir=ROBERTA --config=configs/glue.py:sst2 --output=RUN \\
      --encoder_layers=6 --config.drop.encoder=0

The first trains the whole network of the run ROBERTA (configs/roberta.py) with LayerDrop on, as in
Table 4, the second one cut to 6 layers, without, as in Table 7. The network's sizes are ROBERTA's.

Variants: mnli (also called paper), qnli, qqp, rte, sst2, mrpc, cola and stsb have the reference's
settings for each, for sets that TFDS has prepared; tsv reads --config.data.path=FOLDER with
train.tsv, dev.tsv and perhaps test.tsv: a header, a column `label`, one or two columns of text. For
another number of labels than two set --config.model.num_classes; its updates are SST-2's, so set
those too (docs/encoders.md has the command). tiny reads the same files and takes classes, rows and
updates from them, in minutes on two CPU cores: trained on from a small ROBERTA, as above, or by
--mode=train from nothing, 6 layers 96 wide. The paper searches rate and batch; the reference's
values stand here, and its cap of 4,400 tokens a batch does not. small is sst2 for the network of
configs/roberta.py:small. demo, for that of its demo, asks which module of Python's standard library
some lines come from, and downloads nothing; demo_sst2 reads SST-2 from $LAYERDROP_DATA/sst2. minilm
does the same for a network that was imported, of six layers, 384 wide: docs/encoders.md.
"""

import functools

from configs import architectures, common

# The reference's table: classes, peak rate, examples of a batch, updates, of these warm-up.
REFERENCE = {
    "mnli": (3, 1e-5, 32, 123873, 7432),
    "qnli": (2, 1e-5, 32, 33112, 1986),
    "qqp": (2, 1e-5, 32, 113272, 28318),
    "rte": (2, 2e-5, 16, 2036, 122),
    "sst2": (2, 1e-5, 32, 20935, 1256),
    "mrpc": (2, 1e-5, 16, 2296, 137),
    "cola": (2, 1e-5, 16, 5336, 320),
    "stsb": (1, 2e-5, 16, 3598, 214),
}
EPOCHS = 10


def task(name):
    classes, rate, rows, updates, warmup = REFERENCE[name]
    config = common.encoder("classification", architectures.roberta_base)
    config.data.update({"dataset": f"glue/{name}", "batch_rows": rows})
    config.data.update({"buckets": "", "max_examples": 0})
    config.model.update({"num_classes": classes, "dtype": "bfloat16"})
    config.optimizer.update(
        {
            "rate": rate,
            "warmup_updates": warmup,
            "period_updates": updates - warmup,
            "weight_decay": 0.1,
        }
    )
    epoch = updates // EPOCHS
    config.train.update({"steps": updates, "eval_every": epoch})
    config.checkpoint.every = epoch
    config.prune.new_tokens = 1
    return config


def tsv():
    config = task("sst2")
    config.data.dataset = "tsv"
    return config


def tiny():
    config = common.encoder_demo(tsv())
    config.model.update({"encoder_layers": 6, "num_classes": common.FROM_TEXT, "dropout": 0.1})
    config.optimizer.update({"rate": 1e-3, "weight_decay": 0.01})
    common.from_text(config)
    return config


def small():
    config = task("sst2")
    config.data.update({"vocab_size": 16384, "length": 128})
    config.model.update({"embed_dim": 256, "ffn_dim": 1024, "attention_heads": 4})
    config.optimizer.rate = 1e-4
    return config


def demo():
    config = common.encoder_demo(task("sst2"))
    config.data.update({"dataset": "pystdlib_modules", "batch_rows": 16, "length": 128})
    config.model.num_classes = 16
    config.optimizer.update(
        {"rate": 5e-4, "warmup_updates": 60, "period_updates": 540, "weight_decay": 0.01}
    )
    config.train.update({"steps": 600, "log_every": 20, "eval_every": 150})
    return config


def demo_sst2():
    config = demo()
    config.data.update({"dataset": "sst2", "batch_rows": 32, "length": 64})
    config.model.num_classes = 2
    config.optimizer.period_updates = 740
    config.train.update({"steps": 800, "eval_every": 200})
    config.checkpoint.every = 200
    return config


def minilm():
    config = task("sst2")
    config.data.update({"dataset": "sst2", "batch_rows": 32, "length": 64, "buckets": "16,32"})
    config.model.dtype = "float32"
    config.drop.encoder = 0.0
    config.optimizer.update(
        {"rate": 1e-4, "warmup_updates": 60, "period_updates": 540, "weight_decay": 0.01}
    )
    config.train.update({"steps": 600, "log_every": 20, "eval_every": 200})
    config.checkpoint.update({"every": 200, "keep_last": 2})
    return config


def get_config(variant=None):
    tasks = {name: functools.partial(task, name) for name in REFERENCE}
    others = {"paper": tasks["mnli"], "small": small, "demo": demo, "demo_sst2": demo_sst2}
    return common.choose(variant, tasks | others | {"tsv": tsv, "tiny": tiny, "minilm": minilm})
