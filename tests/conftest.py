import signal
from collections.abc import Callable

import pytest

import lenet5  # noqa: F401 - before PyTorch: how its threads wait is set by then


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard() -> None:
    """What a shell has in its background, or under nohup, hands its deafness to Ctrl-C down to all that it starts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a figure for the end of the test run."""
    return lambda line: request.node.user_properties.append(("figure", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests measured: how many kills, mutations and experiments, and what came of them."""
    lines = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "figure"
    ]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(str(line))
