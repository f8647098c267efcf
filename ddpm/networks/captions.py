"""Captions made of class names, and the words that a text-conditioned network knows.

Every class gets a caption from each of several templates, so that a data set with class names needs no captions of its own:
"7" becomes "a handwritten seven", "the digit 7", and so on.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ddpm.core.files import InputError

PADDING, START = 0, 1  # of the ids; words come after them
MAX_WORDS = 16  # of a caption, at least; longer class names make room for more
TEMPLATES = ("{}", "a {}", "the {}", "an image of a {}", "a picture of a {}", "this is a {}")
DIGIT_TEMPLATES = (*TEMPLATES, "the digit {}", "the number {}", "a handwritten {}", "a handwritten digit {}")
# Never seen in training, though their words are: how well a network reads, not remembers, is measured with these.
UNSEEN = ("the picture of a {}", "this is the {}", "this is an image of the {}")
UNSEEN_DIGIT = (*UNSEEN, "handwritten {}", "a picture of the digit {}", "this is a handwritten number {}")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def split_words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in lower case; however a letter with an accent is encoded."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())


def names_of(class_name: str) -> list[str]:
    """What a class may be called: a digit also by its word, and each of several names parted by a comma or a slash."""
    if class_name in map(str, range(10)):
        return [class_name, DIGIT_WORDS[int(class_name)]]
    return [" ".join(words) for name in re.split(r"[,/]", class_name) if (words := split_words(name))]


def captions_of(class_name: str, held_out_captions: bool = False) -> list[str]:
    """All captions of a class, a template after the other, its names in turn; `held_out_captions`: those that no training shows.

    Raises InputError for a class name without a letter or digit.
    """
    names = names_of(class_name)
    if not names:
        raise InputError(
            f"class {class_name!r}: holds no word that a caption could be made of; rename it, or use another model.conditioning"
        )
    if class_name in map(str, range(10)):
        templates = UNSEEN_DIGIT if held_out_captions else DIGIT_TEMPLATES
    else:
        templates = UNSEEN if held_out_captions else TEMPLATES
    return [_with_article(template, name) for template in templates for name in names]


def _with_article(template: str, name: str) -> str:
    """The template with a name in it, and "an" before a vowel's sound, as far as letters tell it."""
    vowel = re.match(r"[aeio]|8|11\b|18\b", name) and not re.match(r"one\b|eu", name)
    return (re.sub(r"\ba \{\}", "an {}", template) if vowel else template).format(name)


class Vocabulary:
    """The words of all captions of a data set, in alphabetical order, and texts as rows of their ids.

    Raises InputError for a class name without a word, and for a caption that would stand for two classes.
    """

    def __init__(self, class_names: Sequence[str]):
        self.longest = max(MAX_WORDS, *map(len, _owners(class_names)))
        # Of the captions that training shows: no other word would mean anything.
        self.words = sorted({word for name in class_names for caption in captions_of(name) for word in split_words(caption)})
        self._ids = {word: START + 1 + k for k, word in enumerate(self.words)}

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Ids int64 (N, L): START, those of the words, then PADDING up to the longest of these texts.

        An empty text is "no caption". Raises InputError for a word that is not known, and for too many.
        """
        rows = [[START, *(self._id(word) for word in self._checked(text))] for text in texts]
        ids = torch.full((len(rows), max(map(len, rows), default=1)), PADDING)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = torch.tensor(found)
        return ids

    def _checked(self, text: str) -> list[str]:
        words = split_words(text)
        if text.strip() and not words:
            raise InputError(f"{text!r} holds no words; the model knows: {self._listed()}", key="text")
        if len(words) > self.longest:
            raise InputError(f"{len(words)} words are too many; give at most {self.longest}", key="text")
        return words

    def _id(self, word: str) -> int:
        if word not in self._ids:
            nearest = difflib.get_close_matches(word, self.words, n=1)
            hint = f"did you mean {nearest[0]!r}? It knows" if nearest else "it knows"
            raise InputError(f"the model was trained without the word {word!r}; {hint}: {self._listed()}", key="text")
        return self._ids[word]

    def _listed(self, most: int = 40) -> str:
        more = f" and {len(self.words) - most:,} more" if len(self.words) > most else ""
        return ", ".join(self.words[:most]) + more


def _owners(class_names: Sequence[str]) -> dict[tuple[str, ...], int]:
    """The class that each caption stands for, by the caption's words; unseen captions are told apart too."""
    owners: dict[tuple[str, ...], int] = {}
    for label, name in enumerate(class_names):
        for caption in (*captions_of(name), *captions_of(name, held_out_captions=True)):
            other = owners.setdefault(tuple(split_words(caption)), label)
            if other != label:
                raise InputError(
                    f"class {name!r}: would be called {caption!r}, and so would class {class_names[other]!r}; rename one, or "
                    "use another model.conditioning"
                )
    return owners


def caption_table(class_names: Sequence[str], vocabulary: Vocabulary, held_out_captions: bool = False) -> Tensor:
    """The ids of all captions, int64 (classes, M, L); a class with fewer captions than another repeats its own."""
    captions = [captions_of(name, held_out_captions) for name in class_names]
    most = max(map(len, captions))
    rows = [of[k % len(of)] for of in captions for k in range(most)]
    return vocabulary.encode(rows).reshape(len(class_names), most, -1)
