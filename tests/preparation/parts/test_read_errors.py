"""An input that cannot be read at the moment does not cost the parts that are complete."""

import errno

import pytest

from data.base.errors import ReadError
from data.preparation.parts.plan import done
from data.preparation.prepare import prepare_into
from data.sources.formats.compressed import RawFile
from tests.helpers.prepared import TOY, contents
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl


def test_parts_remain_when_a_file_cannot_be_read(tmp_path, small_pieces, monkeypatch):
    path = write_jsonl(tmp_path / "train.jsonl", questions(300))
    config = dataset_config(tmp_path, prepare_workers=1)
    expected = contents(prepare_into(tmp_path / "undisturbed", config, TOY))
    out, read = tmp_path / "out", RawFile.read

    def broken_after_three_parts(file, size=-1):
        if len(list(done(out))) == 3:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, size)

    with monkeypatch.context() as patch:
        patch.setattr(RawFile, "read", broken_after_three_parts)
        with pytest.raises(ReadError, match=rf"{path} cannot be read: Input/output error"):
            prepare_into(out, config, TOY)
    assert sorted(done(out)) == [0, 1, 2]
    assert contents(prepare_into(out, config, TOY)) == expected
