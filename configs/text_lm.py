"""A language model of your own text: a folder with train.txt, valid.txt, test.txt, plain or gzip.

  python launch.py --config=configs/text_lm.py:tiny --workdir=RUN --config.data.path=FOLDER

Variants: paper, the 16 layers of the paper's WikiText-103 model, with its vocabulary of words;
small, the same 512 wide; tiny, 8 layers that train in minutes on two CPU cores, on pieces that keep
text exactly, and take their other sizes from the text; demo, the same commands on the source of
Python's standard library, without any text of yours.
"""

from configs import common, wikitext103


def _own_text(config):
    config.data.dataset = "text"
    return config


def tiny():
    config = _own_text(wikitext103.demo())
    config.model.update({"decoder_layers": 8, "adaptive_cutoffs": "", "dropout": 0.1})
    config.evaluate.update({"length": common.FROM_TEXT, "context": common.FROM_TEXT})
    common.from_text(config)
    return config


def get_config(variant=None):
    return common.choose(
        variant,
        {
            "paper": lambda: _own_text(wikitext103.paper()),
            "small": lambda: _own_text(wikitext103.small()),
            "tiny": tiny,
            "demo": wikitext103.demo,
        },
    )
