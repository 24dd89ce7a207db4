"""Today's decoder: RMSNorm, rotary positions, SwiGLU, few heads for keys and values, no biases.

  python launch.py --config=configs/llama.py --workdir=RUN           1.2B, the shape of Llama 3.2 1B
  python launch.py --config=configs/llama.py:small --workdir=RUN     124M, for one GPU
  python launch.py --config=configs/llama.py:demo --workdir=RUN      12 layers on two cores

The paper has no such network: `paper` is its LayerDrop rate in a network of today. Text is that of
configs/wikitext103.py, in pieces of a BPE, which keep it exactly; the optimizer is Adam with
decoupled weight decay. Nobody has trained `paper` or `small` here.

Mistral is the same network, Qwen2 --config.model.biases=qkv, Qwen3 --config.model.qk_norm=True.
"""

from configs import architectures, common


def paper():
    config = common.language_modelling("wikitext-103", architectures.llama_3_2_1b)
    config.model.update({"dtype": "bfloat16", "max_length": 4096})
    # 8 blocks x 4,096 tokens x 8 = 262,144 tokens an update; about ten passes over the text.
    config.data.update(
        {"tokenizer": "bpe", "vocab_size": 128256, "batch_rows": 8, "length": 4096, "workers": 2}
    )
    config.train.update(
        {"accumulate": 8, "steps": 5000, "eval_every": 250, "shard_parameters": True}
    )
    config.checkpoint.update({"every": 250, "keep_last": 2, "average": 1})
    config.optimizer.update(
        {
            "schedule": "cosine",
            "rate": 3e-4,
            "min_rate": 3e-5,
            "warmup_updates": 500,
            "warmup_init_rate": 0.0,
            "period_updates": 4500,
            "beta2": 0.95,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
        }
    )
    config.evaluate.update({"length": 4096, "context": 2048, "break_mode": "none", "batch_rows": 2})
    return config


def small():
    config = paper()
    config.data.update({"vocab_size": 50304, "batch_rows": 32, "length": 1024})
    config.model.update(
        {
            "embed_dim": 768,
            "ffn_dim": 2400,
            "attention_heads": 12,
            "kv_heads": 4,
            "decoder_layers": 12,
            "max_length": 1024,
        }
    )
    config.optimizer.update(
        {"rate": 6e-4, "min_rate": 6e-5, "warmup_updates": 1000, "period_updates": 19000}
    )
    config.train.update(
        {"accumulate": 2, "steps": 20000, "eval_every": 1000, "shard_parameters": False}
    )
    config.checkpoint.update({"every": 1000, "keep_last": 3})
    config.evaluate.update({"length": 1024, "context": 512, "batch_rows": 16})
    return config


def demo():
    config = small()
    config.data.update(
        {
            "dataset": "pystdlib",
            "path": "",
            "vocab_size": 2048,
            "batch_rows": 16,
            "length": 128,
            "workers": 0,
        }
    )
    config.model.update(
        {
            "embed_dim": 96,
            "ffn_dim": 256,
            "attention_heads": 4,
            "kv_heads": 2,
            "max_length": 256,
            "dtype": "float32",
        }
    )
    config.optimizer.update(
        {"rate": 3e-3, "min_rate": 1e-6, "warmup_updates": 100, "period_updates": 500}
    )
    config.train.update({"accumulate": 1, "steps": 600, "log_every": 20, "eval_every": 150})
    config.checkpoint.update({"every": 150, "keep_last": 2})
    config.evaluate.update({"length": 128, "context": 32, "batch_rows": 32})
    config.decode.update({"max_tokens": 64})
    return config


def get_config(variant=None):
    return common.choose(variant, {"paper": paper, "small": small, "demo": demo})
