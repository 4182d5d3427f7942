"""The real `make ui` in a real browser: what a person sees without configuring anything.

Screenshots are left in tests/output/.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import pytest
from playwright.sync_api import Browser, Page, Request, expect

from .conftest import SCREENSHOTS, Project, wait_until, zygote
from .servers import answers, free_port
from .test_sweep import run, write

NAME = "lenet5-fashionmnist"
MAKE_UI = ("make", "--old-file", ".venv/.ready", "ui")  # or it would install
CURVES_OF_THE_LATEST = "workflowType=machine_learning&viewStateShareKey=curves&compareRunsMode=CHART"
CHARTS = ("loss/train vs loss/validation vs loss/test", "gap/loss vs gap/accuracy",
          "accuracy/train vs accuracy/validation vs accuracy/test")  # fmt: skip


@pytest.fixture(scope="module")
def ui(finished: Project) -> Iterator[str]:
    """`make ui` in a project with two runs; what it says is in `ui.log` beside the project."""
    finished.edit({"export.opset": 21})
    finished.stage("export")
    finished.stage("register")
    with ui_of(finished) as address:
        yield address


@contextmanager
def ui_of(project: Project) -> Iterator[str]:
    """`make ui` there."""
    port = project.env["MLFLOW_PORT"] = str(free_port())
    with ui_log(project).open("w") as output, project.started(*MAKE_UI, output=output) as process:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health") or process.poll() is not None)
        assert process.poll() is None, ui_log(project).read_text()
        yield f"http://127.0.0.1:{port}/#"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ui_log(project: Project) -> Path:
    return project.path.parent / "ui.log"


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A page of a browser that has never been here; it leaves a screenshot, and may ask nobody but our server."""
    context = browser.new_context(viewport={"width": 1800, "height": 1000})
    context.set_default_timeout(180_000)
    expect.set_options(timeout=180_000)
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


def test_the_printed_links_open_model_training(ui: str, page: Page, finished: Project) -> None:
    said = ui_log(finished).read_text()
    link, command, *_ = said.splitlines()
    assert (link.startswith(ui), command) == (True, "mlflow ui")
    assert "Deprecat" not in said
    page.goto(link)
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    page.get_by_role("button", name="Close").first.click()  # of the assistant, which a first visit opens
    for chart in CHARTS:
        expect(page.get_by_text(chart).first).to_be_visible()
    (of_run,) = re.findall(r"http://\S+", finished.stage("register").stdout)
    page.goto(of_run)
    expect(page.get_by_role("heading", name=finished.runs()[-1].info.run_name)).to_be_visible()
    expect(page.get_by_role("link", name="Judges")).to_have_count(0)  # of the side for language models


def test_the_experiment_lists_its_runs_with_what_people_compare(ui: str, page: Page, finished: Project) -> None:
    page.goto(f"{ui}{experiment(finished)}/runs")
    page.get_by_role("button", name="Close").click()  # of the assistant, which a first visit opens
    page.get_by_role("button", name="Views").click()
    page.get_by_test_id("saved-views-item-comparison").click()
    for column in ("test_accuracy", "gap_accuracy", "model.activation"):
        expect(page.get_by_role("columnheader", name=column, exact=True).first).to_be_visible()
    first = finished.runs()[0]
    expect(page.get_by_role("link", name=first.info.run_name)).to_have_count(2)
    expect(page.get_by_text(re.compile(f"^{first.data.metrics['test_accuracy']}")).first).to_be_visible()
    expect(page.get_by_role("columnheader", name="gap.is_to", exact=True).first).to_be_in_viewport()
    expect(page.get_by_text("validation images", exact=True).first).to_be_in_viewport()


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


def test_the_model_card_fits_a_phone(browser: Browser, finished: Project) -> None:
    recorded = finished.mlflow().download_artifacts(finished.runs()[0].info.run_id, "reports/model_card.html")
    page = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True)
    for name, card in {"workspace": finished.path / "reports/model_card.html", "recorded": Path(recorded)}.items():
        page.goto(card.as_uri())
        cut = page.evaluate(
            "[...document.querySelectorAll('html, body *')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth)"
            ".map(e => e.innerText)"
        )
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"card-on-a-phone-{name}.png", full_page=True)
        assert cut == []
        assert page.evaluate("visualViewport.width") == 390
    page.close()


def test_two_runs_compare(ui: str, page: Page, finished: Project) -> None:
    runs = json.dumps([run.info.run_id for run in finished.runs()])
    page.goto(f"{ui}/compare-runs?runs={runs}&experiments={json.dumps([experiment(finished).split('/')[-1]])}")
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    expect(page.get_by_text("accuracy/validation").first).to_be_visible()
    expect(page.get_by_text("export.opset").first).to_be_visible()


def test_the_model_shows_its_champion(ui: str, page: Page) -> None:
    page.goto(f"{ui}/models/{NAME}")
    expect(page.get_by_text("The alias champion is the best version so far")).to_be_visible()
    expect(page.get_by_text("Became champion").first).to_be_visible()
    expect(page.get_by_role("status", name="champion")).to_be_visible()


def test_the_champion_says_how_good_it_is_and_why_it_is_champion(ui: str, page: Page) -> None:
    page.goto(f"{ui}/models/{NAME}/versions/1")
    expect(
        page.get_by_text("Became champion when registered: there was no champion, and it is within the limits.")
    ).to_be_visible()
    expect(page.get_by_role("cell", name="test", exact=True)).to_be_visible()
    expect(page.get_by_text("The whole model card is")).to_be_visible()


def test_the_curves_of_a_running_training_grow(ui: str, page: Page, finished: Project) -> None:
    finished.shrink({"train.epochs": 100_000})
    log = finished.path.parent / "running.log"
    training = finished.start_stage("train", log, log)
    try:
        wait_until(lambda: finished.runs()[-1].info.status == "RUNNING")
        running = finished.runs()[-1]
        wait_until(lambda: len(finished.steps(running, "gap/accuracy")) > 3)
        page.goto(f"{ui}{experiment(finished)}/runs?{CURVES_OF_THE_LATEST}")
        page.get_by_role("button", name="Close").first.click()
        expect(page.get_by_role("link", name=running.info.run_name).first).to_be_visible()
        epoch = f"""Math.max(0, ...[...document.querySelectorAll(".js-plotly-plot")].flatMap(plot =>
            plot.data.filter(curve => curve.uuid === "{running.info.run_id}").map(curve => Math.max(...curve.x))))"""
        page.wait_for_function(f"{epoch} > 3")
        before = page.evaluate(epoch)
        page.wait_for_function(f"{epoch} > {before}", timeout=180_000)
    finally:
        os.kill(training, signal.SIGINT)
        zygote().wait(training)


def test_the_run_of_a_sweep_shows_its_best_trials_and_its_pictures(page: Page, pipeline_copy: Project) -> None:
    pipeline_copy.shrink({})
    write(pipeline_copy, {})
    run(pipeline_copy, check=True)
    (parent,) = [one for one in pipeline_copy.runs() if "sweep" in one.data.tags]
    with ui_of(pipeline_copy) as address:
        of_parent = f"{address}{experiment(pipeline_copy)}/runs/{parent.info.run_id}"
        page.goto(f"{of_parent}/artifacts/slices.png?workflowType=machine_learning")
        page.get_by_role("button", name="Close").first.click()  # of the assistant, which a first visit opens
        expect(page.locator("img[src*='slices.png'], img[src^='blob:']").first).to_be_visible()
        page.goto(f"{of_parent}?workflowType=machine_learning")
        expect(page.get_by_role("heading", name=parent.info.run_name)).to_be_visible()
        page.get_by_text("Show more").click()
        expect(page.get_by_text("with tiny.yaml goes on where it stopped").first).to_be_visible()
        for column in ("trial", "validation loss"):
            expect(page.get_by_role("columnheader", name=column, exact=True)).to_be_visible()
        page.wait_for_timeout(1000)


def test_make_ui_opens_the_store_that_is_set_and_leaves_a_server_to_itself(
    pipeline_copy: Project, tmp_path: Path
) -> None:
    team = tmp_path / "team.db"
    shutil.copy(pipeline_copy.path / "mlflow.db", team)
    mlflow.MlflowClient(f"sqlite:///{team}").create_experiment("of the team")
    pipeline_copy.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{team}"
    with ui_of(pipeline_copy) as page:
        server = page.removesuffix("/#")
        assert mlflow.MlflowClient(server).get_experiment_by_name("of the team") is not None
        pipeline_copy.env["MLFLOW_TRACKING_URI"] = server
        said = pipeline_copy.run(*MAKE_UI).stdout
    assert said.startswith(page)
    assert len(said.splitlines()) == 1
