"""GPUs that a run can be planned for, as their vendor describes them, and files that describe others.

Sources: NVIDIA's data sheets of A100, H100, H200, L40S and HGX B200, and for the RTX 5090 the RTX Blackwell whitepaper.
TFLOPs are dense (without sparsity), bf16 with fp32 accumulation; NVLink and PCIe in one direction. Memory is the total
that nvidia-smi shows, less than the data sheets' where ECC takes a part of it. `network` is no property of the GPU: it
is what nodes usually have, one port of 400 Gb/s a GPU (A100: 200 Gb/s; L40S and RTX 5090: 100 Gb/s). No number was
measured by us.
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
    """A GPU and how its node connects it."""

    name: str
    """For the report."""
    capability: Positive
    """Compute capability, such as 9.0."""
    memory: Size
    """Of the GPU: bytes, or such as 80gb (of 2^30 bytes)."""
    bf16_tflops: Positive
    """Peak of dense bf16 GEMMs, in 10^12 operations a second."""
    fp32_tflops: Positive
    """Peak in fp32 without tensor cores, which torch does not use for fp32 unless it is allowed TF32."""
    memory_bandwidth: Positive
    """Of its memory, in GB/s (10^9 bytes a second)."""
    node_link: Positive
    """To another GPU of its node, in GB/s and one direction: NVLink, else PCIe."""
    network: Positive
    """To another node, in GB/s and one direction, for each GPU: its share of the node's network ports."""

    @property
    def n_bytes(self) -> int:
        """Of memory."""
        return parse_bytes(self.memory)

    def peak_flops(self, precision: str) -> float:
        """Operations a second, at most, of a run with this `precision`."""
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
"""By the names of --gpu. Others: see read_gpu."""

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
"""What CUDA calls the GPUs, to their names in GPUS. Those with PCIe have the same peaks; their links differ."""


def known_gpu(cuda_name: str) -> Gpu | None:
    """The GPU that torch.cuda.get_device_name names so; None where its peaks are not known."""
    name = _CUDA_NAMES.get(cuda_name)
    return GPUS[name] if name is not None else None


def find_gpu(name: str) -> Gpu:
    """That of GPUS, or of a YAML file whose keys are Gpu's fields. Raises ConfigError."""
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
