"""RoBERTa, pre-trained with LayerDrop 0.2: the networks of the paper's Tables 4, 5 and 7.

  python launch.py --config=configs/roberta.py --workdir=RUN          base: 12 layers
  python launch.py --config=configs/roberta.py:large --workdir=RUN    24 layers
  python launch.py --config=configs/roberta.py:small --workdir=RUN    12 layers, 256 wide: one GPU
  python launch.py --config=configs/roberta.py:demo --workdir=RUN     12 layers on two CPU cores

It is then fine-tuned, whole or cut: configs/glue.py. The paper trains base and large for 500,000
updates of 8,192 rows, on books and the Wikipedia: warm-up 24,000 and 30,000 updates, peak 6e-4 and
4e-4; its network of 48 layers takes 300,000 updates at rate 0.5. Adam's constants, the decay of
weights and the masks are the reference's. The book corpus of the paper was never published; pg19,
which TFDS has, stands for it. Both sets must be prepared once; text of your own is
--config.data.dataset=text with --config.data.path=FOLDER. The demo reads the source of Python's
standard library and its docstrings, and downloads nothing.

Attention dropout of 0.1, the reference's, writes the weights of attention out; on TPUs
--config.model.attention_dropout=0 takes the fused kernel instead (docs/performance.md).

For a network without LayerDrop add --config.drop.encoder=0.
"""

from configs import architectures, common


def paper():
    config = common.encoder("masked_lm", architectures.roberta_base)
    config.model.dtype = "bfloat16"
    # 256 rows x 32 = 8,192 rows an update.
    config.data.update({"dataset": "wikipedia/20230601.en+pg19", "batch_rows": 256, "workers": 4})
    config.train.update({"accumulate": 32, "steps": 500000, "eval_every": 5000})
    config.checkpoint.every = 5000
    config.optimizer.update(
        {"rate": 6e-4, "warmup_updates": 24000, "period_updates": 476000, "weight_decay": 0.01}
    )
    return config


def large():
    config = paper()
    config.model.update(architectures.roberta_large)
    config.model.dtype = "bfloat16"
    config.optimizer.update({"rate": 4e-4, "warmup_updates": 30000, "period_updates": 470000})
    return config


def deep():
    config = large()
    config.model.encoder_layers = 48
    config.drop.encoder = 0.5
    config.train.steps = 300000
    config.optimizer.period_updates = 270000
    return config


def small():
    config = paper()
    config.model.update({"embed_dim": 256, "ffn_dim": 1024, "attention_heads": 4})
    config.data.update({"dataset": "wikitext-103", "vocab_size": 16384, "length": 128})
    config.train.update({"accumulate": 1, "steps": 20000, "eval_every": 1000})
    config.checkpoint.every = 1000
    config.optimizer.update({"rate": 1e-3, "warmup_updates": 1000, "period_updates": 19000})
    return config


def demo():
    config = common.encoder_demo(paper())
    config.data.update({"dataset": "pystdlib+pystdlib_docstrings", "batch_rows": 16, "length": 128})
    config.train.update({"accumulate": 1, "steps": 600, "log_every": 20, "eval_every": 150})
    config.optimizer.update({"rate": 1e-3, "warmup_updates": 100, "period_updates": 500})
    return config


def get_config(variant=None):
    variants = {"paper": paper, "large": large, "deep": deep, "small": small, "demo": demo}
    return common.choose(variant, variants)
