"""The charts' JavaScript is created once; without a usable cache it is created every time."""

from pathlib import Path

import pytest
import vl_convert

from data.pages.library import library

ESCAPED = 'a("<\\/script>", "<\\!--", "")'


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list with one entry per creation."""
    calls: list[None] = []

    def bundle(snippet: str | None) -> str:
        calls.append(snippet)
        return 'a("</script>", "<!--", "https://vega.github.io/editor/")'

    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    return calls


def test_it_is_made_once(made: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert [library.__wrapped__(), library.__wrapped__()] == [ESCAPED, ESCAPED]
    assert len(made) == 1
    assert len(list((tmp_path / "dropless").iterdir())) == 1


def test_the_library_is_created_without_a_cache(
    made: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.__wrapped__() == ESCAPED
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert library.__wrapped__() == ESCAPED
    assert len(made) == 2
