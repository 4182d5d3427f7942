"""The command ``lenet5``: what it understands, and which module does it.

Each word imports what it needs when it is called: a prediction does not wait for PyTorch or MLflow.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, TypeAlias

from lenet5.errors import end_as_by_ctrl_c, one_line_errors
from lenet5.outs import ONNX

_RUN = "a run's id or name, models:/NAME@ALIAS, models:/NAME/VERSION or champion"
_SWEEP_NAME = "a sweep: its file's name, without .yaml"
_MODEL = "an ONNX file (%(default)s, the workspace's), champion, or an MLflow URI such as models:/NAME/3"
_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message}; `{self.prog} --help` has an example\n")


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says; exit status 1 when something could not be done."""
    _write_whatever_it_is()
    arguments = _parser().parse_args(words)
    end_as_by_ctrl_c()
    try:
        with one_line_errors(f"lenet5 {arguments.command}", interrupted=arguments.interrupted):
            status = arguments.do(arguments)
            sys.stdout.flush()
            sys.exit(status)
    except SystemExit as ending:
        if isinstance(ending.code, int) and ending.code > 128:
            os._exit(ending.code)  # whoever pressed Ctrl-C does not wait for the libraries' own way out
        raise


def _write_whatever_it_is() -> None:
    """Let a letter that the terminal does not know, or a stream that a shell has closed (`>&-`), end no command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to its end
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)


def _parser() -> argparse.ArgumentParser:
    about, example = "LeNet-5 on FashionMNIST: what comes around the run.", "lenet5 predict docs/img/boot.png"
    parser = _Parser(prog="lenet5", description=about, epilog=f"Example: {example}")
    parser.add_argument("-V", "--version", action="version", version=f"lenet5 {version('lenet5')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_recipe(commands)
    _add_predict(commands)
    _add_serve(commands)
    _add_compare(commands)
    _add_champion(commands)
    _add_seeds(commands)
    _add_sweep(commands)
    _add_cluster(commands)
    _add_reproduce(commands)
    _add_record(commands)
    _add_doctor(commands)
    return parser


def _word(commands: _Commands, name: str, does: str, do: Callable[[argparse.Namespace], int], example: str) -> _Parser:
    command = commands.add_parser(name, help=does, description=do.__doc__, epilog=f"Example: {example}")
    command.set_defaults(do=do, interrupted="nothing was changed")
    return command


def _add_recipe(commands: _Commands) -> None:
    command = _word(commands, "recipe", "set a group of params", _recipe, "lenet5 recipe recipes/accurate.yaml")
    command.add_argument("file", type=Path, metavar="FILE", help="the params to set, a file in recipes/ say")


def _recipe(arguments: argparse.Namespace) -> int:
    """Set in params.yaml what a recipe names, and show it; all else there stays as it is."""
    from lenet5.commands.recipe import recipe

    return recipe(arguments.file)


def _add_predict(commands: _Commands) -> None:
    command = _word(commands, "predict", "say what is on pictures", _predict, "lenet5 predict docs/img/boot.png")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture: PNG, JPEG, WebP, TIFF, ...")
    command.add_argument("--model", default=str(ONNX), help=_MODEL)
    command.add_argument("--json", action="store_true", help="for programs: JSON on stdout")
    command.add_argument("--maps", type=Path, metavar="FILE", help="draw what C1, S2, C3 and S4 make of the picture")


def _predict(arguments: argparse.Namespace) -> int:
    """Show the three likeliest classes of each picture; with --json all ten."""
    from lenet5.commands.predict import predict

    return predict(arguments.images, arguments.model, arguments.json, arguments.maps)


def _add_serve(commands: _Commands) -> None:
    command = _word(commands, "serve", "answer programs and people over HTTP", _serve, "lenet5 serve --port 8080")
    command.add_argument("--model", default=str(ONNX), help=_MODEL)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine only)")
    command.add_argument("--port", type=int, default=8000, help="%(default)s; 0: any that is free")


def _serve(arguments: argparse.Namespace) -> int:
    """Serve a model by MLflow's scoring protocol (POST /invocations), with a page for pictures at /."""
    from lenet5.commands.serve import serve

    return serve(arguments.model, arguments.host, arguments.port)


def _add_compare(commands: _Commands) -> None:
    command = _word(
        commands,
        "compare",
        "set results side by side",
        _compare,
        "lenet5 compare champion workspace --html comparison.html",
    )
    kinds = f"workspace, {_RUN}"
    more = "one is set beside the workspace, more than two are ranked; without any: the experiment's best"
    command.add_argument("runs", nargs="*", metavar="RUN", help=f"{kinds}; {more}")
    command.add_argument("--html", type=Path, metavar="FILE", help="write it as a page, too")


def _compare(arguments: argparse.Namespace) -> int:
    """Show the params in which results differ, their figures, and whether the difference is more than luck."""
    from lenet5.commands.compare import compare

    return compare(arguments.runs, arguments.html)


def _add_champion(commands: _Commands) -> None:
    command = _word(commands, "champion", "who is champion, who was, and why", _champion, "lenet5 champion --back")
    command.add_argument("version", nargs="?", type=int, metavar="VERSION", help="make this version champion")
    command.add_argument("--back", action="store_true", help="make the one before champion again")
    command.add_argument("--reason", default="", metavar="TEXT", help="goes on record, with a change")
    command.set_defaults(interrupted="`lenet5 champion` shows who is champion now")


def _champion(arguments: argparse.Namespace) -> int:
    """Show who was champion when and why; or move the alias to another version, with the reason on record."""
    from lenet5.commands.champion import champion

    return champion(arguments.version, arguments.back, arguments.reason)


def _add_seeds(commands: _Commands) -> None:
    command = _word(commands, "seeds", "train from several seeds", _seeds, "lenet5 seeds --count 4")
    command.add_argument("--count", type=int, required=True, help="how many: train.seed, train.seed + 1, ...")
    _add_on(command)
    command.set_defaults(interrupted="seeds that have finished are kept, and the same command goes on")


def _seeds(arguments: argparse.Namespace) -> int:
    """Train the current params from several seeds; mean, standard deviation and interval of every figure."""
    from lenet5.commands.seeds import seeds

    return seeds(arguments.count, arguments.on, arguments.gpus_per_trial)


def _add_on(command: argparse.ArgumentParser) -> None:
    command.add_argument("--on", metavar="HOST:PORT", help="train on the cluster there (see `lenet5 cluster --help`)")
    share = "with --on: of a GPU for each job, up to 1; 0.5: two share one (%(default)s: they train on processors)"
    command.add_argument("--gpus-per-trial", type=float, default=0.0, metavar="SHARE", help=share)


def _add_cluster(commands: _Commands) -> None:
    example = "lenet5 cluster head"
    command = commands.add_parser(
        "cluster", help="let several machines train", description=_CLUSTER, epilog=f"Example: {example}"
    )
    words: _Commands = command.add_subparsers(dest="word", required=True, metavar="WORD")
    head = _word(words, "head", "start a cluster here", _cluster_head, "lenet5 cluster head --host 10.0.0.5")
    head.add_argument("--host", help="the address at which others reach this machine (found by itself where it can be)")
    head.add_argument("--port", type=int, default=6379, help="%(default)s, and those up to 600 above it")
    join = _word(words, "join", "take jobs of a cluster", _cluster_join, "lenet5 cluster join 10.0.0.5")
    join.add_argument("address", metavar="HOST", help="the head's address, or HOST:PORT")
    for one in (head, join):
        one.add_argument("--cpus", type=int, help="jobs at a time (one a processor); 0: none, for a driver")
        one.set_defaults(interrupted="`lenet5 cluster stop` ends what has started here")
    stop = _word(words, "stop", "end what `head` or `join` started here", _cluster_stop, "lenet5 cluster stop")
    stop.set_defaults(interrupted="the same command ends what is left")


_CLUSTER = "Let machines train together, for `--on` of `seeds` and `sweep`: Ray, with a token and no reports."


def _cluster_head(arguments: argparse.Namespace) -> int:
    """Start a cluster on this machine, and say how others join it and how it is stopped."""
    from lenet5.commands.cluster import head

    return head(arguments.host, arguments.port, arguments.cpus)


def _cluster_join(arguments: argparse.Namespace) -> int:
    """Let this machine take jobs of a cluster; they compute in this folder."""
    from lenet5.commands.cluster import join

    return join(arguments.address, arguments.cpus)


def _cluster_stop(_: argparse.Namespace) -> int:
    """End what `head` or `join` started from this folder, and no other Ray."""
    from lenet5.commands.cluster import stop

    return stop()


def _add_sweep(commands: _Commands) -> None:
    example = "lenet5 sweep run sweeps/small.yaml"
    command = commands.add_parser(
        "sweep", help="search better params", description=_SWEEP, epilog=f"Example: {example}"
    )
    words: _Commands = command.add_subparsers(dest="word", required=True, metavar="WORD")
    run = _word(words, "run", "begin a sweep, or go on with it", _sweep_run, example)
    run.set_defaults(interrupted="the same command goes on where it stopped")
    run.add_argument("file", type=Path, metavar="FILE", help="what is searched, a file in sweeps/ say")
    _add_on(run)
    show = _word(words, "show", "how a sweep stands", _sweep_show, "lenet5 sweep show small")
    show.add_argument("name", metavar="NAME", help=_SWEEP_NAME)
    _add_luck(words)


def _add_luck(words: _Commands) -> None:
    confirm = _word(words, "confirm", "is it luck?", _sweep_confirm, "lenet5 sweep confirm small --top 3 --seeds 8")
    confirm.set_defaults(interrupted="the same command goes on where it stopped")
    confirm.add_argument("name", metavar="NAME", help=_SWEEP_NAME)
    confirm.add_argument("--top", type=int, default=3, help="so many of its best trials (%(default)s)")
    confirm.add_argument("--seeds", type=int, default=8, help="on so many fresh pairs of seed and split (%(default)s)")
    _add_on(confirm)
    recipe = _word(words, "recipe", "keep what it found", _sweep_recipe, "lenet5 sweep recipe small")
    recipe.add_argument("name", metavar="NAME", help=_SWEEP_NAME)


_SWEEP = "Train many times with other params, and keep an account of which are best on the validation images."


def _sweep_run(arguments: argparse.Namespace) -> int:
    """Try params until the sweep has its trials; the same command goes on after any interruption."""
    from lenet5.commands.sweep import run

    return run(arguments.file, arguments.on, arguments.gpus_per_trial)


def _sweep_show(arguments: argparse.Namespace) -> int:
    """Show a sweep's best trials, which params mattered, and how the other trials ended."""
    from lenet5.commands.sweep import show

    return show(arguments.name)


def _sweep_confirm(arguments: argparse.Namespace) -> int:
    """Train a sweep's best trials and the current params on fresh seeds and splits: who is better by more than luck."""
    from lenet5.commands.confirmation import confirm

    return confirm(arguments.name, arguments.top, arguments.seeds, arguments.on, arguments.gpus_per_trial)


def _sweep_recipe(arguments: argparse.Namespace) -> int:
    """Write recipes/NAME.yaml: how the confirmed winner was trained, all of it but seed and machine."""
    from lenet5.commands.confirmation import recipe

    return recipe(arguments.name)


def _add_reproduce(commands: _Commands) -> None:
    example = "lenet5 reproduce models:/lenet5-fashionmnist@champion"
    command = _word(commands, "reproduce", "repeat a recorded result", _reproduce, example)
    command.add_argument("run", metavar="RUN", help=_RUN)


def _reproduce(arguments: argparse.Namespace) -> int:
    """Restore a run's code and params in a git worktree of its own, train there, and compare the figures."""
    from lenet5.commands.reproduce import reproduce

    return reproduce(arguments.run)


def _add_record(commands: _Commands) -> None:
    example = "lenet5 record pack champion champion.zip"
    command = commands.add_parser(
        "record", help="check the record, carry results to another", description=_RECORD, epilog=f"Example: {example}"
    )
    words: _Commands = command.add_subparsers(dest="word", required=True, metavar="WORD")
    _word(words, "verify", "whether it has all it needs", _record_verify, "lenet5 record verify")
    pack = _word(words, "pack", "one file of a result", _record_pack, example)
    pack.add_argument("run", metavar="RUN", help=_RUN)
    pack.add_argument("file", type=Path, metavar="FILE", help="what to write, a .zip")
    take = _word(words, "take", "add such a file's result", _record_take, "lenet5 record take champion.zip")
    take.add_argument("file", type=Path, metavar="FILE", help="from `lenet5 record pack`, of somebody you trust")
    take.set_defaults(interrupted="the same command takes it up again")


_RECORD = "Check that the MLflow record has all it needs, or carry a whole result to another workspace or server."


def _record_verify(_: argparse.Namespace) -> int:
    """Look through the runs and the registered model: what is missing, and what brings it back."""
    from lenet5.commands.record import verify

    return verify()


def _record_pack(arguments: argparse.Namespace) -> int:
    """Write a result to one file: run, artifacts, model, where it comes from."""
    from lenet5.commands.record import pack

    return pack(arguments.run, arguments.file)


def _record_take(arguments: argparse.Namespace) -> int:
    """Add the result in a file to this record, unless it is there; its version carries no alias."""
    from lenet5.commands.record import take

    return take(arguments.file)


def _add_doctor(commands: _Commands) -> None:
    _word(commands, "doctor", "look over machine and workspace", _doctor, "lenet5 doctor")


def _doctor(_: argparse.Namespace) -> int:
    """Check machine and workspace: one line each, with what to do; exit status 1 when there is a problem."""
    from lenet5.commands.doctor import doctor

    return doctor()
