from importlib.metadata import version

from data.base.versions import STREAMING, installed_versions


def test_streaming_is_recorded_for_either_distribution():
    found = installed_versions((*STREAMING, "torch", "never-published"))
    assert found["torch"] == version("torch")
    assert found.keys() & set(STREAMING)
    assert found.keys() - set(STREAMING) == {"python", "torch"}
