"""Memory that an import takes on a rank: little more than its shard."""

from pathlib import Path

import pytest
import torch
import transformers

from tests.helpers.random_folder import import_on_a_rank, model_of, write_random_folder
from tests.helpers.ranks import run_ranks
from train.models.shapes import parameter_shapes

CASES = [
    # Large, so that the memory of Python itself is small in comparison.
    pytest.param(0.2e9, 512, id="0.2 GB"),
    pytest.param(3e9, 1024, id="3 GB", marks=[pytest.mark.proof, pytest.mark.timeout(1200)]),
]


@pytest.mark.ranks
@pytest.mark.parametrize(("n_bytes", "d_model"), CASES)
def test_a_rank_needs_its_shard_and_two_tensors(tmp_path: Path, n_bytes: float, d_model: int) -> None:
    model = model_of(n_bytes, d_model)
    sizes = [4 * torch.Size(shape).numel() for shape in parameter_shapes(model).values()]
    write_random_folder(tmp_path / "stock", model)
    ids, labels = torch.randint(0, model.vocab_size, (2, 2, 64), generator=torch.Generator().manual_seed(1))
    ranks = run_ranks(import_on_a_rank, 2, str(tmp_path / "stock"), ids, labels, timeout=1000)
    for peak, shard, _ in ranks:
        print(f"peak {peak / 1e6:.0f} MB, shard {shard / 1e6:.0f} MB, largest tensor {max(sizes) / 1e6:.0f} MB")
        assert shard < 0.52 * sum(sizes)
        assert peak < shard + 2 * max(sizes)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock").eval()
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(stock(ids).logits.flatten(0, 1), labels.flatten()).item()
    assert [loss for _, _, loss in ranks] == pytest.approx([expected] * 2, rel=1e-5)
