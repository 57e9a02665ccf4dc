"""The rules by which tests/project/test_commands.py tests each command of the documentation."""

import re
from dataclasses import dataclass, field

from tests.helpers.run_command import needs_shell, program_of

TINY = {
    "max_duration": "2ba",
    "save_interval": "1ba",
    "eval_interval": "2ba",
    "eval_subset_num_batches": "1",
    "scheduler.t_warmup": "0ba",
    "global_train_batch_size": "2",
    "device_train_microbatch_size": "1",
}
"""The shortest run with two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Commands that run here in a shorter form."""

    pattern: str
    """Matches the whole command."""
    values: dict[str, str] = field(default_factory=dict)
    """Values of configuration keys that replace the values in the command."""
    more: tuple[str, ...] = ()
    """Words that are appended to the command."""
    code: int = 0
    """The expected exit code."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Commands that the tests do not run. Only their arguments are parsed."""

    pattern: str
    reason: str
    test: str = ""
    """The test that runs the same program with the same flags, as FILE::NAME."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Commands that take minutes, and are run by `make proof`."""

    pattern: str


GPUS = "needs the GPUs of the configuration"
NETWORK = "needs a network"
CLUSTER = "needs a cluster"

RULES: list[Run | Elsewhere | Proof] = [
    # Set-up.
    Elsewhere(pattern=r"source \.venv/bin/activate", reason="the tests run in this environment"),
    Elsewhere(pattern=r"sudo apt-get install .*", reason=NETWORK),
    Elsewhere(pattern=r"make install( TORCH_BACKEND=\w+)?", reason="installs the environment of the tests"),
    Elsewhere(pattern=r"make test( TORCH_BACKEND=\w+)?", reason="runs this test"),
    Elsewhere(pattern=r"make test-(minute|fast)", reason="runs tests"),
    Elsewhere(pattern=r"(\.venv/bin/)?uv pip install .*", reason=NETWORK),
    Elsewhere(pattern=r"python -m pytest .*", reason="runs tests"),
    Proof(pattern=r"make (quickstart|lora)( TORCH_BACKEND=\w+)?"),
    # Development.
    Elsewhere(
        pattern=r"make docs",
        reason="builds into the repository",
        test="tests/project/test_site.py::test_links_and_images_are_on_the_site",
    ),
    Elsewhere(
        pattern=r"python scripts/dev/prose\.py .*",
        reason="lists the files that git tracks",
        test="tests/project/test_english.py::test_a_sample_is_drawn_by_its_seed_alone",
    ),
    Elsewhere(
        pattern=r"python scripts/dev/preset_table\.py --write",
        reason="writes into the pages",
        test="tests/project/test_yamls.py::test_tables_of_a_page_are_those_of_the_planner",
    ),
    Elsewhere(
        pattern=r"python scripts/dev/package_tables\.py",
        reason="writes into the pages",
        test="tests/project/test_architecture.py::test_the_tables_are_generated_from_the_docstrings",
    ),
    # Data.
    Run(pattern=r"python scripts/dev/make_stdlib_data\.py", more=("--modules", "30")),
    Run(pattern=r"python scripts/dev/make_curation_data\.py", more=("--limit", "16")),
    Run(pattern=r"python scripts/inspect_data\.py .*/bad\.jsonl", code=2),
    Elsewhere(
        pattern=r"python scripts/curate\.py yamls/curation/stdlib\.yaml",
        reason="starts Java",
        test="tests/curation/test_example.py::test_the_example_is_curated_and_trained",
    ),
    Elsewhere(pattern=r"python scripts/curate\.py yamls/curation/web\.yaml .*", reason=CLUSTER),
    Elsewhere(
        pattern=r"python scripts/dev/curation_effect\.py",
        reason="takes 15 minutes",
        test="tests/curation/test_example.py::test_the_example_is_curated_and_trained",
    ),
    Elsewhere(
        pattern=r"python scripts/convert_text_to_mds\.py .* --engine spark .*",
        reason="starts Java",
        test="tests/preparation/engines/test_spark.py::test_all_engines_write_the_same_bytes_even_if_tasks_fail",
    ),
    # Training on a CPU.
    Run(
        pattern=r"(composer -n 2|python) train\.py yamls/finetune/dbrx_tiny(_lora)?\.yaml (?!.*(profile|=2ba)).*",
        values=TINY,
    ),
    Run(
        pattern=r"composer -n 2 train\.py yamls/finetune/dbrx_tiny\.yaml .* save_interval=2ba .*",
        values={key: value for key, value in TINY.items() if key not in ("max_duration", "save_interval")},
    ),
    Run(
        pattern=r"python train\.py yamls/finetune/dbrx_tiny\.yaml .*profile=.*",
        values=TINY | {"max_duration": "4ba", "profile": "{step: 2, steps: 2}"},
    ),
    Run(
        pattern=r"composer -n 2 train\.py yamls/pretrain/dbrx_tiny_curriculum\.yaml",
        values=TINY
        | {
            "train_loader.stages": "[{name: broad, duration: 1ba, proportions: {code: 0.8, comments: 0.2}}, "
            "{name: anneal, duration: 1ba, proportions: {docstrings: 0.9, code: 0.1}, lr_scale: {from: 1.0, to: 0.1}}]"
        },
    ),
    Elsewhere(
        pattern=r"composer -n 2 scripts/replay_batch\.py .*",
        reason="needs a run with an incident",
        test="tests/run/test_replay.py::test_a_batch_is_recomputed_bit_for_bit",
    ),
    Run(pattern=r"python scripts/checkpoint\.py diff .*", code=1),  # the checkpoints differ
    # Evaluation.
    Elsewhere(
        pattern=r"python scripts/evaluate\.py .* --tasks my_tasks/.*",
        reason="imports lm-eval, which takes 10 seconds",
        test="tests/generation/test_evaluate.py::test_the_script_without_a_network",
    ),
    Elsewhere(pattern=r"python scripts/evaluate\.py .* --tasks arc_easy .*", reason=NETWORK),
    # Planning.
    Elsewhere(
        pattern=r"python scripts/plan\.py .* --simulate",
        reason="takes 10 seconds",
        test="tests/simulation/test_simulate.py::test_plan_script_simulates",
    ),
    # Serving.
    Elsewhere(pattern=r"pip install 'transformers\[serving\]'", reason=NETWORK),
    Elsewhere(
        pattern=r"(transformers serve|curl -s http://127\.0\.0\.1:8000/v1/completions) .*",
        reason="the server runs until it is stopped",
        test="tests/scripts/test_worked_example.py::test_the_short_form_runs_every_step",
    ),
    Elsewhere(
        pattern=r"(vllm serve|python -m sglang\.launch_server|python convert_hf_to_gguf\.py|llama-server) .*",
        reason="is another project's program",
    ),
    # GPUs and clusters.
    Elsewhere(pattern=r"composer (-n 8|--nproc 8|train\.py) .*", reason=GPUS),
    Elsewhere(pattern=r"composer -n 2 train\.py yamls/finetune/dbrx_qlora\.yaml .*", reason=GPUS),
    Elsewhere(pattern=r"srun python scripts/doctor\.py .*", reason=CLUSTER),
    Elsewhere(pattern=r"sbatch .*", reason=CLUSTER),
    Elsewhere(pattern=r"docker (build|run) .*", reason="needs Docker and a network"),
    Elsewhere(pattern=r"kubectl (apply|create) .*", reason=CLUSTER),
    Elsewhere(pattern=r"scripts/dev/build_megablocks\.sh( --check)?", reason="needs a CUDA toolkit and a network"),
    Elsewhere(pattern=r"scripts/dev/gpu_run\.sh( --parts moe step)?", reason="needs a GPU"),
    Elsewhere(
        pattern=r"scripts/dev/gpu_run\.sh --tiny",
        reason="takes half a minute",
        test="tests/scripts/test_gpu_run.py::test_it_runs_on_the_cpu_at_tiny_sizes",
    ),
]

SHELL = {"cat", "cp", "jq", "ls", "mkdir", "head", "tail", "wc", "grep", "scripts/dev/gpu_run.sh"}
"""Programs that run in bash. Python also runs in bash if its output is redirected."""

NEEDED: dict[str, tuple[str, ...]] = {
    "docs/evaluation.md": ("runs/mine",),
    "docs/generation.md": ("runs/mine",),
    "docs/llm-foundry.md": ("my_llm_foundry.yaml",),
    "docs/metrics.md": ("runs/mine",),
    "docs/report.md": ("runs/mine", "runs/other"),
    "docs/weights.md": ("runs/mine/checkpoints",),
}
"""Runs and files that a page expects, in addition to the result of the quickstart."""


def rules_of(text: str) -> list[Run | Elsewhere | Proof]:
    return [rule for rule in RULES if re.fullmatch(rule.pattern, text, re.DOTALL)]


def rule_of(text: str) -> Run | Elsewhere | Proof | None:
    """Return the rule for a command. Programs of this repository and those in SHELL run without a rule."""
    rules = rules_of(text)
    if not rules:
        name = text.split()[0]
        known = name in {*SHELL, "python"} if needs_shell(text) else name in SHELL or program_of(text) is not None
        return Run(pattern="") if known else None
    return rules[0] if len(rules) == 1 else None
