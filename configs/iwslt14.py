"""IWSLT14 de-en (Table 6): 160,000 pairs of talks, lower-cased, 10,000 joint BPE merges.

  python launch.py --config=configs/iwslt14.py --workdir=RUN --config.data.path=FOLDER

FOLDER is the de-en folder of the IWSLT 2014 release. The paper reports 34.5 BLEU with LayerDrop
(34.4 without), beam 4, no averaging of checkpoints. The recipe is the reference's: Adam with weight
decay 1e-4, inverse square root schedule, dropout 0.3, the decoder's input and output tied.

Variants: paper; small, an hour on one GPU; demo, CLDR phrases in minutes on two CPU cores.
"""

from configs import architectures, common


def paper():
    config = common.translation("iwslt14", "de", "en", architectures.transformer_iwslt_de_en)
    config.model.share_embeddings = "decoder"
    config.model.dropout = 0.3
    config.data.vocab_size = 10240
    config.data.batch_rows = 16
    config.optimizer.update({"warmup_init_rate": 0.0, "weight_decay": 1e-4})
    config.train.steps = 50000
    config.checkpoint.average = 1
    config.decode.beam = 4
    return config


def small():
    config = paper()
    config.data.batch_rows = 64
    config.optimizer.update({"rate": 1e-3, "warmup_updates": 2000})
    config.train.steps = 10000
    return config


def get_config(variant=None):
    return common.choose(
        variant, {"paper": paper, "small": small, "demo": lambda: common.demo(paper())}
    )
