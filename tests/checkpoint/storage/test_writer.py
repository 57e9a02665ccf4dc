from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from train.checkpoint.storage.unpickle import read_metadata
from train.checkpoint.storage.writer import HashingWriter


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_small_tensors_are_written_together_at_the_beginning(tmp_path: Path) -> None:
    sizes = {"large": 999, "small": 1}
    tensors = {f"{number} {kind}": torch.zeros(size) for number in range(4) for kind, size in sizes.items()}
    writer = HashingWriter(tmp_path)
    save(tensors, storage_writer=writer, no_dist=True)
    metadata = read_metadata((tmp_path / ".metadata").read_bytes(), tmp_path, ".metadata")
    places = sorted((info.offset, index.fqn) for index, info in metadata.storage_data.items())
    assert [name[2:] for _, name in places] == ["small"] * 4 + ["large"] * 4
    assert writer.digests.keys() == {".metadata", "__0_0.distcp"}
