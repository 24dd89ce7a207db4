"""ELI5, the paper's long answers to questions (Table 3): Transformer big, LayerDrop 0.2.

  python launch.py --config=configs/eli5.py --workdir=RUN --config.data.path=FOLDER

Its source is gone, so the 272K examples are read from your own files: FOLDER has train.source,
train.target, valid.source, ... (docs/summarisation.md says how they are made).

The paper reports ROUGE-1, -2, -L of 29.4, 5.5, 23.4 with beam 5, no 3-gram twice, and answers of
150 to 200 tokens. It leaves the rest open: the schedule is that of CNN-DailyMail, the source limit,
1,024 tokens, is the reference's.

Variants: paper; small, the base network on one GPU; demo, functions to docstrings in minutes on two
CPU cores. For a network without LayerDrop add --config.drop.encoder=0 --config.drop.decoder=0.
"""

from configs import architectures, common


def paper():
    config = common.summarisation("text", architectures.transformer_vaswani_wmt_en_de_big)
    config.model.update({"dropout": 0.2, "dtype": "bfloat16"})
    config.data.update(
        {
            "batch_rows": 112,
            "source_length": 1024,
            "target_length": 256,
            "max_source": 1024,
            "max_target": 256,
            "workers": 4,
        }
    )
    config.train.accumulate = 4
    config.optimizer.update(
        {
            "schedule": "cosine",
            "rate": 1e-3,
            "min_rate": 1e-7,
            "warmup_updates": 10000,
            "period_updates": 20000,
        }
    )
    config.decode.update({"min_length": 150, "max_length_b": 200})
    return config


def small():
    config = paper()
    config.model.update(architectures.transformer_wmt_en_de)
    config.model.update({"share_embeddings": "all", "dropout": 0.2, "dtype": "bfloat16"})
    config.data.update({"batch_rows": 24, "max_source": 512})
    config.train.accumulate = 1
    config.optimizer.update({"rate": 5e-4, "warmup_updates": 4000, "period_updates": 36000})
    config.train.steps = 40000
    return config


def get_config(variant=None):
    return common.choose(
        variant, {"paper": paper, "small": small, "demo": lambda: common.summaries_demo(paper())}
    )
