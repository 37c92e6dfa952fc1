"""The page in a headless Chromium: every control is clicked, by mouse and by keyboard, on large and small screens, light and dark."""

import shutil
import threading

import pytest
from loopback import NAMES, bomb, make_vit, picture
from web import page, tiny_language

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright (extra dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.product,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; on Debian: apt-get install chromium-headless-shell"),
]

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCREENS = {"large light": (1400, "light"), "large dark": (1400, "dark"), "phone light": (390, "light"), "phone dark": (390, "dark")}
CONTROLS = "button:visible, input:visible, select:visible, summary:visible, pre:visible"
NAMED = {
    "button",
    "textbox",
    "slider",
    "combobox",
    "checkbox",
    "radio",
    "switch",
    "tab",
    "image",
    "radiogroup",
    "tablist",
    "spinbutton",
}


@pytest.fixture(scope="module")
def server():
    from sparsight.app import vision

    before, vision.SECONDS = vision.SECONDS, 0.0
    with page(make_vit(), max_upload=300_000, max_pixels=2_000_000) as found:
        yield found
    vision.SECONDS = before


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class User:
    """Somebody at the page. Complaints of the browser and requests to other hosts are kept."""

    def __init__(self, browser, server, width=1400, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.own, self.faults = f"http://127.0.0.1:{server.port}/", []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "console", lambda word: self.faults.append(word.text) if word.type == "error" and "400" not in word.text else None
        )
        self.page.on("request", lambda request: self.faults.append(request.url) if self.foreign(request.url) else None)
        self.page.goto(self.own)
        self.settle()

    def foreign(self, address):
        return not address.startswith((self.own, "data:", f"blob:{self.own}"))

    def settle(self, tab="vision"):
        """Wait until the tab has asked for what it wants and has the answer."""
        self.page.locator(f"#{tab} .see[aria-busy=false]").wait_for()
        assert self.faults == []

    def ask(self):
        self.page.get_by_role("tab", name="Ask about a picture").click()
        self.settle("language")

    def method(self, letter="A", tab="vision"):
        return self.page.locator(f"#{tab} fieldset.method.{letter.lower()}")

    @property
    def alert(self):
        return self.page.locator("#alert")

    def close(self):
        self.context.close()


@pytest.fixture
def user(chromium, server):
    found = User(chromium, server)
    yield found
    found.close()


@pytest.fixture(params=SCREENS)
def screen(request, chromium, server):
    found = User(chromium, server, *SCREENS[request.param])
    yield found
    found.close()


def change(control):
    """Use one control as its kind is used."""
    kind = control.evaluate("e => e.tagName === 'INPUT' ? e.type : e.tagName.toLowerCase()")
    if kind in ("checkbox", "radio"):
        control.check(force=True) if kind == "radio" else control.click(force=True)
    elif kind in ("range", "number", "text"):
        control.focus()
        control.press("ArrowRight" if kind == "range" else "ArrowUp" if kind == "number" else "End")
    elif kind == "select":
        values = control.evaluate("e => [...e.options].filter(o => !o.disabled).map(o => o.value)")
        control.select_option(values[-1])
    elif kind != "file":
        control.click()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tab", ["vision", "language"])
def test_every_control(screen, tab):
    """Nothing that can be clicked breaks the page, and nothing is wider than the screen."""
    if tab == "language":
        screen.ask()
    screen.page.locator(f"#{tab}").get_by_role("switch").check()
    screen.settle(tab)
    for summary in screen.page.locator(f"#{tab} summary").all():
        summary.click()
    panel = screen.page.locator(f"#{tab}")
    for place in range(panel.locator(CONTROLS).count()):
        control = panel.locator(CONTROLS).nth(place)
        if control.count() and control.evaluate("e => e.tagName") != "SUMMARY":
            change(control)
    screen.settle(tab)
    assert screen.alert.is_hidden()
    root = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert screen.page.evaluate(root) == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tab", ["vision", "language"])
def test_every_method_and_parameter(user, tab):
    """With any method, and any one parameter changed, there is a result or one line beside the method."""
    if tab == "language":
        user.ask()
    card = user.method("A", tab)
    names = card.locator("select").first.evaluate("e => [...e.options].filter(o => !o.disabled).map(o => o.value)")
    assert len(names) > 15
    for name in names:
        card.locator("select").first.select_option(name)
        user.settle(tab)
        assert card.locator(".problem").is_hidden(), f"{name}: {card.locator('.problem').inner_text()}"
        if card.locator("summary").count():
            card.locator("summary").click()
        for control in card.locator(".others :is(input, select)").all():
            change(control)
        user.settle(tab)
        said = card.locator(".problem")
        assert said.is_hidden() or len(said.inner_text().splitlines()) == 1
        assert user.alert.is_hidden()


def test_names_for_screen_readers(screen):
    for tab in ("vision", "language"):
        if tab == "language":
            screen.ask()
        screen.page.locator(f"#{tab}").get_by_role("switch").check()
        for summary in screen.page.locator(f"#{tab} summary").all():
            summary.click()
        screen.settle(tab)
        nodes = screen.context.new_cdp_session(screen.page).send("Accessibility.getFullAXTree")["nodes"]
        seen = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
        assert len([role for role, _ in seen if role in NAMED]) > 40
        assert [role for role, name in seen if role in NAMED and not name.strip()] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tab", ["vision", "language"])
def test_all_controls_are_reached_by_keyboard(screen, tab):
    """Tab comes to every control, one for each group of radio buttons, and comes back."""
    if tab == "language":
        screen.ask()
    key = "e => e.type === 'radio' ? e.name : (e.dataset.key ??= String(Math.random()))"
    wanted = {control.evaluate(key) for control in screen.page.locator(f"#{tab}").locator(CONTROLS).all()}
    found = set()
    for _ in range(3 * len(wanted) + 20):
        screen.page.keyboard.press("Tab")
        focused = screen.page.locator(":focus")
        if focused.count():
            found.add(focused.evaluate(key))
    assert wanted <= found


def test_the_first_tab_by_keyboard_alone(user):
    keys, page = user.page.keyboard, user.page
    page.get_by_role("radio", name="okapi").focus()
    keys.press("ArrowRight")
    user.settle()
    assert page.locator("#vision-pictures input:checked").get_attribute("value") != "okapi"
    page.locator("#vision").get_by_role("switch").focus()
    keys.press("Space")
    user.settle()
    assert page.locator("#vision-results thead th").count() == 3
    page.get_by_label("Method B").focus()
    keys.type("tome")
    user.settle()
    assert "tome" in page.locator("#vision-results thead").inner_text()
    cut = page.locator("#vision-stage .cut")
    cut.focus()
    keys.press("ArrowRight")
    assert page.locator("#vision-stage .frame").evaluate("e => e.style.getPropertyValue('--cut')") == "51%"
    page.locator("#strip input:checked").focus()
    keys.press("ArrowLeft")
    keys.press("ArrowLeft")
    assert page.locator("#strip input:checked").get_attribute("value") == "-1"
    page.get_by_role("button", name="Play").focus()
    keys.press("Enter")
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert page.locator("#strip input:checked").get_attribute("value") == "1"
    page.get_by_role("button", name="Copy the Python for A").focus()
    keys.press("Enter")
    page.get_by_role("button", name="Copy the Python for A").filter(has_text="Copied").wait_for()
    assert "sparsight.prune(" in page.evaluate("() => navigator.clipboard.readText()")
    page.get_by_role("tab", name="Classify a picture").focus()
    keys.press("ArrowRight")
    user.settle("language")
    assert page.locator("#language").is_visible()
    assert page.locator("#vision").is_hidden()


def test_a_result_is_what_the_library_says(user):
    table = user.page.locator("#vision-results table").inner_text()
    assert any(name in table for name in NAMES)
    assert "as fast" in table
    rows = user.page.locator("#vision-results tbody tr")
    assert rows.nth(1).inner_text().split()[-2:] == ["25", "%"]
    assert [label.inner_text().split() for label in user.page.locator("#strip label").all()] == [
        ["input", "64"], ["0", "32"], ["1", "16"]
    ]  # fmt: skip


def test_a_mistake_is_said_beside_its_method(user):
    card = user.method()
    card.get_by_label("Budget", exact=True).fill("many")
    user.settle()
    assert "keep=many cannot be used" in card.locator(".problem").inner_text()
    card.get_by_label("Budget", exact=True).fill("0.25")
    user.settle()
    assert card.locator(".problem").is_hidden()
    while card.locator(".chip input:checked").count():
        card.locator(".chip input:checked").first.click(force=True)
    user.settle()
    assert "at least one block" in card.locator(".problem").inner_text()


BAD = {
    "text": ("notes.txt", b"no image at all", "not an image"),
    "broken": ("broken.jpg", picture(0, "JPEG")[:500], "cannot be read"),
    "a hundred megapixels": ("huge.png", bomb(10_000, 10_000), "10000 x 10000 pixels"),
    "too long": ("long.png", b"x" * 300_001, "at most"),
}


@pytest.mark.parametrize("tab", ["vision", "language"])
def test_uploads(user, tab):
    """A bad one gets a message, and the next good one a result."""
    if tab == "language":
        user.ask()
    field = user.page.locator(f"#{tab} input[type=file]")
    for name, content, said in BAD.values():
        field.set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        user.alert.filter(has_text=said).wait_for()
        user.page.locator(f"#{tab} .see[aria-busy=false]").wait_for()
        field.set_input_files({"name": "good.png", "mimeType": "image/png", "buffer": picture(1)})
        user.settle(tab)
        assert user.alert.is_hidden()
    own = user.page.get_by_role("radio", name="good.png")
    assert own.is_checked()


def test_a_picture_is_dropped_on_the_page(user):
    data = user.page.evaluate_handle(
        """(bytes) => { const found = new DataTransfer();
        found.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"})); return found; }""",
        list(picture(2)),
    )
    user.page.dispatch_event("body", "drop", {"dataTransfer": data})
    user.settle()
    assert user.page.get_by_role("radio", name="dropped.png").is_checked()
    assert "sparsight show dropped.png" in user.page.locator("#vision-code").inner_text()


def test_questions(user):
    user.ask()
    for text in ("what is zorg ?", "what is in the picture ?"):
        user.page.get_by_label("Question", exact=True).fill(text)
        user.page.get_by_role("button", name="Ask", exact=True).click()
        user.settle("language")
        said = user.page.locator("#unknown").inner_text()
        assert ("“zorg”" in said) == ("zorg" in text)
    user.page.get_by_label("Question", exact=True).fill(" ")
    user.page.keyboard.press("Enter")
    user.alert.filter(has_text="question is empty").wait_for()
    user.page.locator("#hints button").first.click()
    user.settle("language")
    assert user.alert.is_hidden()
    assert user.page.locator("#language-results article").count() == 2


def test_two_users_at_once(chromium, server):
    first, second = User(chromium, server), User(chromium, server)
    first.method().locator("select").first.select_option("tome")
    second.method().locator("select").first.select_option("evit")
    for user, name in ((first, "tome"), (second, "evit")):
        user.settle()
        assert name in user.page.locator("#vision-results thead").inner_text()
        user.close()


def test_a_server_that_is_gone(chromium):
    with page(make_vit(), language=tiny_language) as server:
        user = User(chromium, server)
    user.page.get_by_role("radio", name="emu").check(force=True)
    user.alert.filter(has_text="does not answer").wait_for()
    user.close()
    assert threading.active_count() < 50
