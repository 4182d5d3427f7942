"""DVC's page of plots in a browser that reaches nobody."""

import re
from pathlib import Path

from playwright.sync_api import Browser

from .conftest import REPOSITORY, Project

CURVES = {"Loss by epoch": 3, "Accuracy by epoch": 3, "Overfitting gap of the loss": 1, "Overfitting gap of the acc": 1}


def settings(project: Project) -> None:
    """The repository's own, which the tests' projects do not have."""
    (project.path / ".dvc/config").write_text((REPOSITORY / ".dvc/config").read_text())


def test_the_page_of_plots_needs_nothing_but_itself(pipeline_copy: Project, browser: Browser, tmp_path: Path) -> None:
    settings(pipeline_copy)
    pipeline_copy.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    context = browser.new_context(offline=True)
    page, asked, failures = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto((tmp_path / "plots/index.html").as_uri())
    page.wait_for_load_state()
    for title, curves in CURVES.items():
        plot = page.locator("div", has=page.get_by_role("heading", name=re.compile(f"^{title}"))).last
        colours = plot.locator("path.curve").evaluate_all("curves => curves.map(curve => curve.getAttribute('stroke'))")
        assert len(colours) == len(set(colours)) == curves, title
        assert plot.locator(".legend span").count() == curves
    counts = page.locator("table td").all_inner_texts()
    assert sum(int(count or 0) for count in counts) == 10_000
    assert page.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    assert not failures
    assert all(url.startswith("file://") for url in asked)
    context.close()
