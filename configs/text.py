"""Your own parallel text: a folder with train.en, train.de, valid.en, ..., plain or gzip.

  python launch.py --config=configs/text.py:small --workdir=RUN --config.data.path=FOLDER \\
      --config.data.source=en --config.data.target=de

Variants: paper, the 12 + 6 layers of the paper's translation model; small, the base network; demo,
the same commands on CLDR phrases, without any text of yours.
"""

from configs import common, wmt


def _own_text(config):
    config.data.dataset = "text"
    return config


def get_config(variant=None):
    return common.choose(
        variant,
        {
            "paper": lambda: _own_text(wmt.paper()),
            "small": lambda: _own_text(wmt.small()),
            "demo": wmt.demo,
        },
    )
