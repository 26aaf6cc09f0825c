"""Counts in messages: singular and plural."""

import pytest

from retina_jax.wording import counted


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1, "class", "1 class"),
        (2, "training image", "2 training images"),
        (2, "class", "2 classes"),
        (3, "box", "3 boxes"),
        (4, "batch", "4 batches"),
        ("1.5", "epoch", "1.5 epochs"),
        ("no", "note", "no notes"),
    ],
)
def test_the_noun_agrees_with_its_count(count, noun, words):
    assert counted(count, noun) == words
