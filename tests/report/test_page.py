"""The page, opened in a browser that has no network."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleate.report import page
from nucleate.runs import Run

Build = Callable[..., Run]
NASTY = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "<b>bold</b>", "%{x} & {y}"]
LAYERS = ("input", "<i>hidden</i>", "</script>", "penultimate", "logits")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and chromedriver")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One headless Chromium for the module, with every host name unresolvable."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--window-size=1280,20000",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, path: Path, *, wait: str = "#accuracy .plot .main-svg, #accuracy .missing") -> Any:
    """Open a page, wait for its last figure, and hold it to the promises of every page."""
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(path.as_uri())
    until(driver, f"return document.querySelector({json.dumps(wait)}) !== null")
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    outside = {u for u in asked if not u.startswith(("data:", "blob:", "chrome:")) and u != path.as_uri()}
    assert outside == set()
    assert driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    return driver


def until(driver: Any, script: str, seconds: float = 30) -> None:
    """Wait until a script returns true."""
    end = time.monotonic() + seconds
    while not driver.execute_script(script):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.1)


def points(driver: Any, name: str) -> Any:
    """What plotly draws in a figure."""
    return driver.execute_script(
        "return document.getElementById(arguments[0]).data.map(t => [t.name || '', Array.from(t.x), Array.from(t.y)])",
        name,
    )


def slide(driver: Any, section: str, label: str, value: int) -> None:
    """Move the slider with a label, as a user's key would."""
    driver.execute_script(
        "const f = [...document.querySelectorAll(`#${arguments[0]} .field`)]"
        ".find(f => f.textContent.startsWith(arguments[1])); const r = f.querySelector('input');"
        "r.value = arguments[2]; r.dispatchEvent(new Event('input', {bubbles: true}));",
        section,
        label,
        value,
    )


def choose(driver: Any, section: str, label: str, value: str) -> None:
    """Choose an option of the list with a label."""
    driver.execute_script(
        "const f = [...document.querySelectorAll(`#${arguments[0]} .field`)]"
        ".find(f => f.textContent.startsWith(arguments[1])); const s = f.querySelector('select');"
        "s.value = arguments[2]; s.dispatchEvent(new Event('change', {bubbles: true}));",
        section,
        label,
        value,
    )


def press(driver: Any, section: str, text: str) -> None:
    """Press the button with a text."""
    driver.execute_script(
        "[...document.querySelectorAll(`#${arguments[0]} button`)].find(b => b.textContent === arguments[1]).click()",
        section,
        text,
    )


@browser
@pytest.mark.browser
def test_sliders_and_choices_change_the_figures(
    chromium: Any, build: Build, verdicts: list[dict[str, Any]], tmp_path: Path
) -> None:
    driver = opened(chromium, page([build(tmp_path)], tmp_path / "page.html", verdicts=verdicts))
    for section in ("simplex", "etf", "logits"):
        plot = f"{section}-plot"
        end = points(driver, plot)
        slide(driver, section, "Epoch", 0)
        start = points(driver, plot)
        assert start != end
        press(driver, section, "end")
        assert points(driver, plot) == end
        choose(driver, section, "Class A", "7")
        assert points(driver, plot) != end
        press(driver, section, "tetrahedron")
        four = points(driver, plot)
        assert sum(name.startswith("digit") for name, *_ in four) == 4
        slide(driver, section, "Turn", 3)
        assert points(driver, plot) != four
        press(driver, section, "segment")
        assert sum(name.startswith("digit") for name, *_ in points(driver, plot)) == 2
    end = points(driver, "layers-plot")
    slide(driver, "layers", "Epoch", 1)
    middle = points(driver, "layers-plot")
    assert middle != end
    slide(driver, "layers", "Layer", 0)
    assert points(driver, "layers-plot") != middle
    end = points(driver, "boundary-plot")
    slide(driver, "boundary", "Epoch", 0)
    assert points(driver, "boundary-plot") != end
    before = points(driver, "nc1-plot")
    choose(driver, "nc", "Layer", "input")
    assert points(driver, "nc1-plot") != before
    before = points(driver, "weights-plot")
    choose(driver, "weights", "Parameter", "classifier.weight")
    assert points(driver, "weights-plot") != before
    before = points(driver, "depth-curves")
    choose(driver, "depth", "Measure", "participation_ratio")
    assert points(driver, "depth-curves") != before
    words = driver.execute_script("return [...document.querySelectorAll('.stamp')].map(s => s.textContent)")
    assert words == ["✓ holds", "? inconclusive", "✗ fails"]
    inside = driver.execute_script("""
        const at = (node, name) => Number(node.getAttribute(name));
        return [...document.querySelectorAll('.clauses svg')].flatMap((svg) => {
          const [allowed, effects] = ['rect', 'circle'].map((tag) => [...svg.querySelectorAll(tag)]);
          return effects.map((c, i) => at(c, 'cx') >= at(allowed[i], 'x')
            && at(c, 'cx') <= at(allowed[i], 'x') + at(allowed[i], 'width'));
        });""")
    assert inside == [True, True, True, False], "24 >= 5, 0.004 < 0.02, 0.8 > 0, not -1.4 >= 0"
    assert [e for e in driver.get_log("browser") if e["level"] != "INFO"] == []


@browser
@pytest.mark.browser
def test_softmax_points_at_the_end_sit_at_their_corners(chromium: Any, build: Build, tmp_path: Path) -> None:
    driver = opened(chromium, page([build(tmp_path)], tmp_path / "page.html"))
    corners = {"digit 0": (-0.5, -0.289), "digit 1": (0.5, -0.289), "digit 2": (0.0, 0.577)}
    for name, x, y in points(driver, "simplex-plot"):
        if name in corners:
            assert len(x) == 20
            assert x == pytest.approx([corners[name][0]] * 20, abs=0.02)
            assert y == pytest.approx([corners[name][1]] * 20, abs=0.02)
    # The keys turn the tetrahedron, without a mouse.
    press(driver, "simplex", "tetrahedron")
    before = points(driver, "simplex-plot")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver.find_element(By.ID, "simplex-plot").send_keys(Keys.ARROW_LEFT)
    assert points(driver, "simplex-plot") != before


@browser
@pytest.mark.browser
def test_names_with_html_are_text(chromium: Any, build: Build, verdicts: list[dict[str, Any]], tmp_path: Path) -> None:
    verdicts[0] |= {"sentence": NASTY[0], "criterion": NASTY[1], "id": NASTY[2]}
    verdicts[0]["clauses"][0]["name"] = NASTY[0]
    run = build(tmp_path, classes=4, class_names=NASTY, layer_names=LAYERS)
    driver = opened(chromium, page([run], tmp_path / "page.html", verdicts=verdicts))
    for section in ("simplex", "etf", "logits"):
        press(driver, section, "tetrahedron")
    seen = driver.execute_script("return document.body.innerText + document.documentElement.textContent")
    for text in NASTY[:3]:
        assert text in seen
    shown = driver.execute_script(
        "return [...document.querySelectorAll('#layers .legendtext')].map(t => t.textContent)"
    )
    assert shown == [n if len(n) <= 22 else n[:11] + "…" + n[-10:] for n in NASTY]
    assert driver.execute_script("return document.querySelectorAll('img, b > b, main i').length") == 0
    with pytest.raises(Exception, match="no such alert"):
        _ = driver.switch_to.alert.text
    slide(driver, "layers", "Layer", 1)
    assert "<i>hidden</i>" in driver.execute_script("return document.querySelector('#layers .field').textContent")


@browser
@pytest.mark.browser
def test_runs_are_compared_and_chosen(chromium: Any, build: Build, tmp_path: Path) -> None:
    runs = [build(tmp_path, seed=s, loss=loss) for loss in ("cross-entropy", "mse") for s in (0, 1)]
    driver = opened(chromium, page(runs, tmp_path / "page.html"))
    before = points(driver, "layers-plot")
    driver.execute_script(
        "const s = document.querySelector('#bar select'); s.value = 3; s.dispatchEvent(new Event('change'))"
    )
    until(driver, "return document.querySelector('#layers-plot .main-svg') !== null")
    assert points(driver, "layers-plot") != before
    keys = driver.execute_script("return [...document.querySelectorAll('#nc .keys li')].map(k => k.textContent)")
    assert len(keys) == 2 and all("mean of n = 2 seeds, too few" in k for k in keys)


@browser
@pytest.mark.browser
def test_what_is_missing_is_said(chromium: Any, build: Build, tmp_path: Path) -> None:
    run = build(
        tmp_path, epochs=(0, 1, 3), finished=False, drop=("chi", "pgd_accuracy", "ece", "pca", "hist", "boundary")
    )
    driver = opened(chromium, page([run], tmp_path / "page.html"))
    text = driver.execute_script("return document.body.innerText")
    assert "is not finished: what follows is what was measured until epoch 3" in text
    assert "no test record of 'ece'" in text
    for section in ("layers", "weights", "chi", "boundary"):
        assert "Not shown" in driver.execute_script(f"return document.getElementById('{section}').innerText")


@browser
@pytest.mark.browser
def test_two_classes_are_a_segment_and_records_alone_make_a_page(chromium: Any, build: Build, tmp_path: Path) -> None:
    driver = opened(chromium, page([build(tmp_path / "two", classes=2)], tmp_path / "two.html"))
    for name, x, _ in points(driver, "simplex-plot"):
        if name in ("digit 0", "digit 1"):
            assert x == pytest.approx([-0.5 if name == "digit 0" else 0.5] * 20, abs=0.02)
    driver = opened(chromium, page([build(tmp_path / "bare", tensors=False)], tmp_path / "bare.html"))
    assert "Not shown" in driver.execute_script("return document.getElementById('simplex').innerText")
    assert points(driver, "nc1-plot")


@browser
@pytest.mark.browser
def test_it_fits_a_phone_and_follows_the_colour_scheme(
    chromium: Any, build: Build, verdicts: list[dict[str, Any]], tmp_path: Path
) -> None:
    def ground_and_ink() -> list[float]:
        paper = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
        ink = chromium.execute_script("return document.getElementById('nc1-plot').layout.font.color")
        return [sum(map(int, re.findall(r"\d+", paper)[:3])) / 3, int(ink[1:3], 16)]

    metrics = {"width": 390, "height": 20000, "deviceScaleFactor": 1, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened(chromium, page([build(tmp_path)], tmp_path / "page.html", verdicts=verdicts))
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= 390
        ground, ink = ground_and_ink()
        assert ground > 200 and ink < 100
        chromium.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        until(chromium, "return document.getElementById('nc1-plot').layout.font.color !== '#1c2430'")
        ground, ink = ground_and_ink()
        assert ground < 60 and ink > 150
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_is_one_file_without_addresses_to_fetch(build: Build, tmp_path: Path) -> None:
    out = page([build(tmp_path, tensors=False)], tmp_path / "page.html")
    text = out.read_text()
    assert [p.name for p in tmp_path.glob("page*")] == ["page.html"]
    head = text[: text.index('id="data"')]
    assert not re.search(r'(src|href)\s*=\s*"(https?:)?//', head)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy and "default-src &#39;none&#39;" in policy[1] and "http" not in policy[1]
    assert len(text) < 5.2e6


def test_zero_training_error_is_told_of_studies_that_look_for_it(build: Build, tmp_path: Path) -> None:
    run = build(tmp_path, epochs=(0, 1))
    told = "zero training error not reached"
    assert told in page([run], tmp_path / "page.html").read_text()
    env = json.loads((run.path / "env.json").read_text())
    del env["zero_error_epoch"]
    (run.path / "env.json").write_text(json.dumps(env))
    text = page([Run(run.path)], tmp_path / "page.html").read_text()
    assert told not in text and "end at epoch 1" in text


def test_a_folder_that_cannot_be_written_is_one_clear_error(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        page([build(tmp_path, tensors=False)], tmp_path / "no" / "such" / "page.html")
    with pytest.raises(ValueError, match="pca, tsne or umap"):
        page([build(tmp_path, tensors=False)], tmp_path / "page.html", projection="mds")  # type: ignore[arg-type]
