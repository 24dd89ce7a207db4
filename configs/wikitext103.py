"""WikiText-103, the paper's language modelling setting (Table 2): adaptive inputs, LayerDrop 0.2.

  python launch.py --config=configs/wikitext103.py --workdir=RUN          the paper's 16 layers
  python launch.py --config=configs/wikitext103.py:deep --workdir=RUN     the paper's 40 layers
  python launch.py --config=configs/wikitext103.py:small --workdir=RUN    512 wide, for one GPU
  python launch.py --config=configs/wikitext103.py:demo --workdir=RUN     12 layers on two cores

The paper reports a test perplexity of 18.3 for 16 layers and 17.7 for 40. The recipe is the
reference's for adaptive inputs: Nesterov's gradient with momentum 0.99, gradients renormalised to
0.1, 16,000 updates of warm-up and one cosine period of 270,000, 73,728 tokens an update. The paper
chooses dropout on the validation split from 0.1, 0.2 and 0.3; 0.2 stands here, 0.1 less than the
reference without LayerDrop. Its 40 layers have 423M parameters, and it does not say which size it
cut: an FFN of 2,560 gives 423,352,320. The demo reads the source of Python's standard library, and
downloads nothing; its optimizer is Adam.

Attention dropout of 0.1 writes the weights of attention out, [rows, heads, 3,072, 3,072] in each
layer; on TPUs --config.model.attention_dropout=0 takes the fused kernel instead
(docs/performance.md).

For a network without LayerDrop add --config.drop.decoder=0; for weights shared by every two layers,
as in the paper's appendix, --config.model.share_layers=2.
"""

from configs import architectures, common


def paper():
    config = common.language_modelling("wikitext-103", architectures.transformer_lm_wiki103)
    config.model.update({"dropout": 0.2, "dtype": "bfloat16"})
    # 8 blocks x 3,072 tokens x 3 = 73,728 tokens an update.
    config.data.update({"batch_rows": 8, "length": 3072, "workers": 2})
    config.train.update({"accumulate": 3, "steps": 286000, "eval_every": 2000})
    config.checkpoint.update({"every": 2000, "keep_last": 3, "average": 1})
    config.optimizer.update(
        {
            "name": "nag",
            "momentum": 0.99,
            "schedule": "cosine",
            "rate": 1.0,
            "min_rate": 1e-4,
            "warmup_updates": 16000,
            "warmup_init_rate": 1e-7,
            "period_updates": 270000,
            "period_mult": 2.0,
            "period_shrink": 0.75,
            "clip_norm": 0.1,
        }
    )
    return config


def deep():
    config = paper()
    config.model.update({"decoder_layers": 40, "ffn_dim": 2560})
    return config


def small():
    config = paper()
    config.model.update({"embed_dim": 512, "ffn_dim": 2048, "max_length": 512, "dropout": 0.1})
    config.data.update({"batch_rows": 64, "length": 512})
    config.train.update({"accumulate": 1, "steps": 20000, "eval_every": 1000})
    config.checkpoint.every = 1000
    config.optimizer.update({"warmup_updates": 2000, "period_updates": 18000, "period_mult": 1.0})
    config.evaluate.update({"length": 512, "context": 400, "batch_rows": 32})
    return config


def demo():
    config = paper()
    config.data.update(
        {
            "dataset": "pystdlib",
            "path": "",
            "tokenizer": "bpe",
            "vocab_size": 2048,
            "batch_rows": 16,
            "length": 128,
            "workers": 0,
        }
    )
    config.model.update(
        {
            "embed_dim": 96,
            "ffn_dim": 384,
            "attention_heads": 4,
            "decoder_layers": 12,
            "max_length": 256,
            "adaptive_cutoffs": "512",
            "adaptive_buffer": 0.5,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "adaptive_dropout": 0.0,
            "dtype": "float32",
        }
    )
    # In so few updates Adam comes further than Nesterov's gradient.
    config.optimizer.update(
        {
            "name": "adam",
            "rate": 3e-3,
            "min_rate": 1e-6,
            "warmup_updates": 100,
            "period_updates": 500,
            "period_mult": 1.0,
            "clip_norm": 0.0,
        }
    )
    config.train.update({"accumulate": 1, "steps": 600, "log_every": 20, "eval_every": 150})
    config.checkpoint.update({"every": 150, "keep_last": 2})
    config.evaluate.update({"length": 128, "context": 32, "break_mode": "none", "batch_rows": 32})
    config.decode.update({"max_tokens": 64})
    return config


def get_config(variant=None):
    return common.choose(variant, {"paper": paper, "deep": deep, "small": small, "demo": demo})
