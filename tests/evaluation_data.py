"""Digits in memory and an untrained classifier, for the tests of ddpm/features and ddpm/evaluation."""

from functools import cache

import torch

from ddpm.data.prepared import Prepared, Split
from ddpm.datasets.registry import digits
from ddpm.features.classifier import Classifier

CPU = torch.device("cpu")


@cache
def digits_data() -> Prepared:
    source = digits(None)
    meta = {"dataset": "digits", "shape": [8, 8, 1], "class_names": list(source.class_names), "sha256": {}}
    return Prepared(meta, Split(*source.train), Split(*source.test))


def first_images(data: Prepared, train: int, test: int) -> Prepared:
    """Returns the data set with the first images of each split alone."""
    return data._replace(train=Split(*(x[:train] for x in data.train)), test=Split(*(x[:test] for x in data.test)))


@cache
def untrained_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(1, 10).eval().requires_grad_(False)
