"""Measures a curation from end to end: what it finds of the defects that were planted, and its effect on a model.

The raw text of make_curation_data.py is curated. A small DBRX is then trained on the raw text and on the curated text,
with the same numbers of steps and tokens, and the losses on held-out text are compared. The evaluation sets named
`leaked` are planted in the raw text; those named `unseen` are not. Tables are printed as Markdown. Complete runs in
--out are not repeated.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.dev.curation.found import Found

CONFIG = "yamls/curation/stdlib.yaml"
DATA = Path(".cache/curation")
"""The folder of the data in CONFIG."""
SOURCES = ("library", "packages", "licenses", "pages")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/curation-effect"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs on each text (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measured values to this file")
    args = parser.parse_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError

    show_on_console()
    try:
        report = measure(args.data, args.out, args.steps, args.seeds)
    except (ConfigError, DataError) as error:
        show_error(error, debug=False)
        return 2
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(data: Path, out: Path, steps: int, seeds: int) -> dict[str, Any]:
    """Curate, train and evaluate. Prints the tables, and returns their values."""
    from scripts.dev.curation.found import Curated, compare
    from scripts.dev.curation.models import losses, read_evals, train
    from scripts.dev.make_curation_data import main as make_data

    if not (data / "planted.json").exists():
        make_data(["--out", str(data)])
    reports = _curate(data)
    found = compare(json.loads((data / "planted.json").read_text(encoding="utf-8")), Curated.read(data / "curated"))
    _show(_found_rows(found))
    texts = {"raw": _documents_and_tokens(reports[0]), "curated": _documents_and_tokens(reports[-1])}
    files = {
        "raw": [data / f"raw/{source}.jsonl" for source in SOURCES],
        "curated": sorted((data / "curated/documents").glob("*.parquet")),
    }
    evals = read_evals(data / "evals")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    for seed in range(1, seeds + 1):
        for name, text in files.items():
            results[name].append(losses(train(name, text, seed, steps, out), evals))
    _show(_text_rows(texts, steps))
    _show(_loss_rows(results))
    return {"steps": steps, "found": [asdict(each) for each in found], "texts": texts, "losses": results}


def _curate(data: Path) -> list[dict[str, Any]]:
    """Run scripts/curate.py. Returns the reports of the steps, as in curation.json."""
    from data.base.errors import ConfigError

    config = data / "curation.yaml"
    config.write_text((ROOT / CONFIG).read_text(encoding="utf-8").replace(str(DATA), str(data)), encoding="utf-8")
    ended = subprocess.run([sys.executable, ROOT / "scripts/curate.py", config])
    if ended.returncode:
        raise ConfigError(f"the curation failed with exit code {ended.returncode}")
    return json.loads((data / "curated/curation.json").read_text(encoding="utf-8"))["steps"]


def _documents_and_tokens(step: Mapping[str, Any]) -> dict[str, int]:
    """The documents after a step."""
    after = [flow["after"] for flow in step["flows"].values()]
    return {key: sum(each[key] for each in after) for key in ("documents", "tokens")}


def _show(rows: Iterator[Sequence[str]]) -> None:
    from data.config.markdown import table_row

    first, *others = rows
    print("\n".join([table_row(*first), table_row(*["---"] * len(first)), *(table_row(*row) for row in others)]) + "\n")


def _found_rows(found: "Sequence[Found]") -> Iterator[Sequence[str]]:
    yield "planted", "documents", "removed or changed", "by"
    for each in found:
        steps = ", ".join(f"{name} {count:,}" for name, count in each.steps.items())
        yield each.kind.replace("_", " "), f"{each.planted:,}", f"{each.found:,} ({each.share:.1%})", steps or "-"


def _text_rows(texts: Mapping[str, Mapping[str, int]], steps: int) -> Iterator[Sequence[str]]:
    from scripts.dev.curation.models import tokens_per_step

    yield "text", "documents", "tokens", f"epochs in {steps} steps"
    for name, counts in texts.items():
        epochs = steps * tokens_per_step() / counts["tokens"]
        yield name, f"{counts['documents']:,}", f"{counts['tokens']:,}", f"{epochs:.2f}"


def _loss_rows(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[Sequence[str]]:
    yield "loss", "raw", "curated", "difference"
    for kind in ("documents", "questions"):
        names = [f"unseen-{kind}", f"leaked-{kind}"]
        unseen, leaked = ({text: [each[name] for each in runs] for text, runs in results.items()} for name in names)
        yield _loss_row(f"unseen {kind}", unseen)
        yield _loss_row(f"leaked {kind}", leaked)
        less = {text: [a - b for a, b in zip(unseen[text], leaked[text], strict=True)] for text in results}
        yield _loss_row(f"unseen {kind} - leaked {kind}", less, sign="+")


def _loss_row(name: str, losses: Mapping[str, Sequence[float]], sign: str = "") -> Sequence[str]:
    differences = [curated - raw for raw, curated in zip(losses["raw"], losses["curated"], strict=True)]
    return name, _spread(losses["raw"], sign), _spread(losses["curated"], sign), _spread(differences, "+")


def _spread(values: Sequence[float], sign: str = "") -> str:
    """The mean, and the standard deviation over seeds."""
    return f"{mean(values):{sign}.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
