"""The page in a real browser: at the width of a phone and of a desk, light and dark, and on paper."""

import base64
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import made_up
import pytest

from hyperkern.bench import page
from hyperkern.bench.result import read

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [
    name
    for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER), ("selenium", find_spec("selenium")))
    if not found
]
REQUIRED = os.environ.get("HYPERKERN_REQUIRE_BROWSER") == "1"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu.json"
SIZES = {"phone": (360, 800), "desktop": (1280, 900)}

pytestmark = [
    pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.usefixtures("small_rates"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if MISSING:
        pytest.fail(f"HYPERKERN_REQUIRE_BROWSER=1, but not installed: {', '.join(MISSING)}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(600)
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["made up", "committed"])
def address(request, tmp_path_factory):
    result = made_up.realistic() if request.param == "made up" else read(COMMITTED)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page.render(result), encoding="utf-8")
    return path.as_uri()


def show(browser, address, size, scheme):
    width, height = SIZES[size]
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(address)


def panels(browser):
    """Pairs of a case and a D, of which there are three cases and two D at the least."""
    found = browser.execute_script("return document.querySelectorAll('main section[id^=case] h3').length")
    assert found >= 6
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_seen(browser, address, size, scheme):
    show(browser, address, size, scheme)
    assert browser.get_log("browser") == []
    width = SIZES[size][0]
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) == len(page.TITLES) * panels(browser)
    assert all(box["width"] > 300 and box["height"] > 100 for box in boxes)
    assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
    columns = {box["left"] for box in boxes}
    assert len(columns) == (1 if size == "phone" else 2)
    red, green, blue = browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )[:3]
    assert (red + green + blue > 600) is (scheme == "light")


@pytest.mark.parametrize("size", SIZES)
def test_words_stay_within_their_figure_and_apart(browser, address, size):
    show(browser, address, size, "light")
    problems = browser.execute_script(
        """
        const found = [];
        for (const figure of document.querySelectorAll('figure svg')) {
            const frame = figure.getBoundingClientRect();
            const words = [...figure.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
            for (const [index, [text, box]] of words.entries()) {
                if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
                    found.push(text + ' leaves ' + figure.getAttribute('aria-label').slice(0, 60));
                for (const [other, apart] of words.slice(index + 1))
                    if (box.left < apart.right - 1 && apart.left < box.right - 1
                            && box.top < apart.bottom - 3 && apart.top < box.bottom - 3)
                        found.push(text + ' covers ' + other);
            }
        }
        return found;
        """
    )
    assert problems == []


def test_letters_are_large_enough_on_a_phone(browser, address):
    show(browser, address, "phone", "light")
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure text')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 11  # of the line: letters of about 10 px


def test_tables_scroll_by_themselves(browser, address):
    show(browser, address, "phone", "light")
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.table')].map(e => [e.clientWidth, e.scrollWidth])"
    )
    assert len(widths) == panels(browser)
    assert all(inner > outer for outer, inner in widths)
    show(browser, address, "desktop", "light")
    assert browser.execute_script(
        "return [...document.querySelectorAll('.table')].every(e => e.scrollWidth == e.clientWidth)"
    )


def test_printed(browser, address):
    show(browser, address, "desktop", "dark")
    content = base64.b64decode(browser.print_page())
    assert content.startswith(b"%PDF")
    assert len(content) > 50_000
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert color == "rgb(255, 255, 255)"


def test_a_figure_of_its_own_is_seen(browser, tmp_path):
    path = tmp_path / "figure.svg"
    path.write_text(page.figure(made_up.realistic(), "time", "clip", 512), encoding="utf-8")
    show(browser, path.as_uri(), "desktop", "light")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('g.line path').length") > 10


def test_a_name_does_not_run(browser, tmp_path):
    name = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\">"
    path = tmp_path / "page.html"
    path.write_text(page.render(made_up.result([made_up.row(case=name, implementation=name)])), encoding="utf-8")
    show(browser, path.as_uri(), "phone", "light")
    assert "ran" not in browser.title
    assert browser.execute_script("return document.querySelectorAll('img, script').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
