"""WMT en-de, the paper's translation setting (Table 1): Transformer big, LayerDrop 0.2.

  python launch.py --config=configs/wmt.py --workdir=RUN             the paper's 12 + 6 layers
  python launch.py --config=configs/wmt.py:paper_6_6 --workdir=RUN   the paper's 6 + 6 layers
  python launch.py --config=configs/wmt.py:small --workdir=RUN       base 6 + 6, for one GPU
  python launch.py --config=configs/wmt.py:demo --workdir=RUN        12 + 6 layers on two CPU cores

The paper reports 30.2 BLEU on newstest2014 (tokenized, compounds split) for 12 + 6 layers, trained
with 128 times 3,584 tokens an update. Settings that it leaves open are the reference's for the same
network: the cosine schedule of Wu et al. 2019 (peak 1e-3, 10,000 updates of warm-up, one period of
20,000). Dropout is chosen on newstest2013 from 0.1, 0.2 and 0.5 in the paper; 0.2 stands here. The
demo translates CLDR phrases that are made on the spot: it downloads nothing.

For a network without LayerDrop add --config.drop.encoder=0 --config.drop.decoder=0.
"""

from configs import architectures, common


def paper():
    config = common.translation(
        "wmt14_translate/de-en", "en", "de", architectures.transformer_vaswani_wmt_en_de_big_12_6
    )
    config.model.share_embeddings = "all"
    config.model.dropout = 0.2
    config.model.dtype = "bfloat16"
    # 224 rows x 256 tokens x 8 = 458,752 tokens an update: 128 times 3,584.
    config.data.batch_rows = 224
    config.data.workers = 4
    config.train.accumulate = 8
    config.optimizer.update(
        {
            "schedule": "cosine",
            "rate": 1e-3,
            "min_rate": 1e-7,
            "warmup_updates": 10000,
            "period_updates": 20000,
        }
    )
    config.decode.update(
        {"beam": 8, "length_penalty": 0.6, "max_length_a": 0.0, "max_length_b": 200}
    )
    return config


def paper_6_6():
    config = paper()
    config.model.encoder_layers = 6
    return config


def small():
    config = paper()
    config.model.update(architectures.transformer_wmt_en_de)
    config.model.update({"share_embeddings": "all", "dtype": "bfloat16"})
    config.data.batch_rows = 128
    config.train.accumulate = 1
    config.optimizer.update({"schedule": "inverse_sqrt", "rate": 7e-4, "warmup_updates": 4000})
    config.train.steps = 20000
    config.decode.beam = 4
    return config


def demo():
    return common.demo(paper())


def get_config(variant=None):
    return common.choose(
        variant, {"paper": paper, "paper_6_6": paper_6_6, "small": small, "demo": demo}
    )
