"""Searches for other settings of a run on the same GPUs: settings with which the run fits, and those that are predicted
to be the fastest.

Every candidate is a copy of the config with some keys changed, and passes the same checks as the config.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

from data.base.errors import ConfigError
from train.config.ranks import check_kernel_sizes, check_world_size, train_microbatch_rows
from train.config.schema import FSDPConfig, TrainConfig
from train.models.flops import Flops, Recompute
from train.planning.cluster.machines import Cluster
from train.planning.cluster.step_time import StepTime, predict, recompute_policy, run_flops
from train.planning.peak import memory_parts
from train.planning.traffic import traffic

_POLICIES: tuple[Recompute, ...] = ("none", "selective", "block")
_POWERS = 4
"""The search tries microbatches of 1, 2, 4 and 8 rows, and the microbatch size of the config."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings of a run, and the predicted time of a step."""

    config: TrainConfig
    changes: tuple[str, ...]
    """Changes to the original config, as command-line overrides."""
    step: StepTime


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that the search varies."""

    replicas: int
    expert_ranks: int
    rows: int
    """Rows per microbatch."""
    recompute: Recompute
    moe_recompute: bool

    @classmethod
    def of(cls, config: TrainConfig, ranks: int) -> "Settings":
        fsdp = config.fsdp_config or FSDPConfig()
        return cls(
            replicas=fsdp.data_parallel_replicate_degree or 1,
            expert_ranks=fsdp.expert_parallel_degree,
            rows=train_microbatch_rows(config, ranks),
            recompute=recompute_policy(config),
            moe_recompute=config.model.ffn_config.moe_recompute,
        )

    def changes(self, config: TrainConfig, ranks: int) -> tuple[str, ...]:
        """The overrides that change the config to these settings: one string per setting; all keys that concern
        sharding are in a single string."""
        own, found = Settings.of(config, ranks), []
        if config.fsdp_config is None:
            found.append("fsdp_config={}")
        if self.replicas != own.replicas:
            hybrid = "fsdp_config.sharding_strategy=HYBRID_SHARD fsdp_config.data_parallel_replicate_degree="
            full = "fsdp_config.sharding_strategy=FULL_SHARD fsdp_config.data_parallel_replicate_degree=null"
            found.append(full if self.replicas == 1 else f"{hybrid}{self.replicas}")
        for key, mine, its in (
            ("fsdp_config.expert_parallel_degree", self.expert_ranks, own.expert_ranks),
            ("device_train_microbatch_size", self.rows, own.rows),
            ("fsdp_config.activation_checkpointing", self.recompute, own.recompute),
            ("model.ffn_config.moe_recompute", str(self.moe_recompute).lower(), str(own.moe_recompute).lower()),
        ):
            if mine != its:
                found.append(f"{key}={mine}")
        return tuple(found)

    def apply(self, config: TrainConfig) -> TrainConfig:
        """Return the config with these settings. Raises ConfigError if the config's rules reject them."""
        fsdp = replace(
            config.fsdp_config or FSDPConfig(),
            sharding_strategy="FULL_SHARD" if self.replicas == 1 else "HYBRID_SHARD",
            data_parallel_replicate_degree=None if self.replicas == 1 else self.replicas,
            expert_parallel_degree=self.expert_ranks,
            activation_checkpointing=self.recompute,
        )
        model, ffn = config.model, config.model.ffn_config
        if ffn.moe_recompute != self.moe_recompute:
            model = replace(model, ffn_config=replace(ffn, moe_recompute=self.moe_recompute))
        return replace(config, fsdp_config=fsdp, model=model, device_train_microbatch_size=self.rows)


def candidates(config: TrainConfig, cluster: Cluster) -> list[Candidate]:
    """All candidates that pass the config's checks, fastest first. They may or may not fit on the GPUs."""
    found, flops_of = [], dict[tuple[Recompute, bool], list[Flops]]()
    for settings, changed in _changed(config, cluster):
        policy = settings.recompute, settings.moe_recompute
        if policy not in flops_of:
            flops_of[policy] = run_flops(changed)
        step = predict(changed, cluster, flops_of[policy], traffic(changed, cluster.ranks))
        found.append(Candidate(config=changed, changes=settings.changes(config, cluster.ranks), step=step))
    return sorted(found, key=lambda each: (each.step.total, len(each.changes)))


def fits(config: TrainConfig, cluster: Cluster) -> bool:
    """Whether each GPU of the cluster has at least the memory that a rank is predicted to need."""
    assert cluster.gpu is not None, "a search requires a known GPU"
    return memory_parts(config, cluster.ranks, gpu=True).total <= cluster.gpu.n_bytes


def fastest(found: Iterable[Candidate], cluster: Cluster, most: int) -> list[Candidate]:
    """Return up to `most` candidates that fit, fastest first. `found` must be sorted by predicted time, fastest
    first."""
    return list(islice((each for each in found if fits(each.config, cluster)), most))


def smallest_changes(config: TrainConfig, cluster: Cluster, found: Iterable[Candidate], most: int) -> list[Candidate]:
    """Of the candidates that fit, select those with the fewest changes to the config, and return up to `most` of these,
    fastest first. In addition to the candidates in `found`, try some changes that the search does not cover."""
    changed = [each for each in [*found, *_other_changes(config, cluster)] if each.changes]
    for number in sorted({len(each.changes) for each in changed}):
        level = sorted((each for each in changed if len(each.changes) == number), key=lambda each: each.step.total)
        if enough := fastest(level, cluster, most):
            return enough
    return []


def least_nodes(config: TrainConfig, cluster: Cluster) -> int | None:
    """The smallest number of nodes on which the config fits unchanged. Multiples of the cluster's number of nodes are
    tried, up to 64 times this number. Returns None if the config does not fit on any of these numbers of nodes, or if
    the rows cannot be divided among the ranks."""
    for factor in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        larger = replace(cluster, nodes=cluster.nodes * factor)
        try:
            check_world_size(config, larger.ranks)
        except ConfigError:
            continue
        if fits(config, larger):
            return larger.nodes
    return None


def _changed(config: TrainConfig, cluster: Cluster) -> Iterator[tuple[Settings, TrainConfig]]:
    """Yield all settings to try, each with the changed config. With data-parallel replicas, each replica consists of
    whole nodes or of a single rank, because links within a node are faster."""
    ranks = cluster.ranks
    own = Settings.of(config, ranks)
    rows = config.global_train_batch_size // ranks
    powers = [2**power for power in range(_POWERS) if 2**power <= rows]
    experts = config.model.ffn_config.moe_num_experts
    for replicas, degree, size, recompute, moe_recompute in product(
        sorted({own.replicas, *_divisors(cluster.nodes), ranks}),
        _divisors(experts),
        sorted({own.rows, *powers}),
        _POLICIES,
        (False, True),
    ):
        if (ranks // replicas) % degree:
            continue
        settings = Settings(
            replicas=replicas, expert_ranks=degree, rows=size, recompute=recompute, moe_recompute=moe_recompute
        )
        try:
            changed = settings.apply(config)
            check_world_size(changed, ranks)
            check_kernel_sizes(changed, ranks)
        except ConfigError:
            continue
        yield settings, changed


def _other_changes(config: TrainConfig, cluster: Cluster) -> Iterator[Candidate]:
    """Yield changes to single keys that are not part of the search, such as another optimizer."""
    fsdp, optimizer, lora = config.fsdp_config, config.optimizer, config.lora
    changes: dict[str, dict[str, object]] = {}
    if optimizer.name in ("adamw", "decoupled_adamw"):
        changes["optimizer.name=decoupled_lionw"] = {"optimizer": replace(optimizer, name="decoupled_lionw")}
    if lora is not None and lora.base_dtype != "nf4" and config.model.d_model % 64 == 0:
        changes["lora.base_dtype=nf4"] = {"lora": replace(lora, base_dtype="nf4")}
    if fsdp is not None and not fsdp.activation_cpu_offload:
        offloading = replace(fsdp, activation_cpu_offload=True)
        changes["fsdp_config.activation_cpu_offload=true"] = {"fsdp_config": offloading}
    if fsdp is not None and not fsdp.reshard_after_forward:
        changes["fsdp_config.reshard_after_forward=true"] = {"fsdp_config": replace(fsdp, reshard_after_forward=True)}
    for change, values in changes.items():
        changed = replace(config, **values)  # pyright: ignore[reportArgumentType]
        step = predict(changed, cluster, run_flops(changed), traffic(changed, cluster.ranks))
        yield Candidate(config=changed, changes=(change,), step=step)


def _divisors(number: int) -> list[int]:
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})
