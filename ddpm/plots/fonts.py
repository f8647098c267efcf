"""Fonts for names that come from files, such as those of classes: the first installed font that has all of their characters."""

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

from ddpm.core.files import print_line, printable

FONT_SIZE = 14
# Joiners, and selectors of a variant of a character: they have no picture of their own.
INVISIBLE = re.compile("[\u200c\u200d\ufe00-\ufe0f]")


def drawable(text: str) -> str:
    """Returns a text in one line of characters that a picture can show: those of one font that is installed.

    Where no font has all of them, one line on stderr says so, once, and characters that DejaVu Sans lacks lose their accents or
    become codes such as \\u65e5.
    """
    line = printable(" ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split()))
    if line.isascii() or _font_with(frozenset(line)):
        return line
    known = _characters(_default())
    _warn("".join(sorted(set(line) - known)))
    return "".join(_replacement(character, known) for character in line)


def _replacement(character: str, known: frozenset[str]) -> str:
    if character in known:
        return character
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return base if base and known.issuperset(base) else character.encode("unicode_escape").decode()


@cache
def _warn(missing: str) -> None:
    if _warn.cache_info().currsize == 0:
        advice = "install one that has them, such as Noto Sans CJK for Chinese, Japanese and Korean"
        print_line(f"warning: no installed font has the characters {missing}, so pictures show codes; {advice}", sys.stderr)


@cache
def font_of(text: str) -> ImageFont.FreeTypeFont:
    """Returns the font of 14 pixels in which Pillow draws a `drawable` text."""
    return (
        ImageFont.load_default(FONT_SIZE)
        if text.isascii()
        else ImageFont.truetype(_font_with(frozenset(text)) or _default(), FONT_SIZE)
    )


def families(texts: Iterable[str]) -> list[str]:
    """Returns the font families in which Matplotlib draws `drawable` texts."""
    from matplotlib import font_manager

    files = dict.fromkeys(_font_with(frozenset(text)) or _default() for text in texts if not text.isascii())
    for file in files:
        font_manager.fontManager.addfont(file)
    return list(dict.fromkeys(["DejaVu Sans", *(font_manager.get_font(file).family_name for file in files)]))


@cache
def _font_with(characters: frozenset[str]) -> str | None:
    """Returns the file of the first scalable font that has the characters: DejaVu Sans, then plain faces of installed fonts."""
    from matplotlib import font_manager

    def order(file: str) -> tuple[bool, bool, str]:
        name = Path(file).stem.lower()
        return bool(re.search("bold|italic|oblique|black|light|thin", name)), "sans" not in name, file

    candidates = (_default(), *sorted(font_manager.findSystemFonts(), key=order))
    return next((file for file in candidates if characters <= _characters(file)), None)


def _default() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))


@lru_cache(maxsize=32)  # fonts of Chinese take megabytes
def _characters(file: str) -> frozenset[str]:
    """Returns the characters of a font, none of one that cannot be read or that has pictures of fixed sizes."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
