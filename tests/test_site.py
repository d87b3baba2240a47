"""The documentation site: built once, its pages read, and looked at in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import browser as browsers
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # what builds the site is no part of the package

from docs_build import built, public_names  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: One page of each kind.
KINDS = (
    "index.html",
    "tour.html",
    "schedules.html",
    "schedules/gallery.html",
    "memory.html",
    "errors.html",
    "optimizers.html",
    "optimizers/adamw.html",
    "optimizers/muon.html",
    "migrating/torch.html",
    "examples/index.html",
    "reference/index.html",
    "reference/rules.html",
    "reference/command_line.html",
    "architecture.html",
    "contributing.html",
    "404.html",
)
Until: TypeAlias = Literal["load", "domcontentloaded"]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as script/docs builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, built.BuiltPage]:
    return built.read_site(site)


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(
    site: Path, pages: dict[str, built.BuiltPage]
) -> None:
    assert not built.faults_of(site, pages)
    assert len(pages) > 100


def test_each_page_says_what_it_is(pages: dict[str, built.BuiltPage]) -> None:
    titles = Counter(page.title for page in pages.values())
    assert [title for title, count in titles.items() if count > 1] == []
    for name, page in pages.items():
        assert page.title.strip(), name
        assert page.language == "en", name
        assert len(page.headings) == 1, (name, page.headings)
        assert page.description or name == "404.html", name
        assert not page.description.startswith("Written by"), name
        assert "`" not in page.description, name


def test_every_public_name_has_a_place(pages: dict[str, built.BuiltPage]) -> None:
    for page, names in public_names.names_by_page().items():
        anchors = pages[f"reference/{page}.html"].anchors
        assert {public.anchor for public in names} <= anchors
    for public in public_names.optimizers():
        page = public_names.page_of_optimizer(public.thing).replace(".md", ".html")
        assert public.anchor in pages[page].anchors


def test_no_public_name_is_left_out() -> None:
    import steprule

    described = {public.name for names in public_names.names_by_page().values() for public in names}
    described |= {public.name for public in public_names.optimizers()}
    for module in (steprule, steprule.schedules, steprule.lr_scheduler):
        assert {f"{module.__name__}.{name}" for name in module.__all__} <= described


def test_every_optimizer_has_formula_and_picture(pages: dict[str, built.BuiltPage]) -> None:
    for public in public_names.optimizers():
        name = public_names.page_of_optimizer(public.thing).replace(".md", ".html")
        page = pages[name]
        assert page.has_formula, name
        pictures = [alt for source, alt in page.pictures if "logo" not in source]
        assert pictures, name
        assert all(len(alt) > 20 for alt in pictures), (name, pictures)


def test_a_dead_link_and_a_foreign_script_are_faults(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<a href="other.html">a</a><a href="#here">b</a><a href="https://example.org">c</a>'
        '<a href="../up.html">d</a><script src="https://example.org/x.js"></script>'
        '<meta name="description" content="says "this">'
    )
    (tmp_path / "site.css").write_text("@font-face { src: url(//example.org/font) }")
    pages = built.read_site(tmp_path)
    faults = "\n".join(built.faults_of(tmp_path, pages))
    assert "other.html: there is no such file" in faults
    assert "#here: there is no such anchor" in faults
    assert "../up.html: leads out of the site" in faults
    assert "index.html: loads https://example.org/x.js" in faults
    assert "site.css: loads //example.org/font" in faults
    assert "index.html: a <meta> has 'this\"'" in faults
    assert list(built.links_elsewhere(pages)) == ["https://example.org"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # For this module alone: other tests have event loops of their own.
    if browsers.executable() is None:
        pytest.skip(browsers.HOW_TO_INSTALL)
    with browsers.opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with browsers.served(site) as address:
        yield address


class Watched:
    """A page of the browser that notes what goes wrong in it."""

    def __init__(self, browser: Browser, home: str, **context: Any) -> None:
        self.home = home
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on(
            "console",
            lambda note: (
                self.faults.append(f"console: {note.text}")
                if note.type in ("error", "warning")
                else None
            ),
        )
        self.page.on("requestfailed", lambda asked: self.faults.append(f"failed: {asked.url}"))
        self.page.on("request", self._is_from_here)

    def _is_from_here(self, request: Any) -> None:
        if not request.url.startswith((self.home, "data:", "blob:")):
            self.faults.append(f"foreign: {request.url}")

    def go(self, name: str, until: Until = "load") -> Page:
        self.page.goto(f"{self.home}{name}", wait_until=until)
        return self.page

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def watched(browser: Browser, address: str) -> Iterator[Watched]:
    watched = Watched(browser, address, viewport={"width": 1280, "height": 900})
    yield watched
    watched.close()


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Watched]:
    watched = Watched(browser, address, viewport=PHONE, color_scheme="dark")
    yield watched
    watched.close()


def width_of(page: Page) -> int:
    width: int = page.evaluate("document.documentElement.scrollWidth")
    return width


def test_pages_of_every_kind_open_without_an_error(watched: Watched) -> None:
    for name in KINDS:
        page = watched.go(name)
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").count() == 1, name
        assert not watched.faults, (name, watched.faults)


def test_pages_of_every_kind_fit_on_a_phone(phone: Watched) -> None:
    widths = {name: width_of(phone.go(name)) for name in KINDS}
    assert {name: width for name, width in widths.items() if width > PHONE["width"]} == {}


def test_so_does_every_page(phone: Watched, pages: dict[str, built.BuiltPage]) -> None:
    # Most fit before their scripts run, which take most of the time; a script puts tables in boxes.
    phone.page.route("**/*.js", lambda route: route.abort())
    # Styles are there by then; pictures have their widths.
    wide = [
        name
        for name in pages
        if width_of(phone.go(name, until="domcontentloaded")) > PHONE["width"]
    ]
    phone.page.unroute("**/*.js")
    widths = {name: width_of(phone.go(name, until="domcontentloaded")) for name in wide}
    assert {name: width for name, width in widths.items() if width > PHONE["width"]} == {}


def test_a_wide_table_scrolls_in_its_own_box(phone: Watched) -> None:
    page = phone.go("optimizers.html")
    is_wider = "e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'auto'"
    page.wait_for_selector(".md-typeset__scrollwrap")
    boxes = page.locator(".md-typeset__scrollwrap")
    assert any(boxes.nth(at).evaluate(is_wider) for at in range(boxes.count()))


def test_a_wide_formula_shows_on_a_phone_that_it_goes_on(phone: Watched) -> None:
    page = phone.go("optimizers/adopt.html")
    formula = page.locator(".formula").first
    assert formula.evaluate("e => e.scrollWidth > e.clientWidth")
    # Shadows that stay, under covers that move with the formula: one of each at either end.
    attachment = formula.evaluate("e => getComputedStyle(e).backgroundAttachment")
    assert attachment == "local, local, scroll, scroll"


# Contrast as WCAG 2 defines it, of an element's text against what is painted behind it.
_CONTRAST = """
element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map(k => top[k] * alpha + below[k] * (1 - alpha));
  };
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    layers.push(numbers(getComputedStyle(at).backgroundColor));
  }
  const behind = layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  const text = over(numbers(getComputedStyle(element).color), behind);
  const light = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(
      v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(text), light(behind)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
"""
# 4.5 is what WCAG 2 asks of text (level AA), 7 of it at level AAA; the running text has the latter.
_PARTS = {
    ".md-content p": 7,
    ".md-content p a": 4.5,
    ".md-content p code": 4.5,
    ".md-nav__link": 4.5,
}


def _scheme(page: Page) -> Any:
    return page.evaluate("document.body.getAttribute('data-md-color-scheme')")


_KINDS_OF_CODE = """
[...new Set([...document.querySelectorAll(".highlight code span[class]")]
  .filter(e => e.textContent.trim()).map(e => "." + [...e.classList].join(".")))]
"""


def _assert_readable(page: Page, scheme: str) -> None:
    kinds = page.evaluate(_KINDS_OF_CODE)
    assert len(kinds) > 5
    code = {f".md-content .highlight code {kind}": 4.5 for kind in kinds}
    for part, least in {**_PARTS, **code}.items():
        contrast = page.locator(part).first.evaluate(_CONTRAST)
        assert contrast >= least, (scheme, part, contrast)


@pytest.mark.parametrize(("preferred", "scheme"), [("light", "default"), ("dark", "slate")])
def test_it_follows_the_system_and_is_readable_in_both(
    browser: Browser, address: str, preferred: Any, scheme: str
) -> None:
    watched = Watched(browser, address, color_scheme=preferred)
    for name in ("memory.html", "writing-rules.html"):
        page = watched.go(name)
        assert _scheme(page) == scheme
        _assert_readable(page, scheme)
    watched.close()


def test_light_and_dark_are_a_choice_that_stays(watched: Watched) -> None:
    page = watched.go("schedules.html")
    schemes = []
    for _ in range(3):  # the system's, light, dark
        page.locator("label.md-header__button[for^=__palette]:visible").click()
        schemes.append(_scheme(page))
    assert schemes[:2] == ["default", "slate"]
    page.locator("label.md-header__button[for^=__palette]:visible").click()
    page.locator("label.md-header__button[for^=__palette]:visible").click()
    assert _scheme(watched.go("guards.html")) == "slate"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("AdamW", "optimizers/adamw.html"),
        ("adam", "optimizers/adam.html"),
        ("foreach", "performance.html"),
        ("clip_grad_norm", "guards.html"),
        ("optimizer got an empty parameter list", "errors.html"),
        ("ValueError: betas must be 2 numbers (beta1, beta2), got (0.9,)", "errors.html"),
        ("save_training", "checkpoints.html"),
        ("warmup cosine", "schedules"),
        ("nan", "guards.html"),
        ("loss is nan", "guards.html"),
        ("amsgrad", "optimizers/adam.html"),
        ("ema", "checkpoints.html"),
        ("learning rate", "schedules.html"),
        ("learning rate schedule", "schedules.html"),
        ("resume training", "checkpoints.html"),
        ("resume", "checkpoints.html"),
        ("weight decay", "terms.html"),
        ("bf16", "memory.html"),
    ],
)
def test_search_finds(watched: Watched, words: str, expected: str) -> None:
    page = watched.go("index.html")
    found = search(page, words)
    assert any(expected in place for place in found[:3]), found
    if expected == f"optimizers/{words.lower()}.html":
        assert found[0] == expected


def search(page: Page, words: str) -> list[str]:
    """The pages that a search finds, the best first."""
    page.locator(".md-search__input").click()
    page.wait_for_selector(".md-search-result__meta:has-text('Type')")  # the index is there
    page.locator(".md-search__input").fill(words)
    page.locator(".md-search__input").press("End")  # it listens for keys
    page.wait_for_selector(".md-search-result__meta:has-text('matching')")
    links = page.locator(".md-search-result__item > a.md-search-result__link")
    places = [str(links.nth(at).get_attribute("href")) for at in range(min(12, links.count()))]
    home = page.url.removesuffix("index.html")
    return list(dict.fromkeys(urlsplit(place.removeprefix(home)).path for place in places))


# What shows the focus: the element itself; of a hidden option the label beside it, which is seen.
_FOCUS = """
() => {
  let shown = document.activeElement;
  if (shown.classList.contains("md-option")) shown = shown.nextElementSibling;
  const box = shown.getBoundingClientRect();
  let opacity = 1;
  for (let at = shown; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
  const style = getComputedStyle(shown);
  const isSeen = style.visibility === "visible" && box.width > 0 && box.height > 0 && opacity > 0;
  return [shown.outerHTML.slice(0, 80), isSeen, style.outlineStyle, style.outlineWidth];
}
"""


@pytest.mark.parametrize("name", ["schedules.html", "optimizers/adam.html"])
def test_who_goes_by_keyboard_sees_where_they_are(watched: Watched, name: str) -> None:
    page = watched.go(name)
    page.emulate_media(reduced_motion="reduce")  # nothing fades in
    for _ in range(12):
        page.keyboard.press("Tab")
        what, is_seen, outline, width = page.evaluate(_FOCUS)
        assert is_seen, what
        assert outline != "none", what
        assert float(width.removesuffix("px")) >= 1, what
    assert page.locator(".formula[tabindex]").count() == 0


def test_a_signature_of_the_reference_is_not_cut(watched: Watched) -> None:
    page = watched.go("reference/rules.html")
    cut = page.evaluate(
        "[...document.querySelectorAll('.signature pre > code')]"
        ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
    )
    assert cut == []


def test_code_can_be_copied(watched: Watched) -> None:
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = watched.go("index.html")
    page.locator("[data-clipboard-target], .md-code__button[data-md-type=copy]").first.click()
    page.wait_for_selector(".md-dialog--active")
    assert "import steprule as optim" in page.evaluate("navigator.clipboard.readText()")


def test_a_wrong_address_gets_a_page_that_helps(browser: Browser, address: str) -> None:
    watched = Watched(browser, address)
    page = watched.go("no/such/page.html")
    assert "no such page" in page.locator("h1").inner_text()
    # The missing page itself is the browser's only complaint: style and scripts were found.
    assert all("404" in fault for fault in watched.faults)
    assert len(watched.faults) <= 1
    page.locator(".md-content a", has_text="all names").click()
    assert page.url.endswith("reference/index.html")
    watched.close()


def test_it_can_be_read_from_a_folder_without_a_server(browser: Browser, site: Path) -> None:
    watched = Watched(browser, site.as_uri() + "/", viewport={"width": 1280, "height": 900})
    page = watched.go("index.html")
    page.locator(".md-tabs a", has_text="Optimizers").click()
    page.wait_for_load_state("load")
    assert page.url.endswith("optimizers.html")
    page = watched.go("index.html")
    assert "guards.html" in search(page, "clip_grad_norm")
    # What the first page still asked for when the next was opened counts as failed.
    assert not [fault for fault in watched.faults if not fault.startswith("failed: ")]
    watched.close()
