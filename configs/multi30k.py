"""Multi30k en-de: 29,000 image captions, the smallest real translation task.

  python launch.py --config=configs/multi30k.py:small --workdir=RUN --config.data.path=FOLDER

FOLDER has train.en, train.de, val.en, ... as plain or gzip files; without it the program reads
$LAYERDROP_DATA/multi30k.

Variants: paper, the network that others report on this set (Transformer-Tiny of Wu et al. 2021,
"Good for Misconceived Reasons": 4 + 4 layers, 128 wide) with LayerDrop 0.2; small, the same in a
form that trains on one CPU core in about an hour: pre-norm, a smaller vocabulary, fewer updates;
demo, CLDR phrases in minutes.

For the network without LayerDrop add --config.drop.encoder=0 --config.drop.decoder=0.
"""

from configs import architectures, common


def paper():
    config = common.translation("multi30k", "en", "de", architectures.transformer_iwslt_de_en)
    config.data.vocab_size = 8192
    config.data.batch_rows = 32
    config.data.source_length = config.data.target_length = config.data.max_length = 128
    config.model.update(
        {
            "embed_dim": 128,
            "ffn_dim": 256,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "dropout": 0.3,
            "share_embeddings": "all",
        }
    )
    config.optimizer.rate = 5e-3
    config.optimizer.warmup_updates = 2000
    config.train.steps = 8000
    config.train.eval_every = 250
    config.checkpoint.every = 250
    return config


def small():
    config = paper()
    config.data.vocab_size = 4096
    # Captions are short; the English side, a little shorter still.
    config.data.source_length = config.data.max_length = 60
    config.data.target_length = 64
    config.model.norm = "pre"
    config.model.dropout = 0.15
    config.optimizer.update(
        {
            "schedule": "cosine",
            "rate": 3e-3,
            "min_rate": 1e-6,
            "warmup_updates": 400,
            "period_updates": 3800,
        }
    )
    config.train.steps = 4200
    config.train.eval_every = 240
    config.checkpoint.update({"every": 120, "keep_last": 5, "average": 5})
    config.decode.batch_tokens = (
        4096  # on a CPU the caches of a beam should fit into the processor's
    )
    return config


def get_config(variant=None):
    return common.choose(
        variant, {"paper": paper, "small": small, "demo": lambda: common.demo(paper())}
    )
