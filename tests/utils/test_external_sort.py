"""Sorting on disk against Python's sort."""

import random
import tempfile

from u2seg.utils.external_sort import ExternalSort, repeated_items


def random_words(seed, count):
    rng = random.Random(seed)
    alphabet = ["a", "b", "Z", "/", "é", "\udce9", "\n", '"', "\U0001f600"]
    return ["".join(rng.choices(alphabet, k=rng.randrange(4))) for _ in range(count)]


def test_any_strings_come_back_in_order_however_few_are_held():
    for seed, limit in ((0, 1), (1, 7), (2, 1000)):
        words = random_words(seed, 200)
        with ExternalSort(limit) as order:
            for word in words:
                order.add(word)
            assert list(order) == sorted(words)
            assert list(order) == sorted(words), "it can be read again"


def test_lines_longer_than_a_block_are_put_together():
    words = ["x" * 40_000 + str(number) for number in range(5)]
    with ExternalSort(limit=2) as order:
        for word in reversed(words):
            order.add(word)
        assert list(order) == words


def test_repeated_items_are_those_that_a_count_finds():
    for seed in range(5):
        words = random_words(seed, 60)
        assert repeated_items(words, limit=8) == sorted(word for word in set(words) if words.count(word) > 1)


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    order = ExternalSort(limit=1)
    for word in "cab":
        order.add(word)
    assert list(order) == ["a", "b", "c"] and not list(tmp_path.iterdir())
