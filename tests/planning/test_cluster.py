from dataclasses import replace
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.small_config import load
from train.config.load import read_config
from train.planning.cluster.gpus import GPUS, find_gpu
from train.planning.cluster.machines import Cluster, between_nodes, check_gpu, make_cluster
from train.planning.cluster.search import candidates, fastest, fits, least_nodes, smallest_changes
from train.planning.cluster.step_time import Assumptions, predict, run_flops
from train.planning.traffic import Kind, Traffic, traffic
from train.planning.units import MeshDim

YAMLS = Path(__file__).parents[2] / "yamls" / "finetune"
NODE = Cluster(nodes=1, gpus=8, gpu=GPUS["h100"])
NODES = replace(NODE, nodes=8)


def message(call, *args: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_gpu_by_name_and_names_near_it() -> None:
    assert find_gpu("H100") is find_gpu("h100") is GPUS["h100"]
    assert find_gpu("A100-40") is GPUS["a100_40"]
    assert message(find_gpu, "h1000").endswith("; did you mean h100?")
    assert "a100_40, a100, h100, h200, b200, l40s, rtx5090" in message(find_gpu, "tpu")


def test_a_gpu_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mi300x.yaml"
    good = "{name: MI300X, capability: 9.4, memory: 192gb, bf16_tflops: 1307.0, fp32_tflops: 163.4, "
    file.write_text(good + "memory_bandwidth: 5300.0, node_link: 448.0, network: 50.0}")
    assert find_gpu(str(file)).n_bytes == 192 * 2**30
    file.write_text(good + "memory_bandwidth: 5300.0, node_link: 448.0, networks: 50.0}")
    with pytest.raises(ConfigError, match=r"networks is not a key; did you mean network\?"):
        find_gpu(str(file))
    file.write_text(good + "memory_bandwidth: -1.0, node_link: 448.0, network: 50.0}")
    assert message(find_gpu, str(file)) == f"{file}:1: memory_bandwidth is -1.0, but it must be above 0"
    file.write_text(good + "memory_bandwidth: 1.0, node_link: 448.0}")
    assert message(find_gpu, str(file)) == f"{file}: network is missing"
    file.write_bytes(b"name: \xff")
    assert str(file) in message(find_gpu, str(file))
    assert "does not exist" in message(find_gpu, str(tmp_path / "none.yaml"))


def test_how_many_ranks_there_are() -> None:
    assert (make_cluster(None, None, None).ranks, make_cluster(2, None, None).ranks) == (1, 2)
    assert (make_cluster(2, None, "h100").ranks, make_cluster(2, 4, "h100").ranks) == (16, 8)
    assert message(make_cluster, 0, None, None) == "--nodes is 0, but it must be at least 1"
    assert message(make_cluster, None, -1, None).startswith("--gpus is -1")


@pytest.mark.parametrize(
    ("kind", "size", "stride", "far"),
    [
        ("all-gather", 64, 1, 1 / 8),  # one of a node's 8 ranks sends to the next node
        ("all-gather", 8, 1, 0),
        ("all-reduce", 8, 8, 1),  # each rank is on a different node
        ("all-gather", 16, 4, 1 / 2),
        ("all-to-all", 8, 1, 0),
        ("all-to-all", 16, 1, 8 / 15),
    ],
)
def test_traffic_between_nodes(kind: Kind, size: int, stride: int, far: float) -> None:
    one = Traffic(kind=kind, dim=MeshDim(name="x", size=size, stride=stride), n_bytes=1.0)
    assert between_nodes(one, 8) == pytest.approx(far)


def test_a_run_for_a_cpu_has_no_gpu(tmp_path: Path) -> None:
    assert message(check_gpu, load(tmp_path, "device=cpu"), GPUS["a100"]).startswith("device is cpu, but --gpu A100")


def test_torchs_grouped_gemm_needs_its_gpu_and_precision(tmp_path: Path) -> None:
    grouped = load(tmp_path, "model.ffn_config.moe_impl=grouped_mm")
    check_gpu(grouped, GPUS["a100"])
    older = replace(GPUS["a100"], capability=7.0)
    assert "requires a GPU with compute capability 8.0" in message(check_gpu, grouped, older)
    assert "precision is fp32" in message(check_gpu, replace(grouped, precision="fp32"), GPUS["a100"])


def test_a_step_is_its_parts_and_follows_from_the_gpu() -> None:
    config = read_config(str(YAMLS / "dbrx.yaml"))
    flops, sent, assumed = run_flops(config), traffic(config, 64), Assumptions()
    step = predict(config, NODES, flops, sent)
    experts = next(each for each in flops if each.part == "experts")
    assert step.experts == pytest.approx(4096 * experts.total / (989e12 * assumed.experts))
    # All gathers and reductions run at the speed of the network, and overlap with 9 tenths of the computation.
    network = sum(between_nodes(each, 8) for each in sent) / (50e9 * assumed.link)
    assert step.inside == 0
    assert step.between == pytest.approx(network - assumed.overlap * step.computation)
    assert step.hidden + step.between == pytest.approx(network)
    fast = replace(NODES, gpu=replace(GPUS["h100"], network=5000.0))
    assert predict(config, fast, flops, sent).total < step.total


def test_every_setting_found_fits_and_follows_from_its_changes() -> None:
    path = str(YAMLS / "dbrx.yaml")
    config = read_config(path, ["model.preset=35b"])
    found = fastest(candidates(config, NODES), NODES, most=20)
    assert len(found) == 20
    assert [each.step.total for each in found] == sorted(each.step.total for each in found)
    assert len({each.changes for each in found}) == 20
    for each in found[::7]:
        overrides = [change for line in each.changes for change in line.split()]
        again = read_config(path, ["model.preset=35b", *overrides])
        assert predict(again, NODES, run_flops(again), traffic(again, 64)) == each.step
        assert fits(again, NODES)


def test_what_does_not_fit_gets_the_smallest_changes() -> None:
    config = read_config(str(YAMLS / "dbrx.yaml"), ["fsdp_config.activation_checkpointing=none"])
    assert not fits(config, NODES)
    changes = smallest_changes(config, NODES, candidates(config, NODES), most=20)
    assert all(len(each.changes) == 1 and fits(each.config, NODES) for each in changes)
    assert ("fsdp_config.activation_checkpointing=block",) in [each.changes for each in changes]


def test_the_number_of_nodes_that_is_sufficient() -> None:
    config = read_config(str(YAMLS / "dbrx.yaml"))
    nodes = least_nodes(config, NODE)
    assert nodes is not None
    assert fits(config, replace(NODE, nodes=nodes))
    assert not fits(config, NODE)
    assert least_nodes(config, replace(NODE, gpu=GPUS["rtx5090"])) is None
