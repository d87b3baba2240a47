"""Pages of optimizers and schedules: formulas as MathML, examples that run, paths, pictures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

import steprule
from docs_build import optimizer_pages, schedule_pages
from docs_build.mathematics import aligned, inline
from docs_build.optimizer_examples import example_of
from docs_build.optimizers import symbols, update
from docs_build.pictures import drawing, kept, paths
from docs_build.pictures.surfaces import SURFACES, Surface
from docs_build.schedule_examples import CLASSES, COMPOSED, SHAPES, Example
from steprule import lr_scheduler, schedules
from steprule.cli.catalogue import defaults_of
from steprule.formulas import formulas, latex_lines, latex_of_symbol

MATHML = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture(scope="module")
def pages() -> dict[str, str | bytes]:
    """All pages, without the search for learning rates that pictures take."""
    drawn = {surface.key: ("<svg/>", 0.1, 27, 0.5, 300) for surface in SURFACES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_pages, "pictures_of", lambda name: drawn)
        return optimizer_pages.files()


def test_every_optimizer_has_a_page_with_formula_options_and_pictures(
    pages: dict[str, str | bytes],
) -> None:
    for name, cls in steprule.OPTIMIZERS.items():
        page = str(pages[f"optimizers/{name}.md"])
        assert page.startswith(f"# {cls.__name__}\n")
        assert "<math" in page, name
        for heading in ("Update", "When to use it", "Example", "Its path", "Options", "Source"):
            assert re.search(rf"^## {heading}\n\n\S", page, re.M), (name, heading)
        for option in defaults_of(cls):
            row = re.search(rf"^\| `{option}` \| `.*` \| \S", page, re.M)
            assert row, f"{name}: nothing is said of {option}"
        for surface in SURFACES:
            assert f"optimizers/{name}_{surface.key}.svg" in pages
            assert f'src="{name}_{surface.key}.svg" alt="Path of {cls.__name__} on' in page
        assert ":class:" not in page, name
        assert ":func:" not in page, name


RECORDED = {name: cls for name, cls in steprule.OPTIMIZERS.items() if cls.rule is not None}


@pytest.mark.parametrize("name", RECORDED)
def test_symbols_of_a_page_and_rows_of_its_table_are_the_same(
    name: str, pages: dict[str, str | bytes]
) -> None:
    """Each symbol that is printed and that no line defines has a row, and no other has."""
    cls = RECORDED[name]
    explained = update.explained(name, cls)
    printed = {symbol for formula in explained for symbol in symbols.undefined_in(formula)}
    rows = [symbol for symbol, _ in symbols.rows_of(cls, explained)]
    assert set(rows) <= printed
    assert {symbol.letter for symbol in rows} == {symbol.letter for symbol in printed}
    # One symbol, one meaning, in all formulas of a page; the gradient before is g, too.
    assert len(set(rows)) == len(rows), rows
    assert len({symbol.letter for symbol in rows if symbol.base != "g"}) == len(
        [symbol for symbol in rows if symbol.base != "g"]
    ), rows
    for symbol in rows:
        row = f"| {inline(latex_of_symbol(symbol))} | "
        assert row in str(pages[f"optimizers/{name}.md"])


def test_words_signs_and_primes_are_set_as_by_tex() -> None:
    space, minus = '<mspace width="0.1667em"/>', '<mo form="prefix">\u2212</mo>'
    found = re.sub(
        r' stretchy="\w+"| /',
        lambda x: "/" if x[0] == " /" else "",
        inline(
            r"\gamma \operatorname{clip}(x, -1, 1) - \lambda^{\prime} + \max(-a) \eta^{\prime}_t"
        ),
    )
    assert f"<mi>\u03b3</mi>{space}<mi>clip</mi><mo" in found
    assert f"<mo>,</mo>{minus}<mn>1</mn>" in found
    assert "</mo><mo>\u2212</mo><mi>\U0001d706\u2032</mi><mo>+</mo><mi>max</mi><mo" in found
    assert f">(</mo>{minus}<mi>a</mi>" in found
    assert "<msub><mi>\U0001d702\u2032</mi><mi>t</mi></msub>" in found


def test_an_option_that_follows_from_others_has_a_number() -> None:
    rows = symbols.rows_of(steprule.Prodigy, update.explained("prodigy", steprule.Prodigy))
    (said,) = (text for (_, name), text in rows.items() if name == "beta3")
    # The square root of beta2.
    assert said == "option `beta3`, None: 0.9995 if the others have their defaults"


def test_what_is_not_printed_is_no_symbol_of_a_page() -> None:
    """NewtonSchulz has its coefficients without showing them."""
    rows = symbols.rows_of(steprule.Muon, update.explained("muon", steprule.Muon))
    assert not [meaning for meaning in rows.values() if "ns_coefficients" in meaning]


def test_a_page_has_nothing_of_the_docstrings_markup(pages: dict[str, str | bytes]) -> None:
    for name in steprule.OPTIMIZERS:
        page = str(pages[f"optimizers/{name}.md"])
        words = re.sub(r"<details>.*?</details>|```.*?```", "", page, flags=re.S)
        for left in ("Raises:", "When to use:", "Source:", "Args:", "(default", "Default ", "\\<"):
            assert left not in words, (name, left)
        assert "see above" not in words, name
        assert not re.search(r"(?<!\[)docs/\w+\.md", words), name


def test_a_page_says_in_which_form_decay_is_taken(pages: dict[str, str | bytes]) -> None:
    def taken(name: str) -> str:
        found = re.search(r"^Takes .*$", str(pages[f"optimizers/{name}.md"]), re.M)
        assert found is not None
        return found[0]

    assert taken("adamw").startswith("Takes [decoupled weight decay](")
    assert "decay in L2 form or [decoupled](../terms.md) (`decoupled_weight_decay=True`)" in taken(
        "adam"
    )
    assert "decay decoupled or [in L2 form](../terms.md) (`decoupled_weight_decay=False`)" in taken(
        "lion"
    )
    assert taken("lamb").startswith("Takes weight decay as its formula has it")
    assert "weight decay" not in taken("sparseadam")


def test_pages_say_where_state_of_a_rule_comes_from(pages: dict[str, str | bytes]) -> None:
    assert r"h_t &amp;= \beta_2 h_{t-1}" in str(pages["optimizers/sophiag.md"])
    assert "is what one evaluates" in str(pages["optimizers/schedulefreesgd.md"])
    assert "the first gradient at first" not in str(pages["optimizers/sgd.md"])


def test_pictures_are_made_anew_when_what_computes_them_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not only when the rule's own file does: an operation is another one here."""
    before = kept._digest.__wrapped__("adam")
    assert kept._digest.__wrapped__("adam") == before
    points = paths.beginning_of("adam", SURFACES[0])
    monkeypatch.setattr(kept, "beginning_of", lambda *_: points + 1e-7)
    assert kept._digest.__wrapped__("adam") != before


def test_symbols_on_a_page_are_explained_by_its_options(pages: dict[str, str | bytes]) -> None:
    page = str(pages["optimizers/adam.md"])
    assert "| option `betas[1]`, 0.999 |" in page
    assert "| state `exp_avg`, 0 at first |" in page
    assert "With <code>amsgrad=True</code>" in page


def test_formulas_are_mathml_that_parses() -> None:
    for name, cls in steprule.OPTIMIZERS.items():
        if cls.rule is None:
            continue
        lines = latex_lines(formulas(cls)[0])
        box = ET.fromstring(aligned(lines).replace(" data-search-exclude", ""))
        rows = box.findall(f"{MATHML}math/{MATHML}mtable/{MATHML}mtr")
        assert len(rows) == len(lines), name
        words = "".join(box.itertext())
        assert "\\" not in words, f"{name}: {words}"
        assert "&" not in words, f"{name}: {words}"


SPECIAL = ["lbfgs", "sparseadam", "muon", "sophiag", "schedulefreesgd", "adam", "sgd"]


@pytest.mark.parametrize("name", SPECIAL)
def test_examples_run(name: str) -> None:
    exec(example_of(name), {})


def test_other_examples_differ_in_name_and_options_alone() -> None:
    for name, cls in steprule.OPTIMIZERS.items():
        code = example_of(name)
        assert f"optim.{cls.__name__}(" in code
        compile(code, name, "exec")


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.key)
def test_derivatives_of_the_surfaces(surface: Surface) -> None:
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 20))
    h = 1e-6  # central differences: errors of h**2 and of rounding / h, both below 1e-5 here
    along_x = (surface.value(x + h, y) - surface.value(x - h, y)) / (2 * h)
    along_y = (surface.value(x, y + h) - surface.value(x, y - h)) / (2 * h)
    np.testing.assert_allclose(surface.gradient(x, y), (along_x, along_y), rtol=1e-4, atol=1e-4)
    bend_x = (surface.gradient(x + h, y)[0] - surface.gradient(x - h, y)[0]) / (2 * h)
    bend_y = (surface.gradient(x, y + h)[1] - surface.gradient(x, y - h)[1]) / (2 * h)
    np.testing.assert_allclose(surface.curvature(x, y), (bend_x, bend_y), rtol=1e-4, atol=1e-4)
    at = np.array([surface.minimum]).T
    assert surface.value(*at) == pytest.approx(0)


def test_paths_are_those_of_an_optimizer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All learning rates are walked together; one by itself comes by the same points."""
    monkeypatch.setattr(paths, "STEPS", 12)
    surface = SURFACES[0]
    for name in ("adam", "schedulefreesgd"):
        found = paths.path_of(name, surface)
        monkeypatch.setattr(paths, "RATES", (found.lr,))
        alone = paths.path_of(name, surface)
        monkeypatch.undo()
        monkeypatch.setattr(paths, "STEPS", 12)
        np.testing.assert_array_equal(found.points, alone.points)
        assert found.points.shape == (13, 2)
        assert tuple(found.points[0]) == pytest.approx(surface.start)
        assert found.value < surface.value(*np.array([surface.start]).T)


def test_the_path_of_schedule_free_is_that_of_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(paths, "STEPS", 5)
    monkeypatch.setattr(paths, "RATES", (0.003,))
    surface = SURFACES[1]
    found = paths.path_of("schedulefreesgd", surface)
    param = torch.tensor(surface.start, requires_grad=True)
    optimizer = steprule.ScheduleFreeSGD([param], lr=0.003)
    for _ in range(5):
        x, y = param.detach().double().numpy()
        param.grad = torch.tensor(np.array(surface.gradient(x, y))).float()
        optimizer.step()
    optimizer.eval()
    # float32 on either side; x is computed from y and z in float64 there.
    np.testing.assert_allclose(found.points[-1], param.detach().numpy(), rtol=1e-5)


def test_pictures_of_paths_are_small_and_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "STEPS", 60)
    for surface in SURFACES:
        found = paths.path_of("sgd", surface)
        svg = drawing.picture(surface, drawing.contours(surface), found, "Path of <SGD>")
        assert len(svg) < 60_000
        root = ET.fromstring(svg)
        assert root.findtext("{http://www.w3.org/2000/svg}title") == "Path of <SGD>"
        assert "nan" not in svg


def test_a_path_that_leaves_for_infinity_is_drawn() -> None:
    surface = SURFACES[0]
    points = np.array([surface.start, (1e30, 3.0), (np.inf, np.nan)])
    svg = drawing.picture(surface, "", paths.Path(1.0, 1, points, np.inf), "far")
    ET.fromstring(svg)
    assert "nan" not in svg
    assert "inf" not in svg


ALL: tuple[Example, ...] = (*SHAPES, *COMPOSED, *CLASSES)


def test_the_gallery_has_every_schedule() -> None:
    shown = {example.title for example in ALL}
    made = {n for n in schedules.__all__ if not isinstance(getattr(schedules, n), type)}
    assert made - {"parse"} <= shown
    classes: set[Any] = {*lr_scheduler.__all__}
    assert classes - {"LRScheduler", "scheduler_first"} <= shown
    assert len({example.key for example in ALL}) == len(ALL)


def test_the_gallery_draws_what_its_code_makes() -> None:
    made = schedule_pages.files()
    page = str(made["schedules/gallery.md"])
    for example in ALL:
        assert example.code in page
        svg = str(made[f"schedules/{example.key}.svg"])
        ET.fromstring(svg)
        assert len(svg) < 60_000
    (wsd,) = [x for x in SHAPES if x.title == "wsd"]
    values = schedule_pages.values_of(wsd)
    assert len(values) == 100
    assert values[10] == values[69] == 0.1
    (plateau,) = [x for x in CLASSES if x.title == "ReduceLROnPlateau"]
    assert len(set(schedule_pages.values_of(plateau))) > 2
