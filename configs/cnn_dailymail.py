"""CNN-DailyMail, the paper's summaries (Table 3): Transformer base, LayerDrop 0.2.

  python launch.py --config=configs/cnn_dailymail.py --workdir=RUN             6 + 6 layers
  python launch.py --config=configs/cnn_dailymail.py:paper_6_8 --workdir=RUN   6 + 8 layers
  python launch.py --config=configs/cnn_dailymail.py:small --workdir=RUN       6 + 6, for one GPU
  python launch.py --config=configs/cnn_dailymail.py:demo --workdir=RUN        for two CPU cores

The paper reports ROUGE-1, -2, -L of 40.5, 17.9, 37.1 for 6 + 6 layers and 41.1, 18.1, 37.5 for
6 + 8. Articles are cut at 400 tokens; a joint BPE of 32K; a cosine schedule with 10,000 updates of
warm-up; dropout chosen from 0.2 and 0.3; no 3-gram twice; the shortest summary chosen from 40, 50
and 60 tokens. What the paper leaves open is Edunov et al. 2019's: 32 times 4 times 3,584 tokens an
update, 30,000 updates, attention dropout 0.2 beside dropout 0.3; here 0.2 stands for both, since
LayerDrop regularises too. Peak rate and period are those of the other cosine schedule, WMT's.

Attention dropout writes the weights of attention out; on TPUs --config.model.attention_dropout=0
takes the fused kernel instead (docs/performance.md).

The demo says what functions of Python's own library do, in the words of their docstrings.

For a network without LayerDrop add --config.drop.encoder=0 --config.drop.decoder=0.
"""

from configs import architectures, common


def paper():
    config = common.summarisation("cnn_dailymail", architectures.transformer_wmt_en_de)
    config.model.update({"dropout": 0.2, "attention_dropout": 0.2, "dtype": "bfloat16"})
    # 144 rows x 800 tokens x 4 = 460,800 tokens of articles an update, for 32 x 4 x 3,584.
    config.data.batch_rows = 144
    config.data.workers = 4
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
    config.decode.min_length = 50
    return config


def paper_6_8():
    config = paper()
    config.model.decoder_layers = 8
    return config


def small():
    config = paper()
    config.data.batch_rows = 32
    config.train.accumulate = 1
    config.optimizer.update({"rate": 5e-4, "warmup_updates": 4000, "period_updates": 36000})
    config.train.steps = 40000
    return config


def get_config(variant=None):
    return common.choose(
        variant,
        {
            "paper": paper,
            "paper_6_8": paper_6_8,
            "small": small,
            "demo": lambda: common.summaries_demo(paper()),
        },
    )
