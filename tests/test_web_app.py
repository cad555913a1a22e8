"""The page on which a model segments images: what it shows, and that it can be used in a browser."""

import importlib.util
import json
import shutil
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from u2seg.checkpoint import save_to_disk
from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.modeling import build_model
from u2seg.web_app import build_app, make_views, open_model, start_server

HAS_BROWSER = (
    shutil.which("chromium")
    and shutil.which("chromedriver")
    and importlib.util.find_spec("gradio")
    and importlib.util.find_spec("selenium")
)


def scene():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tiny_cfg, tmp_path_factory):
    """A training's directory, with random weights."""
    path = tmp_path_factory.mktemp("model")
    cfg = tiny_cfg(path, "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "8")
    torch.manual_seed(3)
    save_to_disk({"model": build_model(cfg).state_dict()}, path / "model_final.pth")
    (path / "config.yaml").write_text(cfg.dump())
    return path


@pytest.fixture(scope="module")
def predictor(directory):
    return open_model(str(directory))


def test_a_model_is_opened_by_its_directory(directory, tmp_path):
    predictor = open_model(str(directory), opts=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1"])
    assert predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.1
    assert predictor.style.thing_names == ["box", "disc"]
    other = shutil.copy(directory / "model_final.pth", tmp_path / "other.pth")
    assert str(other) == open_model(str(directory), opts=["MODEL.WEIGHTS", str(other)]).cfg.MODEL.WEIGHTS
    with pytest.raises(FileNotFoundError, match=r"expected config\.yaml and model\.safetensors or model_final\.pth"):
        open_model(str(tmp_path))


def test_views_follow_the_threshold(predictor, tmp_path):
    image = scene()
    found = predictor(image)
    scores = sorted(found.instances.scores.tolist())
    middle = (scores[3] + scores[4]) / 2
    views = make_views(predictor, image, found, middle, tmp_path)
    record = json.loads(views.files[1].read_text())
    assert len(record["detections"]) == len(scores) - 4
    assert min(one["score"] for one in record["detections"]) >= middle
    [annotation] = record["annotations"]
    assert {row[0] for row in views.table} == {s["id"] for s in annotation["segments_info"]}
    things = [row for row in views.table if row[2] == "thing"]
    assert things and {row[1] for row in things} <= {"box", "disc"}
    panoptic = read_panoptic_png(views.files[0])
    for number, _, _, _, share in views.table:
        assert share == round(100 * float((panoptic == number).mean()), 1)
    assert [row[-1] for row in views.table] == sorted((row[-1] for row in views.table), reverse=True)
    # Nobody is confident enough: no thing is left, and the semantic view stays.
    nobody = make_views(predictor, image, found, 1.0, tmp_path)
    assert not [row for row in nobody.table if row[2] == "thing"] and nobody.semantic is not None


def test_without_gradio_one_line_says_what_to_install(predictor, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'u2seg\[serve\]'"):
        build_app(predictor)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not HAS_BROWSER, reason="Chromium, its driver, gradio or selenium is not installed")
def test_an_image_is_uploaded_shown_and_downloaded_in_a_browser(predictor, monkeypatch, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    monkeypatch.chdir("/")  # below which everything lies, also the cache from which the page is served
    _, address = start_server(predictor, port=free_port(), max_megabytes=1)
    assert address.startswith("http://127.0.0.1:")
    Image.fromarray(scene()).resize((320, 240)).save(tmp_path / "photo.png")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1100"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(address)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#image input[type=file]"))
        upload = browser.find_element(By.CSS_SELECTOR, "#image input[type=file]")
        upload.send_keys(str(tmp_path / "photo.png"))
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#panoptic img"))
        wait.until(lambda b: {"box", "disc", "sky", "ground"} & set(b.find_element(By.ID, "segments").text.split()))
        browser.save_screenshot(str(tmp_path / "page.png"))
        button = browser.find_element(By.ID, "json")
        browser.execute_script("arguments[0].click()", button)
        wait.until(lambda _: list((tmp_path / "downloads").glob("*.json")))
        [downloaded] = (tmp_path / "downloads").glob("*.json")
        assert json.loads(downloaded.read_text())["categories"][0]["name"] == "box"
        hosts = {
            json.loads(entry["message"])["message"]["params"]["request"]["url"].split("/")[2]
            for entry in browser.get_log("performance")
            if '"Network.requestWillBeSent"' in entry["message"] and '"url":"http' in entry["message"]
        }
        assert hosts == {address.split("/")[2]}, "the page asks nobody else for anything"
    finally:
        browser.quit()
    require_refusals(address, tmp_path)


def require_refusals(address, tmp_path):
    """The server gives no file of its own, takes no large one, and does not predict on a path of its own."""
    for path in ("/etc/passwd", str(tmp_path / "photo.png"), __file__):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=10)
        assert caught.value.code in (403, 404)
    form = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + bytes(2_000_000)
        + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        f"{address}gradio_api/upload", form, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 413
