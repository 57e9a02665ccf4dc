"""Runs the worked example and writes its page: docs/examples/python-stdlib.md, with its figures.

Every command on the page is run, and the page shows its output. Outputs are stored in runs/stdlib-example, so a second
call runs only the missing steps. To run everything again, remove runs/stdlib-*. A complete run takes about half an hour
on 2 busy cores.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
from collections.abc import Sequence

INSPECTED = "yamls/examples/stdlib_pretrain.yaml"
"""The config of the data that images/data.png shows."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/examples"), help="the page's folder (default: %(default)s)"
    )
    parser.add_argument("--work", type=Path, help="a folder for data and runs (default: .cache/stdlib and runs)")
    parser.add_argument("--port", type=int, default=8000, help="the server's port (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="train for a few steps only, to test the commands")
    args = parser.parse_args(argv)
    os.chdir(ROOT)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError
    from scripts.dev.example.commands import Commands
    from scripts.dev.example.figures import draw_figures, picture_data, picture_report
    from scripts.dev.example.page import render
    from scripts.dev.example.steps import Settings, run_steps

    figures = args.out / "python-stdlib"
    figures.mkdir(parents=True, exist_ok=True)
    places = {} if args.work is None else {"runs": args.work / "runs", "data": args.work / "data"}
    settings = Settings(figures=figures, port=args.port, short=args.short, **places)
    show_on_console()
    try:
        results = run_steps(Commands(settings.run("example"), in_forks=args.short), settings)
    except ConfigError as error:
        show_error(error, debug=False)
        return 1
    draw_figures(settings, figures)
    pictures = args.out.parent / "images"
    pictures.mkdir(exist_ok=True)
    if not args.short:
        report = settings.run("pretrain") / "checkpoints/report.html"
        pictured = picture_report(report, pictures / "report.png"), picture_data(INSPECTED, pictures / "data.png")
        if not all(pictured):
            print("images/report.png and images/data.png were not updated, because Chromium is not installed")
    page = args.out / "python-stdlib.md"
    page.write_text(render(results, settings), encoding="utf-8")
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
