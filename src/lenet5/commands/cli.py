"""The command ``lenet5``: set params, and use, serve and compare the models that the pipeline makes.

Each subcommand imports what it needs when it is called: a prediction does not wait for PyTorch or MLflow.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from lenet5.errors import one_line_errors
from lenet5.outs import ONNX

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says; exit status 1 when something could not be done."""
    arguments = _parser().parse_args(words)
    with one_line_errors(f"lenet5 {arguments.command}", interrupted="nothing was changed"):
        sys.exit(arguments.do(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lenet5", description="LeNet-5 on FashionMNIST: what comes around the run.")
    parser.add_argument("--version", action="version", version=f"lenet5 {version('lenet5')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_recipe(commands)
    _add_predict(commands)
    _add_serve(commands)
    _add_compare(commands)
    _add_doctor(commands)
    return parser


def _add_recipe(commands: _Commands) -> None:
    command = commands.add_parser("recipe", help="set a group of params", description=_recipe.__doc__)
    command.add_argument("file", type=Path, metavar="FILE", help="the params to set, a file in recipes/ say")
    command.set_defaults(do=_recipe)


def _recipe(arguments: argparse.Namespace) -> int:
    """Set in params.yaml what a recipe names, and show it; all else there stays as it is."""
    from lenet5.params_edit import recipe

    return recipe(arguments.file)


def _add_predict(commands: _Commands) -> None:
    command = commands.add_parser("predict", help="say what is on pictures", description=_predict.__doc__)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file of any kind that Pillow reads")
    command.add_argument("--model", default=str(ONNX), help="an ONNX file (%(default)s), or models:/NAME@champion")
    command.add_argument("--json", action="store_true", help="for programs: JSON on stdout")
    command.set_defaults(do=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    """Show the three likeliest classes of each picture."""
    from lenet5.predict import predict

    return predict(arguments.images, arguments.model, arguments.json)


def _add_serve(commands: _Commands) -> None:
    command = commands.add_parser("serve", help="answer programs and people over HTTP", description=_serve.__doc__)
    command.add_argument("--model", help="an ONNX file, or an MLflow URI (models:/<register.model_name>@champion)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine only)")
    command.add_argument("--port", type=int, default=8000, help="%(default)s; 0: any that is free")
    command.set_defaults(do=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    """Serve a model by MLflow's scoring protocol (POST /invocations), with a page for pictures at /."""
    from lenet5.serve import serve

    return serve(arguments.model, arguments.host, arguments.port)


def _add_compare(commands: _Commands) -> None:
    command = commands.add_parser("compare", help="set two results side by side", description=_compare.__doc__)
    kinds = "a run's id or name, models:/NAME@ALIAS, champion, or workspace"
    command.add_argument("first", metavar="RUN", help=kinds)
    command.add_argument("second", metavar="RUN", help="the same")
    command.add_argument("--html", type=Path, metavar="FILE", help="write it as a page, too")
    command.set_defaults(do=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    """Show the params in which two results differ, their figures, and whether the difference is more than luck."""
    from lenet5.compare import compare

    return compare(arguments.first, arguments.second, arguments.html)


def _add_doctor(commands: _Commands) -> None:
    command = commands.add_parser("doctor", help="look over machine and workspace", description=_doctor.__doc__)
    command.set_defaults(do=_doctor)


def _doctor(_: argparse.Namespace) -> int:
    """Check machine and workspace: one line each, with what to do; exit status 1 when there is a problem."""
    from lenet5.doctor import doctor

    return doctor()


if __name__ == "__main__":
    main()
