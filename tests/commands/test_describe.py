"""The parameter table: exact, and without the parameters."""

import re

import pytest

from configs import architectures, roberta, wmt
from layerdrop_jax.commands.describe import describe
from layerdrop_jax.runs.settings import parse


def described(config=wmt.paper, **model):
    """(number of parameters by the name of their module, the lines of the whole text)."""
    config = config().to_dict()
    config["model"] |= model
    lines = describe(parse(config)).splitlines()
    table = lines[1 : lines.index("")]
    counts = {}
    for line in table:
        name, count = re.match(r"(\S+(?:, whole)?) +([\d,]+)", line).groups()
        assert name not in counts
        counts[name] = int(count.replace(",", ""))
    return counts, lines


@pytest.mark.parametrize(
    ("model", "total"),
    [
        (architectures.transformer_wmt_en_de, 60_915_712),
        (architectures.transformer_vaswani_wmt_en_de_big, 209_911_808),
        (architectures.transformer_vaswani_wmt_en_de_big_12_6, 285_489_152),
    ],
)
def test_totals_of_the_reference(model, total):
    counts, _ = described(**(model | {"share_embeddings": "all"}))
    assert counts["total"] == total
    modules = {k: v for k, v in counts.items() if k != "total" and not k.endswith("whole")}
    assert sum(modules.values()) == total
    for side in ("encoder", "decoder"):
        inside = sum(v for k, v in modules.items() if k.startswith(f"{side}."))
        assert counts[f"{side}, whole"] == inside > 0


@pytest.mark.parametrize(
    ("config", "layers", "total"),
    [
        (roberta.paper, 12, 124_696_665),
        (roberta.paper, 6, 82_169_433),
        (roberta.paper, 3, 60_905_817),
        (roberta.large, 24, 355_411_033),
    ],
)
def test_totals_of_roberta(config, layers, total):
    """Of the reference's, which counts one matrix for the input and the output."""
    assert config().model.encoder_layers in (12, 24)
    counts, lines = described(config, encoder_layers=layers)
    assert counts["total"] == total
    assert lines[-1].startswith(f"encoder: {layers} layers, drop rate 0.2 each")


@pytest.mark.parametrize(("sharing", "tables"), [("all", 1), ("decoder", 2), ("none", 3)])
def test_tied_tensors_count_once(sharing, tables):
    counts, _ = described(share_embeddings=sharing)
    named = [v for k, v in counts.items() if k.endswith("embedding") or k == "output"]
    assert named == [32768 * 1024] * tables


def test_nothing_is_allocated():
    # 40 terabytes: were any of it made, this would fail.
    D, F, V, layers = 32768, 131072, 32768, 500
    counts, _ = described(
        embed_dim=D, ffn_dim=F, norm="pre", encoder_layers=layers, decoder_layers=layers
    )
    attention, norm, ffn = 4 * (D * D + D), 2 * D, 2 * D * F + F + D
    assert (
        counts["total"]
        == (
            V * D
            + layers * (attention + 2 * norm + ffn)
            + layers * (2 * attention + 3 * norm + ffn)
        )
        + 2 * norm
    )


def test_rates_and_expected_depth_are_told():
    _, lines = described()
    assert lines[-2:] == [
        "encoder: 12 layers, drop rate 0.2 each, expected depth 9.60",
        "decoder: 6 layers, drop rate 0.2 each, expected depth 4.80",
    ]
    assert any("12x1024x1024" in line for line in lines)  # a shape, the layers first
