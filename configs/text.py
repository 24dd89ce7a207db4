"""Your own parallel text: a folder with train.en, train.de, valid.en, ..., plain or gzip.

  python launch.py --config=configs/text.py:tiny --workdir=RUN --config.data.path=FOLDER \\
      --config.data.source=en --config.data.target=de

Variants: paper, the 12 + 6 layers of the paper's translation model; small, the base network; tiny,
6 + 6 layers that train in minutes on two CPU cores on a few thousand pairs, and take their other
sizes from the text; demo, the same commands on CLDR phrases, without any text of yours.
"""

from configs import common, wmt


def _own_text(config):
    config.data.dataset = "text"
    return config


def tiny():
    config = _own_text(common.demo(wmt.paper()))
    config.model.update(
        {
            "encoder_layers": 6,
            "embed_dim": 96,
            "ffn_dim": 192,
            "dropout": 0.1,
            "max_source_length": 256,
            "max_target_length": 256,
        }
    )
    common.from_text(config)
    return config


def get_config(variant=None):
    return common.choose(
        variant,
        {
            "paper": lambda: _own_text(wmt.paper()),
            "small": lambda: _own_text(wmt.small()),
            "tiny": tiny,
            "demo": wmt.demo,
        },
    )
