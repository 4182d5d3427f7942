"""The real `mlflow ui` in a real browser: what a person sees without configuring anything.

Screenshots are left in tests/output/.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from .conftest import SCREENSHOTS, Project, wait_until
from .servers import answers, free_port

NAME = "lenet5-fashionmnist"


@pytest.fixture(scope="module")
def ui(finished: Project) -> Iterator[str]:
    """A bare `mlflow ui` in a project with two runs."""
    finished.edit({"export.opset": 21})
    finished.stage("export")
    finished.stage("register")
    port = free_port()
    with finished.started("mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1") as process:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}/#"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A page of a browser that has never been here; it leaves a screenshot, and may ask nobody but our server."""
    context = browser.new_context(viewport={"width": 1800, "height": 1000})
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    opened = context.new_page()
    hosts: set[str | None] = set()

    def note(asked: Request) -> None:
        if asked.url.startswith("http"):
            hosts.add(urlsplit(asked.url).hostname)

    opened.on("request", note)
    yield opened
    opened.wait_for_timeout(1000)  # for charts to come to rest
    picture = tmp_path / f"{request.node.name.removeprefix('test_')}.png"
    opened.screenshot(path=picture)
    context.close()
    SCREENSHOTS.mkdir(exist_ok=True)
    shutil.copy(picture, SCREENSHOTS)
    assert hosts == {"127.0.0.1"}


def experiment(project: Project) -> str:
    found = project.mlflow().get_experiment_by_name(NAME)
    assert found is not None
    return f"/experiments/{found.experiment_id}"


def test_the_experiment_lists_its_runs_with_what_people_compare(ui: str, page: Page, finished: Project) -> None:
    page.goto(f"{ui}{experiment(finished)}/runs")
    page.get_by_role("button", name="Close").click()  # of the assistant, which a first visit opens
    page.get_by_role("button", name="Views").click()
    page.get_by_test_id("saved-views-item-comparison").click()
    for column in ("final/test_accuracy", "final/gap_accuracy", "model.activation"):
        expect(page.get_by_role("columnheader", name=column, exact=True).first).to_be_visible()
    first = finished.runs()[0]
    expect(page.get_by_role("link", name=first.info.run_name)).to_have_count(2)
    expect(page.get_by_text(re.compile(f"^{first.data.metrics['final/test_accuracy']}")).first).to_be_visible()


def test_a_run_describes_itself_first(ui: str, page: Page, finished: Project) -> None:
    run = finished.runs()[0]
    page.goto(f"{ui}{experiment(finished)}/runs/{run.info.run_id}")
    expect(page.get_by_role("heading", name=run.info.run_name)).to_be_visible()
    expect(page.get_by_text("The validation loss")).to_be_visible()


def test_a_run_shows_its_charts_in_groups(ui: str, page: Page, finished: Project) -> None:
    page.goto(f"{ui}{experiment(finished)}/runs/{finished.runs()[0].info.run_id}/model-metrics")
    expect(page.get_by_text(re.compile(r"accuracy\s*\(4\)")).first).to_be_visible()
    for curve in ("running", "test", "train", "validation"):
        expect(page.get_by_text(curve, exact=True).first).to_be_visible()
    expect(page.locator("svg.main-svg .scatterlayer .trace").nth(3)).to_be_attached()


def test_a_run_shows_its_model_card(ui: str, page: Page, finished: Project) -> None:
    page.goto(f"{ui}{experiment(finished)}/runs/{finished.runs()[0].info.run_id}/artifacts/reports/model_card.html")
    card = page.frame_locator("iframe").first
    expect(card.get_by_role("heading", name="Model card: LeNet-5 on FashionMNIST")).to_be_visible()
    curves = card.get_by_alt_text("Loss and accuracy by epoch")
    expect(curves).to_be_visible()
    assert curves.evaluate("image => image.naturalWidth") > 1000


def test_two_runs_compare(ui: str, page: Page, finished: Project) -> None:
    runs = json.dumps([run.info.run_id for run in finished.runs()])
    page.goto(f"{ui}/compare-runs?runs={runs}&experiments={json.dumps([experiment(finished).split('/')[-1]])}")
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    expect(page.get_by_text("accuracy/validation").first).to_be_visible()
    expect(page.get_by_text("export.opset").first).to_be_visible()


def test_the_model_shows_its_champion(ui: str, page: Page) -> None:
    page.goto(f"{ui}/models/{NAME}")
    expect(page.get_by_text("The alias champion is the best version so far")).to_be_visible()
    expect(page.get_by_text("Champion: there was")).to_be_visible()
    expect(page.get_by_role("status", name="champion")).to_be_visible()


def test_the_champion_says_how_good_it_is_and_why_it_is_champion(ui: str, page: Page) -> None:
    page.goto(f"{ui}/models/{NAME}/versions/1")
    expect(page.get_by_text("Champion: there was no champion, and it is within the limits.")).to_be_visible()
    expect(page.get_by_role("cell", name="test", exact=True)).to_be_visible()
    expect(page.get_by_text("The whole model card is")).to_be_visible()
