from __future__ import annotations

import pytest
import torch

from diffgen.levels import per_sample, within


@pytest.mark.parametrize("value", [3, 3.0, [3, 3], torch.tensor([[3]]), torch.tensor(3.0)])
def test_within_keeps_the_shape_and_returns_float64(value):
    result = within(value, 0, 3, "t")
    assert result.dtype == torch.float64
    assert result.shape == torch.as_tensor(value).shape
    assert bool((result == 3).all())


@pytest.mark.parametrize("bad", [-0.5, 3.5, float("nan"), float("inf")])
def test_within_names_argument_value_and_place(bad):
    with pytest.raises(ValueError, match=rf"t must be in \[0, 3\], got {bad:g} at index 2"):
        within([1, 2, bad], 0, 3, "t")
    with pytest.raises(ValueError, match=rf"got {bad:g}$"):
        within(bad, 0, 3, "t")


def test_within_under_vmap_spoils_only_the_bad_row():
    result = torch.func.vmap(lambda t: within(t, 0, 3, "t"))(torch.tensor([1.0, 4.0, 2.0]))
    assert result.isnan().tolist() == [False, True, False]


def test_within_compiles_without_a_graph_break():
    compiled = torch.compile(lambda t: within(t, 0, 3, "t"), fullgraph=True, backend="eager")
    assert compiled(torch.tensor([1.0, 4.0])).isnan().tolist() == [False, True]


def test_per_sample_broadcasts_one_value_or_one_for_each():
    x = torch.zeros(2, 3, 4)
    assert per_sample(2, x, "sigma").shape == ()
    assert per_sample(torch.ones(1, 1, 1), x, "sigma").shape == ()
    for shape in ((2,), (2, 1), (1, 2), (2, 1, 1)):
        assert per_sample(torch.ones(shape), x, "sigma").shape == (2, 1, 1)
    assert per_sample(torch.ones(0), torch.zeros(0, 3), "sigma").shape == (0, 1)


def test_per_sample_refuses_another_count():
    with pytest.raises(ValueError, match="sigma must have 1 or 2 elements, got 3"):
        per_sample(torch.ones(3), torch.zeros(2, 3), "sigma")


def test_numbers_keep_their_float64_digits():
    assert float(within(0.1, 0, 1, "t")) == 0.1
    assert per_sample([0.1, 0.2], torch.zeros(2, 1), "sigma").flatten().tolist() == [0.1, 0.2]
