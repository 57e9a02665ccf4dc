"""Lists, verifies, compares and deletes checkpoints.

  checkpoint.py ls runs/mine                              or the save folder: runs/mine/checkpoints
  checkpoint.py verify runs/mine/checkpoints              all checkpoints; or one: runs/mine/checkpoints/ep0-ba500
  checkpoint.py diff runs/mine/checkpoints/ep0-ba500 runs/mine/checkpoints/ep0-ba1000
  checkpoint.py prune runs/mine/checkpoints --keep 2      lists the files to delete; with --yes, deletes these files

The exit code is 2 after an error, such as a corrupt checkpoint. diff returns 1 if the checkpoints differ.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError

    show_on_console()
    try:
        return {"ls": _ls, "verify": _verify, "diff": _diff, "prune": _prune}[args.command](args)
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    text = "list the checkpoints of a save folder, as recorded in their manifests, and the owner of the folder"
    ls = commands.add_parser("ls", help=text, description=text)
    text = (
        "a run's folder or a checkpoint; both may be URLs in an object store: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    )
    ls.add_argument("folder", type=_place, help=text)
    ls.add_argument("--json", action="store_true", help="print the list as JSON, with sizes in bytes")

    text = "read all files of checkpoints, and compare their hashes with the manifests"
    more = f"{text}. The exit code is 0 if everything that can be verified is correct, and 2 if anything is corrupt."
    verify = commands.add_parser("verify", help=text, description=more)
    text = "a checkpoint, or a run's folder; checkpoints in s3:// and gs:// are downloaded one at a time"
    verify.add_argument("paths", type=_place, nargs="+", metavar="PATH", help=text)

    text = "compare two checkpoints: manifest, config, state, tensors"
    diff = commands.add_parser("diff", help=text, description=_DIFF, formatter_class=raw)
    diff.add_argument("a", type=_folder, help="a checkpoint; in a run's folder, the newest checkpoint is used")
    diff.add_argument("b", type=_folder, help="the second checkpoint, or a run's folder")
    diff.add_argument("--top", type=int, default=10, metavar="N", help="show at most N tensors (default: %(default)s)")

    text = "delete older checkpoints, and incomplete files of killed runs"
    more = f"{text}. First, one of the checkpoints to keep is verified. Without --yes, nothing is deleted."
    prune = commands.add_parser("prune", help=text, description=more)
    prune.add_argument("folder", type=_folder, help="the local folder of a run that has ended")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="keep the newest N checkpoints")
    prune.add_argument("--keep_every", type=int, metavar="K", help="also keep one of every K saved checkpoints")
    prune.add_argument("--yes", action="store_true", help="delete the files")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser


def _place(text: str) -> Path | str:
    """Convert the text to a path, unless it is a URL."""
    from data.secrets.redaction import is_address

    return text if is_address(text) else Path(text)


def _folder(text: str) -> Path:
    place = _place(text)
    if isinstance(place, str):
        raise argparse.ArgumentTypeError(f"{text} is in an object store: only ls and verify support object stores")
    return place


_DIFF = """\
Compare two checkpoints: manifest, config by YAML key, the run's state, and tensors (largest differences first).
All files that are read are verified.

The exit code is 0 if the checkpoints are equal, 1 if they differ, and 2 after an error. Dates and durations are
ignored.
"""


def _ls(args: argparse.Namespace) -> int:
    import json

    from data.base.paths import refuse_path_arguments
    from train.inspection.found import find_checkpoints
    from train.inspection.listing import as_json, entries, notes, table
    from train.inspection.stores import outlined

    refuse_path_arguments(args, "folder")
    with outlined(args.folder) as folder:
        found = find_checkpoints(folder)
        listed = entries(found)
        if args.json:
            print(json.dumps(as_json(found, listed), indent=2))
        else:
            _print(table(listed), *notes(found, listed))
    errors = [entry.error for entry in listed if entry.error is not None]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 2 if errors else 0


def _verify(args: argparse.Namespace) -> int:
    from data.base.paths import refuse_path_arguments
    from data.base.sizes import progress_bar
    from train.inspection.found import find_checkpoints
    from train.inspection.stores import verify_there
    from train.inspection.verification import size_of, verify

    refuse_path_arguments(args, "paths")
    remote = [path for path in args.paths if isinstance(path, str)]
    local = [path for path in args.paths if not isinstance(path, str)]
    checkpoints = dict.fromkeys(each for path in local for each in find_checkpoints(path).checkpoints)
    corrupt = False
    with progress_bar("verify", sum(map(size_of, checkpoints)), disable=None, leave=False) as bar:
        for checkpoint in checkpoints:
            verified = verify(checkpoint, bar.update)
            corrupt = corrupt or bool(verified.errors)
            bar.clear()
            # Show the paths, because checkpoints in different save folders may have the same name.
            print("\n".join(verified.lines(str(checkpoint) if len(args.paths) > 1 else None)), flush=True)
    for name, verified in (found for url in remote for found in verify_there(url)):
        corrupt = corrupt or bool(verified.errors)
        print("\n".join(verified.lines(name)), flush=True)
    return 2 if corrupt else 0


def _diff(args: argparse.Namespace) -> int:
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments
    from data.base.sizes import progress_bar
    from train.inspection.comparison import compare, lines
    from train.inspection.found import find_checkpoint
    from train.inspection.verification import size_of

    refuse_path_arguments(args, "a", "b")
    if args.top < 0:
        raise ConfigError(f"--top is {args.top}, but it cannot be negative")
    a, b = find_checkpoint(args.a), find_checkpoint(args.b)
    with progress_bar("diff", size_of(a) or None, disable=None, leave=False) as bar:
        compared = compare(a, b, bar.update)
    _print(*lines(compared, str(a), str(b), args.top))
    return 0 if compared.equal else 1


def _prune(args: argparse.Namespace) -> int:
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments
    from data.base.sizes import format_bytes, progress_bar
    from train.checkpoint.places import resolve_save_folder
    from train.inspection.pruning import plan, prune

    refuse_path_arguments(args, "folder")
    for name in ("keep", "keep_every"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}, but it must be at least 1")
    folder = resolve_save_folder(args.folder)
    planned = plan(folder, keep=args.keep, keep_every=args.keep_every)
    print("\n".join(planned.lines()))
    if planned.nothing:
        print("nothing to delete")
    elif args.yes:
        with progress_bar("verify", None, disable=None, leave=False) as bar:
            done = prune(folder, keep=args.keep, keep_every=args.keep_every, progress=bar.update)
        print(f"freed {format_bytes(done.size, down=True)}")
    else:
        print(f"nothing was deleted: with --yes, the command frees {format_bytes(planned.size, down=True)}")
    return 0


def _print(*things: object) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for thing in things:
        # Names may contain brackets, which rich would interpret as markup.
        console.print(thing, markup=False, soft_wrap=isinstance(thing, str))


if __name__ == "__main__":
    sys.exit(main())
