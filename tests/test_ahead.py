"""Samples that are read ahead, against each step's own read."""

import numpy as np
import pytest
import torch
from small_models import random_shard

from fedhp.data import ahead
from fedhp.data.ahead import Ahead, Source


@pytest.mark.parametrize("at_once", [1, 4 * 8 * 64, 10**6])
@pytest.mark.parametrize("picked", [False, True])
def test_each_step_is_the_next_samples_of_each(at_once, picked, monkeypatch):
    """Of three with 21, 13 and 9 samples in steps of 8: the second and third leave after two steps."""
    monkeypatch.setattr(ahead, "_BYTES", at_once)
    shards = [random_shard((1, 8, 8), 5, size, seed=size) for size in (21, 13, 9)]
    orders = [np.random.default_rng(7).permutation(len(shard)) for shard in shards]
    inputs = [np.arange(place, 40) if picked else None for place in (0, 0, 0)]
    reader = Ahead()
    for done, number in ((0, 3), (8, 3), (16, 1)):

        def sources(done=done, number=number):
            rest = zip(shards[:number], orders, inputs, strict=False)
            return [Source(shard, order[done:], own) for shard, order, own in rest]

        samples, labels = reader.take((0, done), 8, number, sources)
        assert samples.shape[:2] == labels.shape == (number, 8)
        for place in range(number):
            rows = orders[place][done : done + 8]
            wanted, classes = shards[place].batch(rows, inputs[place])
            assert torch.equal(samples[place, : len(rows)], wanted)
            assert torch.equal(labels[place, : len(rows)], classes)


def test_another_pass_is_read_anew():
    shard, reader = random_shard((1, 2, 2), 3, 12), Ahead()
    first = reader.take((0, 0), 4, 2, lambda: [Source(shard, np.arange(12), None)] * 2)
    again = reader.take((1, 0), 4, 2, lambda: [Source(shard, np.arange(12)[::-1], None)] * 2)
    assert torch.equal(first[0][0], shard.batch(np.arange(4))[0])
    assert torch.equal(again[0][0], shard.batch(np.arange(11, 7, -1))[0])


def test_a_lone_one_is_read_a_step_at_a_time(monkeypatch):
    """A device has no room for more."""
    shard, reader, taken = random_shard((1, 2, 2), 3, 12), Ahead(), []
    batch = shard.batch

    def seen(rows, inputs, **how):
        taken.append(len(rows))
        return batch(rows, inputs, **how)

    monkeypatch.setattr(shard, "batch", seen)
    for done in (0, 4, 8):
        reader.take((0, done), 4, 1, lambda done=done: [Source(shard, np.arange(done, 12), None)])
    assert taken == [4, 4, 4]
