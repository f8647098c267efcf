"""Captions: names of classes, held-out templates, and texts as word ids."""

import unicodedata

import pytest
import torch
from conftest import error_of
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import KMNIST, FashionMNIST

from ddpm.datasets.registry import DIGITS
from ddpm.networks.captions import (
    DIGIT_TEMPLATES,
    HELD_OUT,
    HELD_OUT_DIGIT,
    MAX_WORDS,
    PADDING,
    START,
    TEMPLATES,
    Vocabulary,
    caption_table,
    captions_of,
    names_of,
    split_words,
)

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DATA_SETS = {"digits": DIGITS, "fashion": FashionMNIST.classes, "kmnist": KMNIST.classes, "cifar": CIFAR}
KNOWN = Vocabulary(DIGITS)
# No template and no digit's name contains these words, so only equal names give equal captions.
WORDS = st.text("bcdfghjklmqrvwxyz", min_size=3, max_size=8)
NAMES = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


def words_of(class_names, held_out):
    """For each class the set of its captions, as their words."""
    return [{tuple(split_words(caption)) for caption in captions_of(name, held_out)} for name in class_names]


def check_captions(class_names):
    """All captions differ, between classes and between training and held-out ones; held-out ones need no further words."""
    training, held_out = words_of(class_names, False), words_of(class_names, True)
    captions = [caption for texts in (*training, *held_out) for caption in texts]
    assert len(captions) == len(set(captions))
    words = {word for texts in training for caption in texts for word in caption}
    assert words == set(Vocabulary(class_names).words)
    assert all(set(caption) <= words for texts in held_out for caption in texts)


class TestNames:
    @pytest.mark.parametrize(
        ("class_name", "names"),
        [
            ("7", ["7", "seven"]),
            ("0", ["0", "zero"]),
            ("10", ["10"]),
            ("T-shirt/top", ["t shirt", "top"]),
            ("Ankle boot", ["ankle boot"]),
            ("automobile", ["automobile"]),
            ("tench, Tinca tinca", ["tench", "tinca tinca"]),
            ("n01440764_tench", ["n01440764 tench"]),
            ("Käse / Brot", ["käse", "brot"]),
            ("cat/", ["cat"]),
            ("{}", []),
            ("_-_", []),
        ],
    )
    def test_names_of_splits_class_names_into_plain_words(self, class_name, names):
        assert names_of(class_name) == names

    def test_names_of_digits(self):
        counted = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        assert [names_of(name) for name in DIGITS] == [[str(k), word] for k, word in enumerate(counted)]

    def test_unicode_normalization_has_no_effect(self):
        name = "café crème"
        decomposed = unicodedata.normalize("NFD", name)
        assert decomposed != name
        assert names_of(decomposed) == names_of(name) == [name]
        assert torch.equal(Vocabulary([decomposed]).encode([name]), Vocabulary([name]).encode([decomposed]))

    @given(st.text())
    def test_split_words_is_idempotent(self, text):
        words = split_words(text)
        assert split_words(" ".join(words)) == words


class TestCaptions:
    def test_captions_of_fills_each_template_with_each_name(self):
        expected = [template.replace("{}", name) for template in DIGIT_TEMPLATES for name in ("7", "seven")]
        assert captions_of("7") == expected
        assert expected[:4] == ["7", "seven", "a 7", "a seven"]
        assert "a handwritten digit seven" in expected
        assert captions_of("T-shirt/top") == [
            template.replace("{}", name) for template in TEMPLATES for name in ("t shirt", "top")
        ]
        assert captions_of("cat", held_out=True) == [template.replace("{}", "cat") for template in HELD_OUT]
        assert captions_of("3", held_out=True) == [t.replace("{}", name) for t in HELD_OUT_DIGIT for name in ("3", "three")]

    def test_templates_contain_the_class_once(self):
        for templates in (DIGIT_TEMPLATES, HELD_OUT_DIGIT):
            assert all(template.count("{}") == 1 for template in templates)
            assert len(set(templates)) == len(templates)

    @pytest.mark.parametrize("name", DATA_SETS)
    def test_captions_of_data_sets_are_distinct(self, name):
        check_captions(DATA_SETS[name])

    @given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    def test_captions_of_any_classes_are_distinct(self, class_names):
        check_captions(class_names)

    def test_captions_of_digits_and_other_classes_are_distinct(self):
        check_captions(["7", "cat", "17", "1"])

    @pytest.mark.parametrize(
        ("class_names", "caption"),
        [
            (["7", "seven"], "seven"),
            (["Cat", "dog", "cat"], "cat"),
            (["cat", "the cat"], "the cat"),
            (["T-shirt/top", "Top"], "top"),
            (["cat", "picture of a cat"], "a picture of a cat"),
            (["red-car", "red_car"], "red car"),
            # Only a held-out caption of the first one.
            (["cat", "this is the cat"], "this is the cat"),
        ],
    )
    def test_vocabulary_refuses_classes_that_share_a_caption(self, class_names, caption):
        error, first, last = error_of(Vocabulary, class_names), class_names[0], class_names[-1]
        assert error.key == f"class {last!r}"
        assert f"caption {caption!r} would also describe class {first!r}" in error.message

    @pytest.mark.parametrize("name", ["", "--", "/", "!?, _"])
    def test_class_without_words_is_refused(self, name):
        for error in (error_of(captions_of, name), error_of(Vocabulary, ["cat", name])):
            assert str(error).startswith(f"class {name!r}: has no word")


class TestVocabulary:
    def test_words_do_not_depend_on_the_order_of_the_classes(self):
        assert KNOWN.words == sorted(KNOWN.words)
        assert {"seven", "7", "handwritten", "an"} <= set(KNOWN.words)
        assert "cat" not in KNOWN.words
        backwards = Vocabulary(DIGITS[::-1])
        assert backwards.words == KNOWN.words
        assert torch.equal(backwards.encode(["a 7", "nine"]), KNOWN.encode(["a 7", "nine"]))

    def test_encode_is_start_and_the_words_in_order(self):
        ids = KNOWN.encode(["the digit seven"])
        assert ids.dtype == torch.int64
        assert ids.shape == (1, 4)
        assert ids[0, 0] == START
        assert [KNOWN.words[i - START - 1] for i in ids[0, 1:]] == ["the", "digit", "seven"]
        assert not torch.equal(KNOWN.encode(["seven digit the"]), ids)

    def test_encode_pads_shorter_texts(self):
        ids = KNOWN.encode(["a seven", "", "this is a 7", " \n"])
        assert ids.shape == (4, 5)
        assert (ids == PADDING).sum(1).tolist() == [2, 4, 0, 4]
        assert (ids[:, 0] == START).all()
        assert torch.equal(ids[1], ids[3])
        assert torch.equal(ids[0, :3], KNOWN.encode(["a seven"])[0])
        assert KNOWN.encode([]).shape == (0, 1)

    @pytest.mark.parametrize(
        "text", ["A Handwritten SEVEN", "a, handwritten: seven!", "  a_handwritten-seven.  ", "a\thandwritten\nseven"]
    )
    def test_encode_ignores_case_space_and_punctuation(self, text):
        assert torch.equal(KNOWN.encode([text]), KNOWN.encode(["a handwritten seven"]))

    @given(st.lists(st.sampled_from(KNOWN.words), max_size=MAX_WORDS), st.sampled_from([str.lower, str.upper, str.title]))
    def test_encode_is_invertible(self, words, case):
        (ids,) = KNOWN.encode([case(" ".join(words))]).tolist()
        assert [KNOWN.words[i - START - 1] for i in ids[1:]] == words

    @given(st.text())
    def test_encode_refuses_other_texts_in_one_line(self, text):
        words = split_words(text)
        if set(words) <= set(KNOWN.words) and len(words) <= MAX_WORDS and (words or not text.strip()):
            assert KNOWN.encode([text]).shape == (1, 1 + len(words))
            return
        error = error_of(KNOWN.encode, [text])
        assert error.key == "text"
        assert len(str(error).splitlines()) == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a sevn", "text: the model was trained without the word 'sevn'; did you mean 'seven'? It knows: 0, 1, 2, "),
            ("a zebra", "text: the model was trained without the word 'zebra'; did you mean 'zero'? It knows: 0, 1, 2, "),
            ("qqq", "text: the model was trained without the word 'qqq'; it knows: 0, 1, 2, "),
            ("?!", "text: '?!' holds no words; the model knows: 0, 1, 2, "),
            ("a " * 17, "text: 17 words are too many; give at most 16"),
        ],
    )
    def test_encode_names_the_unknown_word(self, text, message):
        assert str(error_of(KNOWN.encode, ["seven", text])).startswith(message)

    def test_encode_lists_at_most_40_words(self):
        many = Vocabulary([f"class {k}" for k in range(100, 200)])
        message = str(error_of(many.encode, ["100 zzz"]))
        assert message.endswith(", 139 and 69 more")
        assert message.count(",") == 39

    @given(NAMES)
    def test_encode_takes_all_captions_of_a_class(self, name):
        vocabulary = Vocabulary([name])
        texts = captions_of(name) + captions_of(name, held_out=True)
        assert vocabulary.longest >= max(MAX_WORDS, *(len(split_words(text)) for text in texts))
        assert vocabulary.encode(texts).shape[0] == len(texts)


class TestTable:
    @pytest.mark.parametrize("held_out_captions", [False, True])
    def test_caption_table_has_a_row_per_caption(self, held_out_captions):
        table = caption_table(DIGITS, KNOWN, held_out_captions)
        for label, name in enumerate(DIGITS):
            captions = captions_of(name, held_out_captions)
            assert table.shape[:2] == (10, len(captions))
            expected = KNOWN.encode(captions)
            assert torch.equal(table[label][:, : expected.shape[1]], expected)
            assert (table[label][:, expected.shape[1] :] == PADDING).all()

    def test_caption_table_repeats_captions_of_a_class_with_fewer(self):
        names = ["T-shirt/top", "Coat", "a, b, c"]
        vocabulary = Vocabulary(names)
        table = caption_table(names, vocabulary)
        assert table.shape[1] == len(captions_of("a, b, c")) == 18
        coats = captions_of("Coat")
        expected = vocabulary.encode([coats[k % 6] for k in range(18)])
        assert torch.equal(table[1][:, : expected.shape[1]], expected)
        assert {tuple(row) for row in table[0].tolist()}.isdisjoint(map(tuple, table[1].tolist()))


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("8", {"an 8", "an eight", "a picture of an eight"}),
        ("1", {"a 1", "a one"}),
        ("airplane", {"an airplane", "an image of an airplane"}),
        ("eucalyptus", {"a eucalyptus"}),
        ("cat", {"a cat"}),
    ],
)
def test_captions_of_use_an_before_a_vowel_sound(class_name, expected):
    assert expected <= set(captions_of(class_name))
