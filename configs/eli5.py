"""ELI5, the paper's long answers to questions (Table 3): Transformer big, LayerDrop 0.2.

  python launch.py --config=configs/eli5.py --workdir=RUN --config.data.path=FOLDER

Its source is gone, so the 272K examples are read from your own files: FOLDER has train.source,
train.target, valid.source, ... (docs/summarisation.md says what is in them).

The paper reports ROUGE-1, -2, -L of 29.4, 5.5, 23.4 with beam 5, no 3-gram twice, and answers of
150 to 200 tokens. The rest is what the makers of ELI5 trained with (Fan et al. 2019, their
repository): pre-norm layers, dropout 0.1 everywhere, the decoder's input and output tied, an
inverse square root schedule with peak 1e-4. They leave the size of a batch open. Their network is
trained on further tasks beside; this one answers and does nothing else.

Attention dropout writes the weights of attention out, 2,048 by 2,048 for each head of an encoder's
layer; on TPUs --config.model.attention_dropout=0 takes the fused kernel (docs/performance.md).

Variants: paper; small, the base network on one GPU; demo, functions to docstrings in minutes on two
CPU cores. For a network without LayerDrop add --config.drop.encoder=0 --config.drop.decoder=0.
"""

from configs import architectures, common

_DROPOUTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}


def paper():
    config = common.summarisation("text", architectures.transformer_wmt_en_de_big_t2t)
    config.model.update(_DROPOUTS | {"share_embeddings": "decoder", "dtype": "bfloat16"})
    # A question with its document has some 900 words, an answer 130.
    config.model.max_source_length = 2048
    config.data.update(
        {
            "batch_rows": 56,
            "source_length": 2048,
            "target_length": 512,
            "max_source": 2048,
            "max_target": 512,
            "workers": 4,
        }
    )
    config.train.accumulate = 4
    config.optimizer.update({"schedule": "inverse_sqrt", "rate": 1e-4, "warmup_updates": 4000})
    config.train.steps = 100000
    config.decode.update({"min_length": 150, "max_length_b": 200})
    return config


def small():
    config = paper()
    config.model.update(architectures.transformer_wmt_en_de)
    config.model.update(_DROPOUTS | {"norm": "pre", "share_embeddings": "all", "dtype": "bfloat16"})
    config.data.update(
        {"batch_rows": 32, "source_length": 1024, "target_length": 384, "max_source": 512}
    )
    config.data.max_target = 384
    config.train.accumulate = 1
    config.optimizer.rate = 5e-4
    config.train.steps = 40000
    return config


def get_config(variant=None):
    return common.choose(
        variant, {"paper": paper, "small": small, "demo": lambda: common.summaries_demo(paper())}
    )
