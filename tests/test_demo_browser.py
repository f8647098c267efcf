"""The web page in a browser."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from demo_server import MISSING
from demo_server import server as server
from PIL import Image

from ddpm.demo.jobs import TILE
from ddpm.plots.image_grid import GAP, MARGIN

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason=f"Playwright is not installed: {MISSING}")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser among {', '.join(BROWSERS)}: apt-get install chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=[1280, 390])
def visit(browser, server, request, tmp_path):
    """The page as first seen, in a window of this width; at the end: no error in the browser, no request elsewhere."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.set_default_timeout(PATIENCE)
    page.goto(server.url)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    yield page
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.close()
    assert complaints == []
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((server.url, "data:", "blob:"))] == []
    assert "Traceback" not in server.log.read_text()


def set_to(page, label, value):
    """Type into the field of a label on the tab that is shown."""
    field = page.get_by_label(label).locator("visible=true").first
    field.fill(str(value))
    field.press("Tab")


def choose(page, label, option):
    page.get_by_label(label).locator("visible=true").first.click()
    page.get_by_role("option", name=option, exact=True).click()


def wait_for_text(page, pattern):
    page.get_by_text(re.compile(pattern, re.DOTALL)).first.wait_for()


def press(page, button):
    page.get_by_role("button", name=button, exact=True).click()


def live(page):
    """The address of a picture that is shown while a job runs."""
    return page.locator(".live img").locator("visible=true").first.get_attribute("src")


def pixels(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))).convert("L"))


def result(page, place=0):
    """The pixels of a result."""
    loaded(page, place)
    address = page.locator(".framed img").locator("visible=true").nth(place).get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(address).body())).convert("L"))


def loaded(page, place=0):
    """(width, height) of a result, when the browser has it."""
    result = page.locator(".framed img").locator("visible=true").nth(place)
    result.wait_for()
    page.wait_for_function("img => img.complete && img.naturalWidth > 0", arg=result.element_handle())
    return tuple(result.evaluate("img => [img.naturalWidth, img.naturalHeight]"))


def test_draw_shows_images_and_downloads(visit):
    set_to(visit, "number input for Steps", 5)
    press(visit, "Draw")
    width, height = loaded(visit)
    assert width >= 10 * 64
    assert height >= 2 * 64
    wait_for_text(visit, "20 images by DDIM, 5 network evaluations each")
    for name, start in (("PNG", b"\x89PNG"), ("NPZ", b"PK"), ("GIF", b"GIF8")):
        with visit.expect_download() as download:
            press(visit, name)
        with open(download.value.path(), "rb") as file:
            assert file.read(len(start)) == start


def test_draw_shows_progress_until_stopped(visit):
    set_to(visit, "number input for Steps", 1000)
    set_to(visit, "number input for Number of images", 64)
    press(visit, "Draw")
    visit.locator(".live img").first.wait_for()
    first, before = live(visit), visit.locator(".count").first.inner_text()
    visit.wait_for_function("first => document.querySelector('.live img').src !== first", arg=first)
    assert not np.array_equal(pixels(first), pixels(live(visit)))
    assert re.match(r"[\d,]+ of 1,000 steps, [\d.]+ s", before)
    press(visit, "Stop")
    visit.get_by_text("stopped", exact=True).wait_for()
    assert visit.locator(".framed img").locator("visible=true").count() == 0


def test_draw_repeats_with_the_seed(visit):
    def drawn(steps):
        set_to(visit, "number input for Steps", steps)
        press(visit, "Draw")
        wait_for_text(visit, f", {steps} network evaluations each")
        assert visit.locator(".live img").count() == 0, "the result stands once"
        # Until the whole answer is there, the button does nothing.
        visit.wait_for_function("() => !document.querySelector('[data-testid=status-tracker]:not(.hide)')")
        return result(visit)

    first, other = drawn(3), drawn(4)
    assert np.array_equal(drawn(3), first)
    press(visit, "New seed")
    visit.wait_for_function("() => document.querySelector('.seed input').value !== '0'")
    assert not np.array_equal(drawn(4), other)


def inpaint_tab(page):
    page.get_by_role("tab", name="Inpaint").click()
    page.locator(".board img[src^=data]").wait_for()
    page.wait_for_function("() => document.querySelector('.board img').naturalWidth === 8")


def painted(page):
    """What is painted, bool (8, 8)."""
    read = "c => [...c.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, k) => k % 4 === 3)"
    return np.array(page.locator(".board canvas").evaluate(read)).reshape(8, 8) > 0


def paint(page, *places):
    """Drag the brush over places (x, y) in 0..1."""
    canvas = page.locator(".board canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for k, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if k == 0:
            page.mouse.down()
    page.mouse.up()


def test_inpaint_fills_the_painted_mask(visit):
    inpaint_tab(visit)
    board = pixels(visit.locator(".board img").get_attribute("src"))
    paint(visit, (0.05, 0.3), (0.95, 0.3))
    mask = painted(visit)
    assert mask[2].all()
    assert mask.sum() == 8
    press(visit, "Fill")
    loaded(visit)
    wait_for_text(visit, "4 images by DDIM")
    # The tile of the first fill, of TILE / 8 pixels for each of its own, is the lower left one; captions are left of it.
    shown = result(visit)
    top, left = shown.shape[0] - MARGIN - TILE, shown.shape[1] - MARGIN - 4 * TILE - 3 * GAP
    fill = shown[top + 4 : top + TILE : TILE // 8, left + 4 : left + TILE : TILE // 8]
    assert fill.shape == (8, 8)
    assert np.array_equal(fill[~mask], board[~mask])
    assert not np.array_equal(fill[mask], board[mask])


def test_board_erases_clears_and_swaps(visit):
    inpaint_tab(visit)
    paint(visit, (0.05, 0.3), (0.95, 0.3))
    paint(visit, (0.05, 0.3), (0.45, 0.3))
    assert painted(visit)[2].tolist() == [False] * 4 + [True] * 4
    press(visit, "swap")
    assert painted(visit).sum() == 60
    press(visit, "clear")
    assert painted(visit).sum() == 0


def test_board_shows_a_named_mask(visit):
    inpaint_tab(visit)
    choose(visit, "What to fill", "left")
    visit.wait_for_function("() => document.querySelector('.board canvas').getContext('2d').getImageData(3, 7, 1, 1).data[3] > 0")
    assert (painted(visit) == (np.arange(8) < 4)).all()
    paint(visit, (0.95, 0.95))
    assert painted(visit).sum() == 33
    visit.wait_for_function("() => [...document.querySelectorAll('input')].some((i) => i.value === 'my brush')")


def test_board_shows_an_upload(visit, tmp_path):
    Image.new("L", (50, 20), 255).save(tmp_path / "white.png")
    inpaint_tab(visit)
    before = visit.locator(".board img").get_attribute("src")
    visit.get_by_label("my picture").click()
    visit.locator("input[type=file]").first.set_input_files(tmp_path / "white.png")
    visit.wait_for_function("before => document.querySelector('.board img').src !== before", arg=before)
    assert (pixels(visit.locator(".board img").get_attribute("src")) == 255).all()


def test_interpolate_shows_strip_and_film(visit):
    visit.get_by_role("tab", name="Interpolate").click()
    set_to(visit, "number input for Steps", 4)
    press(visit, "Interpolate")
    width, height = loaded(visit, 0)
    assert width >= 8 * 64
    assert height >= 2 * 64
    assert min(loaded(visit, 1)) >= 4 * 64
    wait_for_text(visit, "16 images by DDIM, 4 steps")


def test_interpolate_allows_ddim_only_for_test_images(visit):
    visit.get_by_role("tab", name="Interpolate").click()
    choose(visit, "Sampler", "Heun")
    visit.get_by_label("test image").locator("visible=true").click()
    visit.wait_for_function("() => [...document.querySelectorAll('input')].some((i) => i.disabled && i.value === 'DDIM')")
    set_to(visit, "number input for Steps", 4)
    press(visit, "Interpolate")
    wait_for_text(visit, "16 images by DDIM, 4 steps")
    visit.get_by_label("sample of a seed").locator("visible=true").click()
    choose(visit, "Sampler", "Heun")


def test_compare_shows_two_samplers(visit):
    visit.get_by_role("tab", name="Compare").click()
    press(visit, "Compare")
    wait_for_text(visit, "DDIM, 10 network evaluations each.*DDPM, 200 network evaluations each")
    assert loaded(visit, 0) == loaded(visit, 1)
    assert not np.array_equal(result(visit, 0), result(visit, 1))


def test_bad_value_shows_one_message(visit):
    seed = visit.get_by_label("Seed").first
    seed.fill("-7")
    seed.press("Tab")
    press(visit, "Draw")
    wait_for_text(visit, r"seed: -7 must be greater than or equal to 0")
    seed.fill("7")
    seed.press("Tab")
    set_to(visit, "number input for Steps", 2)
    press(visit, "Draw")
    loaded(visit)


def test_empty_mask_shows_one_message(visit):
    inpaint_tab(visit)
    press(visit, "Fill")
    wait_for_text(visit, "mask: nothing is painted")


def test_board_is_painted_by_keyboard(visit):
    inpaint_tab(visit)
    board = visit.get_by_role("application", name="arrow keys move the cursor")
    board.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", " "):
        board.press(key)
    board.blur()
    assert np.argwhere(painted(visit)).tolist() == [[2, 3]]
    press(visit, "Fill")
    wait_for_text(visit, "4 images by DDIM")


def test_page_width_stays_and_button_and_result_are_in_reach(visit):
    """The page has one width in all tabs, before and after a result; a narrow page shows the button and scrolls to the result."""
    widths = set()
    for tab, button in (("Draw", "Draw"), ("Interpolate", "Interpolate"), ("Compare", "Compare")):
        visit.get_by_role("tab", name=tab).click()
        start = visit.get_by_role("button", name=button, exact=True)
        start.wait_for()
        assert visit.viewport_size["width"] > 700 or start.bounding_box()["y"] < visit.viewport_size["height"]
        widths.add(visit.locator("main").bounding_box()["width"])
        start.click()
        loaded(visit)
        widths.add(visit.locator("main").bounding_box()["width"])
        top = visit.locator(".block.progress").locator("visible=true").bounding_box()["y"]
        assert top < visit.viewport_size["height"]
        visit.evaluate("scrollTo(0, 0)")
    assert len(widths) == 1


def test_second_visitor_sees_the_number_before_and_stops_their_own_job(browser, server):
    first, second = browser.new_page(), browser.new_page()
    for page in (first, second):
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        page.get_by_role("button", name="Draw", exact=True).wait_for()
        set_to(page, "number input for Steps", 1000)
        set_to(page, "number input for Number of images", 64)
        press(page, "Draw")
        wait_for_text(page, "of 1,000 steps|before you")
    assert second.locator(".count").first.inner_text() == "1 before you"
    press(second, "Stop")
    second.get_by_text("stopped", exact=True).wait_for()
    assert first.get_by_text("stopped", exact=True).count() == 0
    press(second, "Draw")
    first.close()  # who leaves frees the queue
    second.locator(".live img").first.wait_for()
    second.close()


def test_axe_finds_nothing(visit):
    """axe-core's rules for accessible pages hold in each tab, with a result."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=MISSING).Axe()
    for tab, button in (("Draw", "Draw"), ("Inpaint", "Fill"), ("Interpolate", "Interpolate"), ("Compare", "Compare")):
        visit.get_by_role("tab", name=tab).click()
        if tab == "Inpaint":
            visit.locator(".board img[src^=data]").wait_for()
            choose(visit, "What to fill", "left")
        press(visit, button)
        loaded(visit)
        found = axe.run(visit).response["violations"]
        assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []
