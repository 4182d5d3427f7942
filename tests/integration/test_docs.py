"""The documentation, tried out: its commands and snippets are run, its links and pictures are there.

A shell command of README.md or docs/*.md is run as it stands, in document order, in a finished project; in a fenced
``sh`` block or among the text. A new command needs nothing here but where it cannot be run so: then INSTEAD says why,
and what is run in its place.
"""

import ast
import functools
import hashlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lenet5.results.history import read_history

from .conftest import REPOSITORY, Project, wait_until
from .servers import answers, free_port

README, CHINESE = REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"
TUTORIAL, RECIPES = REPOSITORY / "docs/tutorial.md", REPOSITORY / "docs/recipes.md"
DOCUMENTS = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAMS = {"dvc", "git", "lenet5", "make", "mlflow", "python", "python3"}
END_OF_SNIPPET = "-- end of snippet --"


@dataclass(frozen=True)
class Instead:
    """What is run in place of a command, with ``{command}``, ``{port}`` and ``{folder}`` (an empty one) filled in.

    A server has the URL path at which it ``answers``: it is started, asked and ended. ``test`` runs the command itself.
    """

    why: str
    runs: str = "true"
    answers: str = ""
    test: str = ""


INSTALLS = "it installs 6 GB, into the environment of these tests"
KEPT_OUT = "what these tests make lies in their own folder"
SERVES = "a server never ends, and its usual port may be taken"
ON_MACHINES = "test_cluster.py::test_it_listens_on_the_ports_it_was_told"
NAMED = Instead("named in a sentence, with what it needs left out", "{command} --help")
INSTEAD = {
    **{f"lenet5 {word}": NAMED for word in ("cluster", "recipe", "seeds", "sweep run", "sweep confirm")},
    "make repro": Instead(INSTALLS, "make --dry-run repro"),
    "make test": Instead("it is what runs these tests", "make --dry-run test"),
    "make soak": Instead("it is what runs these tests", "make --dry-run soak"),
    "make bench": Instead("it needs the machine for itself, for ten minutes or more", "make --dry-run bench"),
    "python bench/waiting.py": Instead("it needs the machine for itself, for minutes", "{command} --help"),
    "PYTHONPATH=src python bench/gpu.py": Instead("it measures a card, for ten minutes", "{command} --help"),
    **{
        f"lenet5 recipe recipes/{name}.yaml": Instead(
            "what trains after it would train for long",
            "cp params.yaml {folder} && {command} && cp {folder}/params.yaml params.yaml",
        )
        for name in ("tutorial", "searched", "erased", "mixed", "leaky")
    },
    "make ui": Instead(INSTALLS, "make --dry-run ui", test="test_ui.py::test_the_printed_links_open_model_training"),
    "make record": Instead(
        INSTALLS, "make --dry-run record", test="test_record.py::test_a_wiped_record_is_rebuilt_from_the_outs"
    ),
    "python -m pip install --require-hashes --requirement requirements.lock": Instead(
        INSTALLS, "{command} --dry-run --no-index"
    ),
    "python -m pip install --no-deps --no-build-isolation --editable .": Instead(INSTALLS, "{command} --dry-run"),
    "python -m pytest tests/unit tests/gpu": Instead("make test has just run them", "{command} --collect-only"),
    'python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not soak" tests/integration': Instead(
        "it is what runs these tests", "{command} --collect-only"
    ),
    "lenet5 serve": Instead(SERVES, "{command} --port {port}", answers="/ping"),
    "mlflow ui": Instead(SERVES, "{command} --port {port}", answers="/health"),
    "MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow models serve -m models:/lenet5-fashionmnist@champion "
    "--env-manager local --port 5001": Instead(SERVES, "{command} --port {port}", answers="/ping"),
    """echo '{"inputs": ["'$(base64 < docs/img/boot.png | tr -d '\\n')'"]}' | """
    "curl -H 'Content-Type: application/json' -d @- http://127.0.0.1:5001/invocations": Instead(
        "it asks the server of the line before",
        test="test_model_for_others.py::"
        "test_a_stranger_gets_class_probabilities_and_logits_of_pictures_and_of_grey_levels",
    ),
    "mlflow models build-docker": Instead("it needs Docker", "mlflow models generate-dockerfile --help"),
    "dvc queue start --jobs 2": Instead(
        "it trains four models",
        "dvc queue status && dvc queue remove --queued",
        test="test_experiments.py::test_queued_experiments_are_whole_runs_named_as_dvc_names_them",
    ),
    "lenet5 reproduce models:/lenet5-fashionmnist@champion": Instead(
        "it trains a model once more",
        "lenet5 reproduce --help",
        test="test_reproduce.py::test_a_recorded_result_is_reproduced_byte_for_byte",
    ),
    "dvc exp run -n accurate": Instead("it trains 80 epochs", "{command} -S train.epochs=1"),
    "lenet5 seeds --count 10": Instead("README has it with fewer seeds", "lenet5 seeds --help"),
    "make cluster": Instead("it installs Ray, into the environment of these tests", "make --dry-run cluster"),
    "lenet5 cluster head": Instead(
        "it would listen on this machine", "lenet5 cluster head --help", test=f"{ON_MACHINES}_and_stops"
    ),
    "lenet5 cluster join 10.0.0.5": Instead(
        "nobody here has this address", "lenet5 cluster join --help", test=f"{ON_MACHINES}_and_stops"
    ),
    "lenet5 seeds --count 64 --on 10.0.0.5:6379": Instead(
        "nobody here has this address",
        "lenet5 seeds --help",
        test="test_cluster.py::test_a_killed_worker_and_a_machine_that_joins_change_no_bit_and_nothing_leaves_the_network",
    ),
    "lenet5 sweep run sweeps/wide.yaml --on 10.0.0.5:6379": Instead(
        "nobody here has this address",
        "lenet5 sweep run --help",
        test="test_cluster.py::test_a_sweep_on_two_machines_has_the_trials_of_one",
    ),
    "lenet5 cluster stop": Instead(
        "a cluster may be at work on this machine", "lenet5 cluster stop --help", test=f"{ON_MACHINES}_and_stops"
    ),
    **{
        f"lenet5 sweep run sweeps/{name}.yaml": Instead(
            "it trains for an hour or more",
            "lenet5 sweep run --help",
            test="test_sweep.py::test_a_sweep_is_one_run_with_a_child_a_trial",
        )
        for name in ("wide", "longer", "searched", "erased", "leaky")
    },
    **{
        f"lenet5 sweep confirm {those}": Instead("README has it for a small one", "lenet5 sweep confirm --help")
        for those in (
            "wide --top 3 --seeds 8",
            *(f"{name} --top 1 --seeds 8" for name in ("longer", "searched", "erased")),
            "leaky --top 1 --seeds 5",
        )
    },
    "lenet5 sweep confirm small --top 1 --seeds 4": Instead(
        "it trains nine times", "lenet5 sweep confirm small --top 1 --seeds 2"
    ),
    "lenet5 sweep show wide": Instead(
        "nobody has run that sweep here",
        "lenet5 sweep show --help",
        test="test_sweep.py::test_a_sweep_is_one_run_with_a_child_a_trial",
    ),
    **{
        f"lenet5 sweep recipe {name}": Instead(
            "no sweep of this name was run here, and of a small one the winner may have been lucky",
            "lenet5 sweep recipe small || test -f sweeps/small.md",
            test="test_sweep.py::test_a_sweeps_winner_is_put_to_the_test",
        )
        for name in ("wide", "searched", "erased", "leaky")
    },
    "export MLFLOW_TRACKING_URI=https://mlflow.example.org": Instead(
        "no server has this name",
        test="test_team.py::test_four_experiments_at_once_are_whole_on_a_server_with_postgresql",
    ),
    "dvc remote add --default shared s3://bucket/lenet5": Instead(
        "nobody here has this bucket", "dvc remote add --default shared {folder}/remote"
    ),
    "mkdir -p /var/tmp/lenet5-cache": Instead(KEPT_OUT, "mkdir -p ../lenet5-cache"),
    "cp -a .dvc/cache/. /var/tmp/lenet5-cache": Instead(KEPT_OUT, "cp -a .dvc/cache/. ../lenet5-cache"),
    "dvc cache dir --local /var/tmp/lenet5-cache": Instead(
        KEPT_OUT, "dvc cache dir --local $(realpath ../lenet5-cache)"
    ),
    "python -m pip cache purge": Instead("it would empty the cache of this machine", "python -m pip cache dir"),
    "git stash && dvc repro": Instead(
        "what is set aside has to be made first",
        "sed -i 's/calibration_bins: .*/calibration_bins: 7/' params.yaml && dvc repro && {command}",
    ),
    "git clone": Instead("among the text it has no address", "git clone . {folder}/clone"),
}


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def parse(path: Path) -> list[Token]:
    return tokens(path.read_text(encoding="utf-8"))


def shell_commands(fence: str) -> list[str]:
    """The commands of a ``sh`` block, one a line, without comments."""
    lines = fence.replace("\\\n", " ").splitlines()
    bare = [re.sub(r"(^|\s+)#.*", "", line) for line in lines]
    return [line.strip() for line in bare if line.strip()]


def fenced_commands(path: Path) -> list[str]:
    fences = [token.content for token in parse(path) if token.type == "fence" and token.info == "sh"]
    return [command for fence in fences for command in shell_commands(fence)]


def commands_among_text(token: Token) -> list[str]:
    spans = [child.content for child in token.children or () if child.type == "code_inline"]
    return [span for span in spans if len(words := span.split()) > 1 and words[0] in PROGRAMS]


@functools.cache
def commands() -> list[str]:
    """Every command of the documents, once, in the order in which a reader meets them."""
    found: dict[str, None] = {}
    for path in DOCUMENTS:
        for token in parse(path):
            shell = token.type == "fence" and token.info == "sh"
            found |= dict.fromkeys(shell_commands(token.content) if shell else commands_among_text(token))
    return list(found)


def snippets(path: Path) -> Iterator[tuple[str, str | None]]:
    """Each ``python`` block with the ``text`` block that follows it at once, if one does: what it is said to print."""
    parsed = parse(path)
    for token, following in zip_longest(parsed, parsed[1:]):
        if token.type == "fence" and token.info == "python":
            said = following and following.type == "fence" and following.info == "text"
            yield token.content, following.content if following and said else None


def targets(path: Path) -> Iterator[tuple[str, str]]:
    """Each link and picture: its text and where it points to."""
    for token in parse(path):
        children = token.children or []
        for child, following in zip_longest(children, children[1:]):
            if child.type == "link_open":
                yield following.content if following else "", str(child.attrs["href"])
            if child.type == "image":
                yield child.content, str(child.attrs["src"])


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to the headings."""
    titles = [following.content for token, following in pairwise(parse(path)) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def defined_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_the_commands_are_found() -> None:
    assert shell_commands("# only said\nA=1 dvc \\\n  repro  # and why\n\ndvc push") == ["A=1 dvc    repro", "dvc push"]
    assert {"make repro", "dvc repro", "make record", "dvc push", "dvc plots show"} <= set(commands())


def test_nothing_is_replaced_that_is_not_in_the_documents() -> None:
    assert set(INSTEAD) - set(commands()) == set()


@pytest.mark.parametrize("test", sorted({instead.test for instead in INSTEAD.values()} - {""}))
def test_what_another_test_runs_is_there(test: str) -> None:
    file, name = test.split("::")
    assert name in defined_names(Path(__file__).with_name(file))


def test_both_readmes_give_the_same_commands() -> None:
    assert fenced_commands(CHINESE) == fenced_commands(README)


@pytest.mark.parametrize("path", [*DOCUMENTS, CHINESE], ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    for text, target in targets(path):
        file, _, anchor = target.partition("#")
        if re.match(r"https?://", target):
            continue
        there = path.parent / file if file else path
        assert there.exists(), f"{target} of {path.name}"
        assert not anchor or anchor in anchors(there), f"{target} of {path.name}"
        if there.suffix == ".py" and text.isidentifier():
            assert text in defined_names(there), f"{file} defines no {text}"


def committed(name: str) -> bytes:
    """A file as the last commit has it: what a person has run or edited since holds no text to account.

    Skipped where the params were changed after the texts: the committed run is then another than they describe.
    """

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, check=True).stdout

    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git repository here says what was committed")
    written = git("log", "-1", "--format=%H", "--", README.name).decode().strip()
    if yaml.safe_load(git("show", f"{written}:params.yaml")) != yaml.safe_load(git("show", "HEAD:params.yaml")):
        pytest.skip("the committed params are others than when README was written")
    return git("show", f"HEAD:{name}")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/tutorial.md"])
def test_figures_in_the_text_are_those_committed(name: str) -> None:
    measured = committed("metrics/evaluation.json").decode()
    rounded = {f"{float(number):.4f}" for number in re.findall(r": ([0-9.]+)", measured)}
    prose = [token.content for token in tokens(committed(name).decode()) if token.type == "inline"]
    quoted = set(re.findall(r"\b0\.\d{4}\b", " ".join(prose)))
    assert len(quoted) >= 3
    assert quoted <= rounded


def test_pictures_in_the_text_are_those_of_the_committed_run() -> None:
    stages = yaml.safe_load(committed("dvc.lock"))["stages"].values()
    outs = {Path(out["path"]).name: out["md5"] for stage in stages for out in stage["outs"] if "plots" in out["path"]}
    shown = [path.name for path in (REPOSITORY / "docs/img").glob("*.png") if path.name in outs]
    assert len(shown) >= 8
    for name in shown:
        picture = committed(f"docs/img/{name}")
        assert hashlib.md5(picture, usedforsecurity=False).hexdigest() == outs[name], name


@pytest.mark.parametrize("path", [README, CHINESE, RECIPES], ids=lambda path: path.name)
def test_the_published_training_is_told_as_it_went(path: Path) -> None:
    history = read_history(REPOSITORY / "docs/tutorial_history.csv").set_index("epoch")
    assert history.index.tolist() == list(range(1, 1001))
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"^\| ([0-9,]+) \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \|", text, re.MULTILINE)
    assert {"100", "300", "1,000"} <= {epoch for epoch, *_ in told}
    for epoch, *figures in told:
        row = history.loc[int(epoch.replace(",", ""))]
        measured = [row["train_accuracy"], row["test_accuracy"], row["gap_accuracy"]]
        assert figures == [f"{100 * figure:.2f}" for figure in measured], epoch
    assert str(history["test_loss"].idxmin()) in {epoch for epoch, *_ in told}


def test_what_is_said_of_the_spikes_is_in_the_history_of_the_published_training() -> None:
    accuracy = read_history(REPOSITORY / "docs/tutorial_history.csv").set_index("epoch")["train_accuracy"]
    said = " ".join(RECIPES.read_text(encoding="utf-8").split())
    deepest = accuracy.diff().nsmallest(2).index
    for epoch in deepest:
        assert f"epoch {epoch}" in said
        before, after = 100 * accuracy[epoch - 1], 100 * accuracy[epoch]
        assert f"from {before:.3g} to {after:.1f} %" in said
    assert accuracy.min() > 0.2, "it was thrown back to one class in ten"
    assert f"epoch {(accuracy == 1).idxmax()} for the first time" in said
    assert f"at every epoch from {accuracy[accuracy < 1].index[-1] + 1} on" in said


def test_snippets_print_what_the_tutorial_says(finished: Project) -> None:
    code, said = zip(*snippets(TUTORIAL), strict=True)
    script = f"\nprint({END_OF_SNIPPET!r})\n".join(code)
    done = finished.run("python", "-c", script, MLFLOW_DISABLE_TELEMETRY="true")
    printed = done.stdout.split(f"{END_OF_SNIPPET}\n")
    for snippet, expected, output in zip(code, said, printed, strict=True):
        assert output == (output if expected is None else expected), snippet


def ask(project: Project, command: str, url: str) -> None:
    """Start a server, wait for its answer, end it."""
    log = project.path.parent / "server.log"
    with log.open("w") as output, project.started("bash", "-c", command, output=output) as process:
        wait_until(lambda: answers(url) or process.poll() is not None)
        assert process.poll() is None, log.read_text()


@pytest.mark.soak
@pytest.mark.parametrize("command", commands())
def test_commands_run(finished: Project, tmp_path: Path, command: str) -> None:
    instead = INSTEAD.get(command, Instead("", "{command}"))
    port = free_port()
    runs = instead.runs.format(command=command, port=port, folder=shlex.quote(str(tmp_path)))
    if instead.answers:
        ask(finished, runs, f"http://127.0.0.1:{port}{instead.answers}")
        return
    with finished.started("bash", "-c", runs) as process:  # ended with all that it started, should it never end
        output, _ = process.communicate()
    assert process.returncode == 0, output
