import pytest

from tests import tiny_run


@pytest.fixture(scope="module")
def run(lm_text, tmp_path_factory):
    """The folder of a Llama-like run that was never trained."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    return tiny_run.write_untrained(folder, tiny_run.tiny_llama_config(lm_text))


@pytest.fixture(scope="module")
def changes(lm_text):
    return tiny_run.own_text(lm_text)
