"""The specifications of known GPUs, and of other GPUs that a file describes.

Sources: NVIDIA's data sheets for A100, H100, H200, L40S and HGX B200, and the RTX Blackwell whitepaper for the RTX
5090. TFLOPs are for dense GEMMs (without sparsity) in bf16 with fp32 accumulation. The bandwidths of NVLink and PCIe
are for one direction. Memory is the total that nvidia-smi shows, which is less than in the data sheets if ECC uses a
part of it. `network` is not a property of the GPU. It is the value for typical nodes: one port of 400 Gb/s per GPU
(A100: 200 Gb/s; L40S and RTX 5090: 100 Gb/s). This project has not measured these numbers.
"""

from dataclasses import dataclass
from pathlib import Path

from data.base.errors import ConfigError
from data.base.paths import refuse_path, shown
from data.base.sizes import parse_bytes
from data.config.build import build
from data.config.sections import Section
from data.config.suggest import near
from data.config.values import Positive, Size
from train.config.reading.yaml_file import read


@dataclass(frozen=True, kw_only=True)
class Gpu(Section):
    """A GPU and the links of its node."""

    name: str
    """The name that the report shows."""
    capability: Positive
    """Compute capability, such as 9.0."""
    memory: Size
    """Memory of the GPU: a number of bytes, or a size such as 80gb (of 2^30 bytes)."""
    bf16_tflops: Positive
    """Peak throughput of dense bf16 GEMMs, in 10^12 operations per second."""
    fp32_tflops: Positive
    """Peak throughput in fp32 without tensor cores, in 10^12 operations per second. torch does not use tensor cores for
    fp32 unless TF32 is enabled."""
    memory_bandwidth: Positive
    """Memory bandwidth in GB/s (10^9 bytes per second)."""
    node_link: Positive
    """Bandwidth to another GPU of the node, in GB/s for one direction, through NVLink or, if there is no NVLink,
    through PCIe."""
    network: Positive
    """Bandwidth per GPU to other nodes, in GB/s for one direction: the GPU's share of the bandwidth of the node's
    network ports."""

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return parse_bytes(self.memory)

    def peak_flops(self, precision: str) -> float:
        """Peak number of operations per second for a run with this `precision`."""
        return 1e12 * (self.bf16_tflops if precision == "amp_bf16" else self.fp32_tflops)


GPUS = {
    "a100_40": Gpu(
        name="A100 SXM 40 GB",
        capability=8.0,
        memory=40960 * 2**20,
        bf16_tflops=312.0,
        fp32_tflops=19.5,
        memory_bandwidth=1555.0,
        node_link=300.0,
        network=25.0,
    ),
    "a100": Gpu(
        name="A100 SXM 80 GB",
        capability=8.0,
        memory=81920 * 2**20,
        bf16_tflops=312.0,
        fp32_tflops=19.5,
        memory_bandwidth=2039.0,
        node_link=300.0,
        network=25.0,
    ),
    "h100": Gpu(
        name="H100 SXM 80 GB",
        capability=9.0,
        memory=81559 * 2**20,
        bf16_tflops=989.0,
        fp32_tflops=67.0,
        memory_bandwidth=3350.0,
        node_link=450.0,
        network=50.0,
    ),
    "h200": Gpu(
        name="H200 SXM 141 GB",
        capability=9.0,
        memory=143771 * 2**20,
        bf16_tflops=989.0,
        fp32_tflops=67.0,
        memory_bandwidth=4800.0,
        node_link=450.0,
        network=50.0,
    ),
    "b200": Gpu(
        name="B200 SXM 180 GB",
        capability=10.0,
        memory=183359 * 2**20,
        bf16_tflops=2250.0,
        fp32_tflops=80.0,
        memory_bandwidth=8000.0,
        node_link=900.0,
        network=50.0,
    ),
    "l40s": Gpu(
        name="L40S 48 GB",
        capability=8.9,
        memory=46068 * 2**20,
        bf16_tflops=362.0,
        fp32_tflops=91.6,
        memory_bandwidth=864.0,
        node_link=32.0,
        network=12.5,
    ),
    "rtx5090": Gpu(
        name="RTX 5090 32 GB",
        capability=12.0,
        memory=32607 * 2**20,
        bf16_tflops=209.5,
        fp32_tflops=104.8,
        memory_bandwidth=1792.0,
        node_link=64.0,
        network=12.5,
    ),
}
"""The known GPUs by the names that --gpu accepts. For other GPUs, see find_gpu."""

_CUDA_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100_40",
    "NVIDIA A100-PCIE-40GB": "a100_40",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 5090": "rtx5090",
}
"""Maps the GPU names that CUDA reports to the keys of GPUS. PCIe variants have the same peak throughput, but different
links between GPUs."""


def known_gpu(cuda_name: str) -> Gpu | None:
    """The GPU for which torch.cuda.get_device_name returns this name, or None if the GPU is unknown."""
    name = _CUDA_NAMES.get(cuda_name)
    return GPUS[name] if name is not None else None


def find_gpu(name: str) -> Gpu:
    """The GPU with this name in GPUS or, if the name is the path of a YAML file with the fields of Gpu as keys, the GPU
    that the file describes. Raises ConfigError if there is no such GPU."""
    refuse_path("--gpu", name)
    if Path(name).suffix in (".yaml", ".yml"):
        written = read(name)
        try:
            return build(Gpu, written.tree)
        except ConfigError as error:
            raise written.placed(error) from None
    key = name.lower().replace(" ", "").replace("-", "_")
    if key not in GPUS:
        raise ConfigError(
            f"--gpu is {shown(name)}, but it must be one of {', '.join(GPUS)}, or a .yaml file{near(name, GPUS)}"
        )
    return GPUS[key]
