"""Captions made from class names, and the vocabulary of a text-conditioned network.

Every class gets captions from several templates, so that a data set needs class names only: "7" becomes "a handwritten seven",
"the digit 7", and so on.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ddpm.core.files import InputError

PADDING, START = 0, 1  # word ids with a special meaning; the ids of words follow
MAX_WORDS = 16  # of a caption; longer class names raise it
TEMPLATES = ("{}", "a {}", "the {}", "an image of a {}", "a picture of a {}", "this is a {}")
DIGIT_TEMPLATES = (*TEMPLATES, "the digit {}", "the number {}", "a handwritten {}", "a handwritten digit {}")
# Not used in training, though their words are: they measure how well a network generalizes to new captions.
HELD_OUT = ("the picture of a {}", "this is the {}", "this is an image of the {}")
HELD_OUT_DIGIT = (*HELD_OUT, "handwritten {}", "a picture of the digit {}", "this is a handwritten number {}")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def split_words(text: str) -> list[str]:
    """Returns the words of a text, runs of letters and digits in lower case, independent of its Unicode normalization."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())


def names_of(class_name: str) -> list[str]:
    """Returns the names of a class in plain words: a digit and its word, or each name between commas and slashes."""
    if class_name in map(str, range(10)):
        return [class_name, DIGIT_WORDS[int(class_name)]]
    return [" ".join(words) for name in re.split(r"[,/]", class_name) if (words := split_words(name))]


def captions_of(class_name: str, held_out: bool = False) -> list[str]:
    """Returns all captions of a class: for each template, one per name. held_out: of the templates that training does not use.

    Raises InputError for a class name without a letter or digit.
    """
    names = names_of(class_name)
    if not names:
        raise InputError("has no word for a caption; rename it, or use another model.conditioning", key=f"class {class_name!r}")
    if class_name in map(str, range(10)):
        templates = HELD_OUT_DIGIT if held_out else DIGIT_TEMPLATES
    else:
        templates = HELD_OUT if held_out else TEMPLATES
    return [_fill(template, name) for template in templates for name in names]


def _fill(template: str, name: str) -> str:
    """Returns the template with the name in it, and "an" for "a" where the spelling of the name suggests a vowel's sound."""
    vowel = re.match(r"[aeio]|8|11\b|18\b", name) and not re.match(r"one\b|eu", name)
    return (re.sub(r"\ba \{\}", "an {}", template) if vowel else template).format(name)


class Vocabulary:
    """The words of all captions of a data set, in alphabetical order; it encodes texts as word ids.

    Raises InputError for a class name without a word, and for a caption that would describe two classes.
    """

    def __init__(self, class_names: Sequence[str]):
        self.longest = max(MAX_WORDS, *map(len, _class_of_caption(class_names)))
        self.words = sorted({word for name in class_names for caption in captions_of(name) for word in split_words(caption)})
        self._ids = {word: START + 1 + k for k, word in enumerate(self.words)}

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Returns word ids, int64 (N, L): START, the words, then PADDING up to the longest of these texts.

        An empty text is "no caption". Raises InputError for an unknown word, and for too many words.
        """
        rows = [[START, *(self._id(word) for word in self._words(text))] for text in texts]
        ids = torch.full((len(rows), max(map(len, rows), default=1)), PADDING)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        return ids

    def _words(self, text: str) -> list[str]:
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

    def _listed(self, limit: int = 40) -> str:
        more = f" and {len(self.words) - limit:,} more" if len(self.words) > limit else ""
        return ", ".join(self.words[:limit]) + more


def _class_of_caption(class_names: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Returns the class of each caption, by its words, held-out ones included."""
    owners: dict[tuple[str, ...], int] = {}
    for label, name in enumerate(class_names):
        for caption in (*captions_of(name), *captions_of(name, held_out=True)):
            other = owners.setdefault(tuple(split_words(caption)), label)
            if other != label:
                raise InputError(
                    f"the caption {caption!r} would also describe class {class_names[other]!r}; rename one, or use another "
                    "model.conditioning",
                    key=f"class {name!r}",
                )
    return owners


def caption_table(class_names: Sequence[str], vocabulary: Vocabulary, held_out: bool = False) -> Tensor:
    """Returns the word ids of all captions, int64 (classes, M, L); a class with fewer captions repeats its own."""
    captions = [captions_of(name, held_out) for name in class_names]
    most = max(map(len, captions))
    rows = [texts[k % len(texts)] for texts in captions for k in range(most)]
    return vocabulary.encode(rows).reshape(len(class_names), most, -1)
