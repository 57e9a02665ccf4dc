from importlib.metadata import version

from data.base.versions import STREAMING, installed_versions


def test_streaming_is_noted_from_whichever_distribution_it_comes():
    found = installed_versions((*STREAMING, "torch", "never-published"))
    assert found["torch"] == version("torch")
    assert found.keys() & set(STREAMING)
    assert found.keys() - set(STREAMING) == {"python", "torch"}
