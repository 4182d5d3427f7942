"""`lenet5 serve`: programs that send JSON, and a person with a browser who drops a picture."""

import base64
import http.client
import io
import json
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from mlflow.version import VERSION
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, expect

from lenet5.data.fashion_mnist import CLASSES, TEST_IMAGES

from .conftest import SCREENSHOTS, Project
from .test_predict import another_model

SERVE = ("lenet5", "serve")


@contextmanager
def served(project: Project, *words: str) -> Iterator[int]:
    """A server on a free port; it must end well, and soon, on Ctrl-C."""
    with project.started(*SERVE, "--port", "0", *words) as process:
        assert process.stdout
        line = process.stdout.readline() + process.stdout.readline()
        assert "on http://127.0.0.1:" in line, line + process.stdout.read()
        yield int(line.partition("127.0.0.1:")[2].split()[0])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert process.stdout.read() == ""


@pytest.fixture(scope="module")
def champion(finished: Project) -> Iterator[int]:
    with served(finished, "--model", "champion") as port:
        yield port


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        is_json = "json" in response.headers.get("Content-Type", "") and content.startswith((b"{", b"["))
        return response.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def invoke(port: int, content: object) -> tuple[int, Any]:
    return ask(port, "POST", "/invocations", json.dumps(content).encode(), **{"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def images(data: Path) -> list[Image.Image]:
    content = (data / TEST_IMAGES).read_bytes()
    pixels = np.frombuffer(content, np.uint8, 40 * 784, offset=16).reshape(-1, 28, 28)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture
def pictures(tmp_path: Path, images: list[Image.Image]) -> list[Path]:
    """Test images as a shop shows them: large, dark on white."""
    paths = [tmp_path / f"picture-{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        large = ImageOps.invert(image.resize((336, 336), Image.Resampling.BICUBIC))
        ImageOps.expand(large, 40, fill=255).save(path)
    return paths


def logits(answer: Any) -> list[list[float]]:
    return [one["logits"] for one in answer["predictions"]]


def test_programs_are_answered_as_mlflow_answers_them(finished: Project, champion: int) -> None:
    batch = np.random.default_rng(0).random((3, 1, 28, 28)).astype(np.float32)
    session = onnxruntime.InferenceSession(finished.path / "models/lenet5.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": batch})
    for content in (
        {"inputs": batch.tolist()},
        {"inputs": {"images": batch.tolist()}},
        {"instances": batch.tolist()},
        {"instances": [{"images": image.tolist()} for image in batch]},
    ):
        status, answer = invoke(champion, content)
        assert status == 200, answer
        np.testing.assert_allclose(logits(answer), expected, rtol=1e-5, atol=1e-5)
    for path in ("/ping", "/health"):
        assert ask(champion, "GET", path) == (200, "\n")
    assert ask(champion, "GET", "/version") == (200, VERSION)


def test_a_picture_gets_every_class_and_the_image_the_model_saw(
    finished: Project, champion: int, pictures: list[Path]
) -> None:
    words = ("lenet5", "predict", "--json", str(pictures[1]))
    (expected,) = json.loads(finished.run(*words).stdout)
    status, answer = ask(champion, "POST", "/predict", pictures[1].read_bytes())
    assert status == 200
    assert answer["classes"] == expected["classes"]
    assert (answer["unlike"], answer["warning"]) == (expected["unlike"], "")
    assert {entry["class"] for entry in answer["classes"]} == set(CLASSES)
    kind, _, content = answer["image"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")


def form(*contents: bytes) -> tuple[bytes, dict[str, str]]:
    """What `curl -F file=@...` sends for each of ``contents``."""
    mark = b"------------------------d74496d66958873e"
    head = b'\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    parts = b"".join(b"--" + mark + head + content + b"\r\n" for content in contents)
    return parts + b"--" + mark + b"--\r\n", {"Content-Type": f"multipart/form-data; boundary={mark.decode()}"}


def test_a_form_with_a_picture_is_a_picture(champion: int, pictures: list[Path]) -> None:
    content = pictures[1].read_bytes()
    body, headers = form(content)
    assert ask(champion, "POST", "/predict", body, **headers) == ask(champion, "POST", "/predict", content)
    for contents in ((), (content, content)):
        body, headers = form(*contents)
        status, answer = ask(champion, "POST", "/predict", body, **headers)
        assert status == 400
        assert answer["message"] == f"a form with {len(contents)} files; send one picture: curl -F file=@picture.png"


def test_an_answer_that_is_not_to_be_trusted_says_so(champion: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    status, answer = ask(champion, "POST", "/predict", (tmp_path / "noise.png").read_bytes())
    assert status == 200
    assert "do not trust the answer" in answer["warning"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/predict", b"no picture", 400, "not a picture"),
        ("POST", "/predict", b"", 400, "not a picture"),
        ("POST", "/predict", b"\x89PNG\r\n\x1a\n" + bytes(100), 400, "picture"),
        ("POST", "/maps", b"no picture", 400, "not a picture"),
        ("POST", "/invocations", b"[" * 100_000, 400, "cannot be read: maximum recursion depth"),
        ("POST", "/invocations", b'{"inputs": [' + b"9" * 5000 + b"]}", 400, "cannot be read: Exceeds the limit"),
        ("POST", "/invocations", b'{"inputs": [' + b"9" * 400 + b"]}", 400, "neither text nor a table of numbers"),
        ("GET", "/predict", None, 405, "Method Not Allowed"),
        ("GET", "/invocations", None, 405, "Method Not Allowed"),
        ("DELETE", "/", None, 405, "Method Not Allowed"),
        ("GET", "/nothing", None, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_message(
    champion: int, method: str, path: str, body: bytes | None, status: int, said: str
) -> None:
    found, answer = ask(champion, method, path, body)
    assert found == status
    assert said in answer["message"]


def test_a_form_that_python_cannot_read_is_a_400(champion: int) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=XX; b*"}
    status, answer = ask(champion, "POST", "/predict", b"--XX--", **kind)
    assert (status, answer["message"].partition(";")[0][:28]) == (400, "a form that cannot be read (")


def test_a_body_of_which_nobody_says_what_it_is_passes_for_json(champion: int) -> None:
    body = json.dumps({"inputs": np.zeros((1, 28, 28)).tolist()}).encode()
    status, answer = ask(champion, "POST", "/invocations", body)
    assert (status, len(logits(answer))) == (200, 1)


@pytest.mark.parametrize(
    "content", [{"inputs": [[1, 2]]}, {"inputs": "text"}, {"images": []}, [], {"inputs": [[[["a"] * 28] * 28]]}]
)
def test_json_that_is_no_batch_of_images_is_a_400(champion: int, content: object) -> None:
    status, answer = invoke(champion, content)
    assert status == 400
    assert answer["message"]


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_too_much_is_a_413_whether_announced_or_not(champion: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", champion), timeout=10) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: it\r\nContent-Length: 99999999\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 413"  # before any of it is sent
    with socket.create_connection(("127.0.0.1", champion), timeout=10) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: it\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(33):
            client.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"
    assert ask(champion, "GET", "/ping")[0] == 200


def test_many_at_once_all_get_their_own_answer(champion: int, pictures: list[Path]) -> None:
    bodies = [path.read_bytes() for path in pictures]
    one_by_one = [ask(champion, "POST", "/predict", body) for body in bodies]
    assert len({str(answer) for answer in one_by_one}) > 30
    batch = {"inputs": np.zeros((50, 1, 28, 28)).tolist()}
    with ThreadPoolExecutor(32) as pool:
        together = [pool.submit(ask, champion, "POST", "/predict", body) for body in bodies * 3]
        bad = [pool.submit(ask, champion, "POST", "/predict", b"no picture") for _ in range(20)]
        batches = [pool.submit(invoke, champion, batch) for _ in range(10)]
        assert [future.result() for future in together] == one_by_one * 3
        assert {future.result()[0] for future in bad} == {400}
        assert {future.result()[0] for future in batches} == {200}


def test_the_maps_are_those_that_predict_draws(
    finished: Project, champion: int, pictures: list[Path], tmp_path: Path
) -> None:
    finished.run("lenet5", "predict", str(pictures[2]), "--maps", str(tmp_path / "maps.png"))
    with ThreadPoolExecutor(4) as pool:  # a picture that another thread draws has no part in it
        drawn = list(pool.map(lambda path: fetch_maps(champion, path), [pictures[2], *pictures[3:6], pictures[2]]))
    with Image.open(tmp_path / "maps.png") as expected:
        assert expected.tobytes() == drawn[0] == drawn[-1]
    assert len(set(drawn)) == 4


def fetch_maps(port: int, path: Path) -> bytes:
    """The pixels of the picture that the server draws."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/maps", path.read_bytes())
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - our own server
        return Image.open(io.BytesIO(response.read())).convert("RGB").tobytes()


def test_a_model_without_such_layers_answers_and_says_that_there_are_no_maps(
    browser: Browser, finished: Project, pictures: list[Path], tmp_path: Path
) -> None:
    flat = another_model(tmp_path / "flat.onnx", onnx.TensorProto.FLOAT, "batch")
    with served(finished, "--model", str(flat)) as port, opened(browser, port) as page:
        drop(page, pictures[1])
        expect(page.locator("#classes li")).to_have_count(10)
        expect(page.locator("#drawing")).to_contain_text("no C1, S2, C3 and S4 to look into")
        expect(page.locator("#maps")).to_be_hidden()


def test_a_file_is_served_without_a_record(finished: Project, tmp_path: Path, pictures: list[Path]) -> None:
    alone = Project(tmp_path / "alone", tmp_path)
    alone.env = finished.env
    alone.path.mkdir()
    model = tmp_path / "100 %20 #1.onnx"  # in a path MLflow takes these for parts of an address
    model.write_bytes((finished.path / "models/lenet5.onnx").read_bytes())
    with served(alone, "--model", str(model)) as port:
        assert ask(port, "POST", "/predict", pictures[0].read_bytes())[0] == 200
        assert len(logits(invoke(port, {"inputs": np.zeros((2, 1, 28, 28)).tolist()})[1])) == 2
    assert list(alone.path.iterdir()) == []


def test_a_server_that_cannot_start_says_why_in_one_line(finished: Project, champion: int, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("This is no model.")
    for words, said in (
        (("--port", str(champion)), f"cannot listen on 127.0.0.1 port {champion}"),
        (("--port", "0", "--model", "models:/lenet5-fashionmnist@nobody"), "alias nobody not found"),
        (("--port", "0", "--model", str(tmp_path / "text.onnx")), "not an ONNX model"),
    ):
        done = finished.run(*SERVE, *words, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("lenet5 serve: ")
        assert said in line


@contextmanager
def opened(browser: Browser, port: int, scheme: Any = "light", width: int = 1000) -> Iterator[Page]:
    """The page in a window of its own; it may speak to nobody but its server, and complain of nothing."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 860})
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    origin = f"http://127.0.0.1:{port}/"
    page.goto(origin)
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((origin, "blob:", "data:"))] == []
    assert complaints == []


def drop(page: Page, path: Path) -> None:
    """Let go of a file over the page, as from a file manager."""
    script = """([content, name]) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name));
        return transfer;
    }"""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(script, [content, path.name])
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def settle(page: Page) -> None:
    """Wait until the bars have grown."""
    page.wait_for_function("document.getAnimations().every((animation) => animation.playState === 'finished')")


def screenshot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"serve-{name}.png", full_page=True)


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("light", "light", 1000), ("dark", "dark", 1000), ("narrow", "light", 360)]
)
def test_a_person_drops_a_picture_and_sees_bars_and_what_the_model_sees(
    browser: Browser, champion: int, pictures: list[Path], name: str, scheme: str, width: int
) -> None:
    expected = ask(champion, "POST", "/predict", pictures[1].read_bytes())[1]
    with opened(browser, champion, scheme, width) as page:
        expect(page.locator("#result")).to_be_hidden()
        screenshot(page, f"{name}-empty")
        drop(page, pictures[1])
        expect(page.locator("#classes li")).to_have_count(10)
        best = expected["classes"][0]
        expect(page.locator("#verdict")).to_contain_text(f"picture-1.png: {best['class']}, ")
        settle(page)
        shares = [box["width"] for bar in page.locator(".bar").all() if (box := bar.bounding_box())]
        assert shares == sorted(shares, reverse=True)
        track = page.locator(".track").first.bounding_box()
        assert track is not None
        assert shares[0] / track["width"] == pytest.approx(best["probability"], abs=0.02)
        assert page.locator("#seen").get_attribute("src") == expected["image"]
        assert page.evaluate("document.querySelector('#seen').naturalWidth") == 28
        assert page.evaluate("document.querySelector('#given').naturalWidth") > 300
        expect(page.locator("#maps")).to_be_visible()
        assert page.evaluate("document.querySelector('#maps').naturalWidth") > 1000
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it must not scroll sideways"
        screenshot(page, name)


def test_the_keyboard_is_enough(browser: Browser, champion: int, pictures: list[Path]) -> None:
    with opened(browser, champion) as page:
        page.on("filechooser", lambda _: None)  # from here on: switching it on for each key comes too late for some
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        outline = page.evaluate("getComputedStyle(document.querySelector('#drop')).outlineStyle")
        assert outline == "solid", "the focus must be seen"
        for key, path in (("Space", pictures[2]), ("Enter", pictures[2]), ("Enter", pictures[3])):
            with page.expect_file_chooser() as chooser:
                page.keyboard.press(key)
            with page.expect_response("**/predict"):
                chooser.value.set_files(path)
            expect(page.locator("#verdict")).to_contain_text(path.name)


def test_what_is_no_picture_is_said_on_the_page_and_the_next_one_works(
    browser: Browser, champion: int, pictures: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("This is no picture.")
    with opened(browser, champion) as page:
        drop(page, pictures[0])
        expect(page.locator("#result")).to_be_visible()
        drop(page, text)
        expect(page.get_by_role("alert")).to_contain_text("notes.txt: not a picture")
        expect(page.locator("#result")).to_be_hidden()
        screenshot(page, "refused")
        drop(page, pictures[0])
        expect(page.locator("#result")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_page_whose_server_has_gone_says_so(browser: Browser, finished: Project, pictures: list[Path]) -> None:
    with served(finished, "--model", "models/lenet5.onnx") as port:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
    time.sleep(0.2)
    drop(page, pictures[0])
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    context.close()
