"""Names in any script are drawn in a font that has their characters, or as codes."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from ddpm.plots import fonts, image_grid, sample_figures
from ddpm.plots.style import plain

NAMES = ("\u00e9t\u00e9", "e\u0301te\u0301", "\u041a\u043e\u0442", "\u0639\u0631\u0628", "\u65e5\u672c", "\U0001f415 dog",
         "\ufb01n", "a_b $x$ c$", "\x1b[31mred\n\u202e", "\U0001f468\u200d\U0001f469", "x" * 500, "\u0915", "0")  # fmt: skip


@pytest.fixture(autouse=True)
def no_installed_fonts(monkeypatch):
    install(monkeypatch)


def install(monkeypatch, *files):
    for function in (fonts._font_with, fonts._characters, fonts._warn, fonts.font_of):
        function.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file) for file in files])


def make_font(path, characters):
    """Writes a font in which every character is a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap(dict.fromkeys(map(ord, characters), "square"))
    builder.setupGlyf({name: pen.glyph() for name in (".notdef", "square")})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "square"), (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def draw_all(folder):
    """Draws names into every kind of picture; a glyph that is missing is an error."""
    labels = np.arange(2 * len(NAMES)) % len(NAMES)
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_grid.save(folder / "a.png", image_grid.captioned([images[:1]] * len(NAMES), NAMES, NAMES[:1], 8))
        image_grid.table([images[: len(NAMES)]], [""], NAMES, 32)
        sample_figures.class_histogram(folder / "b.png", {"real": labels}, NAMES)
        sample_figures.confusion(folder / "c.png", {"real": (labels, labels)}, NAMES)


def test_names_are_drawn_in_fonts_that_have_their_characters(tmp_path, monkeypatch):
    draw_all(tmp_path)
    install(monkeypatch, make_font(tmp_path / "Squares.ttf", "\u65e5\u672c"))
    draw_all(tmp_path)
    for name in map(fonts.drawable, NAMES):
        if not name.isascii():
            assert set(map(ord, name)) <= set(FT2Font(fonts.font_of(name).path).get_charmap())


def test_a_font_is_searched_for_the_characters_that_dejavu_lacks(tmp_path, monkeypatch):
    others = [make_font(tmp_path / "Other.ttf", "\u65e5"), tmp_path / "damaged.ttf"]
    others[1].write_bytes(b"no font")
    name = "\u65e5\u672c"
    install(monkeypatch, *others, file := make_font(tmp_path / "Squares Sans.ttf", name))
    assert fonts.drawable(name) == name
    assert fonts.font_of(name).path == str(file)
    assert fonts.families([name, "cat", "\u00e9"]) == ["DejaVu Sans", "Squares Sans"]


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("\u65e5 \u00e9", "\\u65e5 \u00e9"),
        ("\uff21", "A"),
        ("e\u0301", "\u00e9"),
        ("\u2764\ufe0f", "\u2764"),
        ("a\x1b[1m\nb", "a\\x1b[1m b"),
    ],
)
def test_drawable_without_a_font_gives_letters_or_codes(name, drawn):
    assert fonts.drawable(name) == drawn
    assert fonts.drawable(drawn) == drawn


def test_missing_fonts_are_told_once(capsys):
    for name in ("\u65e5", "\u672c", "cat"):
        fonts.drawable(name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no installed font has the characters \u65e5, so pictures show codes")


def test_plain_names_hold_no_formulas():
    assert plain(["a_b", "$x$", "a\tb"]) == ["a_b", r"\$x\$", "a b"]
