"""Run folders of earlier versions: config.json brought up to date, one step at a time.

config.json has the number of its version. A change that adds, renames or removes a key adds one
function here, which says what a run of the version before meant; nothing is ever taken away, so a
run's folder opens for ever. Files without a number are of version 1.
"""

import copy
from collections.abc import Mapping


def _to_version_2(config):
    """Adds nested training, which no run did, and the tokenizer of ROUGE: the library's own."""
    drop = config["drop"]
    drop |= {"method": "layerdrop", "sets": "spread", "draws": 1, "smallest": False}
    drop |= {"together": False, "share": 0.5, "teach": 0.5}
    drop |= {f"{stack}_depths": "" for stack in ("encoder", "decoder") if stack in drop}
    if config["task"] == "summarisation":
        config["evaluate"] = {"rouge_tokenizer": "porter"}


def _to_version_3(config):
    """Adds row groups: all rows of a micro-batch had one draw."""
    config["drop"]["row_groups"] = 1


def _to_version_4(config):
    """Adds what a language model's layers are made of; they were the reference's."""
    model = config["model"]
    if "adaptive_cutoffs" in model:  # whatever its task is called
        model |= {"norm_type": "layer", "norm_epsilon": 1e-5, "biases": "all", "qk_norm": False}
        model |= {"kv_heads": 0, "head_dim": 0, "rope_theta": 10000.0, "scale_embeddings": True}


def _to_version_5(config):
    """Adds exit maps, which no network had, the tracker, TensorBoard, and a family: RoBERTa's."""
    config["model"]["exit_maps"] = False
    config["train"]["tracker"] = "tensorboard"
    if "num_classes" in config["model"]:
        config["model"] |= {"norm_epsilon": 1e-5, "family": "roberta"}


def _to_version_6(config):
    """Adds drafts, which no decoding had."""
    if "decode" in config:
        config["decode"] |= {"draft": "", "draft_tokens": 4}


def _to_version_7(config):
    """Adds exits, through which no token left, and no loss trained."""
    config["drop"] |= {"exit_loss": "", "exit_scale": 0.1}
    if "decode" in config:
        config["decode"] |= {"exit": "", "exit_depths": ""}


def _to_version_8(config):
    """Adds what BART does otherwise: encoder-decoders scaled embeddings, and had no norm there."""
    if "share_embeddings" in config["model"]:
        config["model"] |= {"scale_embeddings": True, "embedding_norm": False}


def _to_version_9(config):
    """Adds buckets of length: all batches of labelled text had one."""
    if "max_examples" in config["data"]:
        config["data"]["buckets"] = ""


def _to_version_10(config):
    """Adds how attention is computed, by the device, and a limit to a language model's text."""
    config["model"]["attention"] = "auto"
    if config["task"] == "language_modelling":
        config["data"]["max_blocks"] = 0


def _to_version_11(config):
    """Adds the mesh, which split rows alone, and what moments are stored as, which was float32."""
    config["train"]["mesh"] = ""
    config["optimizer"]["moments"] = "float32"


def _to_version_12(config):
    """Adds the mean rates that learned scores depend on: there was one."""
    config["drop"]["score_rates"] = ""


def _to_version_13(config):
    """Adds the key for weights of 8 bits, which no decoding had."""
    if "decode" in config:
        config["decode"]["quantize"] = ""


def _to_version_14(config):
    """Adds where exit maps lie: in front of the last norm."""
    config["model"]["exit_place"] = "before_norm"


STEPS = (
    *(_to_version_2, _to_version_3, _to_version_4, _to_version_5),
    *(_to_version_6, _to_version_7, _to_version_8, _to_version_9, _to_version_10),
    *(_to_version_11, _to_version_12, _to_version_13, _to_version_14),
)
VERSION = len(STEPS) + 1


def stamp(config: Mapping) -> dict:
    """Adds the version of its keys to a config, as config.json holds it."""
    return {"version": VERSION, **config}


def upgrade(config: Mapping, where) -> dict:
    """Brings what a config.json holds up to date.

    Args:
      config: what it holds.
      where: its path, for errors.

    Returns:
      the config, without its version.

    Raises:
      ValueError: a version that does not exist yet, or a config that lacks what its version has.
    """
    config = copy.deepcopy(dict(config))
    version = config.pop("version", 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"{where} has version {version!r}, and this is version {VERSION}: the run was written "
            "by a newer layerdrop-jax; install that one, or a newer one"
        )
    for number, step in enumerate(STEPS[version - 1 :], version + 1):
        try:
            step(config)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where} cannot be brought from version {version} to {number}: it lacks {error}"
            ) from error
    return config
