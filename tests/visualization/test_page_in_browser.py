"""The report page in headless Chromium: enlarging, comparing, dark mode, no network, accessibility."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from u2seg.visualization import Curves, Heatmap, Row, Table, write_report
from u2seg.visualization.panoptic_drawing import LegendEntry, PanopticDrawing

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver") and importlib.util.find_spec("selenium")),
    reason="Chromium, its driver or selenium is not installed",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    images = {
        name: np.full((60, 80, 3), value, np.uint8) for name, value in (("image", 40), ("label", 120), ("gt", 220))
    }
    legend = [LegendEntry((230, 159, 0), True, "cat x2 (12%)"), LegendEntry(None, False, "unlabeled (88%)")]
    images["label"] = PanopticDrawing(images["label"], legend)
    return write_report(
        tmp_path_factory.mktemp("page") / "index.html",
        title="A run",
        summary="Summary.",
        facts={"seed": 0},
        tables=[
            Table("By category", [["cat", 61.0, 2.0]], ["", "PQ", "AP"], "", "A note.", bars=1),
            Table("Text", text="a"),
        ],
        heatmaps=[Heatmap("Confusion", ["cat", "dog"], [("1", [90.0, 10.0])], "A note.")],
        curves=[Curves("Loss", {"a": [(0, 1.0), (1, 0.5)], "b": [(0, 2.0), (1, 0.5)]})],
        rows=[Row("first", images), Row("1", {"1": images["gt"]}, columns=8, group="Clusters")],
    )


@pytest.fixture(scope="module")
def browser(page):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def test_a_click_enlarges_an_image_and_the_slider_compares_it(browser):
    run = browser.execute_script
    run("document.querySelectorAll('.row a')[1].click()")
    assert run("return document.querySelector('.viewer').open")
    names = "return [...document.querySelectorAll('.viewer select')].map(s => s.selectedOptions[0].textContent)"
    assert run(names) == ["label", "gt"]
    shown = "return getComputedStyle(document.querySelector('.stage img + img')).clipPath"
    assert run(shown) == "inset(0px)" or "0%" in run(shown)
    run("const s = document.querySelector('.viewer input'); s.value = 30; s.dispatchEvent(new Event('input'))")
    assert "70%" in run(shown)  # cut off at the right
    width = "return document.querySelector('.stage img').getBoundingClientRect().width"
    legends = "return [...document.querySelectorAll('.legends > div')].map(d => d.innerText)"
    assert [text.split() for text in run(legends)] == [["cat", "x2", "(12%)", "unlabeled", "(88%)"], []]
    before = run(width)
    run("document.querySelector('.zoom').click()")
    assert run(width) > 2 * before and run("return document.querySelector('.zoom').ariaPressed") == "true"
    run("document.querySelector('.viewer .close').click()")
    assert not run("return document.querySelector('.viewer').open")
    assert browser.current_url.endswith("index.html")


def test_dark_mode_follows_the_system(browser):
    color = "return getComputedStyle(document.body).backgroundColor"
    legend = "return getComputedStyle(document.querySelector('.legend')).color"
    found, inks = {}, {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found[scheme], inks[scheme] = browser.execute_script(color), browser.execute_script(legend)
    assert found == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}
    assert inks == {"light": "rgb(27, 31, 36)", "dark": "rgb(232, 234, 237)"}


def test_nothing_is_asked_for_but_files_beside_the_page(browser, page):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert page.as_uri() in urls
    assert all(url.startswith((page.parent.as_uri(), "data:")) for url in urls), urls


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("is_open", [False, True])
def test_axe_finds_nothing(browser, scheme, is_open):
    axe = pytest.importorskip("axe_core_python", reason="the package axe-core-python is not installed")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_script(Path(axe.__file__).with_name("axe.min.js").read_text())
    if is_open:
        browser.execute_script("document.querySelector('.row a').click()")
    result = browser.execute_async_script("axe.run().then(arguments[0])")
    browser.execute_script("document.querySelector('.viewer').close()")
    assert result["passes"] and not [(v["id"], v["nodes"][0]["html"]) for v in result["violations"]]
