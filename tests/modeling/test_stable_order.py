"""Equal values in the order of their places."""

import torch
from u2seg.modeling.stable_order import StableOrder


def test_the_largest_values_are_those_of_topk_and_equal_ones_stand_by_place():
    values = torch.randint(0, 5, (3, 1000), generator=torch.Generator().manual_seed(0)).float()
    with StableOrder():
        found, index = values.topk(300, dim=1)
    assert torch.equal(found, values.topk(300, dim=1).values)
    for row, places in zip(values.tolist(), index.tolist()):
        assert places == sorted(range(1000), key=lambda place: (-row[place], place))[:300]


def test_sorting_is_stable_in_the_block():
    values = torch.randint(0, 5, (1000,), generator=torch.Generator().manual_seed(1)).float()
    with StableOrder():
        ordered, index = values.sort(descending=True)
    assert index.tolist() == sorted(range(1000), key=lambda place: (-values[place].item(), place))
    assert torch.equal(ordered, values[index])
