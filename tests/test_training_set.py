"""The training set: what it keeps, what it derives, what it refuses."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from diffgen.errors import DataError
from diffgen.training_set import TrainingSet

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TYPES = (torch.uint8, *FLOATS)


def make(dtype, count=7, shape=(3, 4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(256, (count, *shape), dtype=dtype, generator=generator)
    return torch.randn(count, *shape, dtype=torch.float64, generator=generator).to(dtype)


def real_values(data, value_range=(-1.0, 1.0)):
    """Values in exact rational arithmetic, rounded once to float64."""
    if data.dtype != torch.uint8:
        return data.double()
    low, high = value_range
    return low + data.double() * (high - low) / 255


# Storage


@pytest.mark.parametrize("dtype", TYPES)
def test_storage_keeps_its_type_and_is_shared(dtype):
    data = make(dtype)
    ts = TrainingSet(data)
    assert ts.dtype == dtype
    assert ts.sample_shape == (3, 4, 5)
    assert len(ts) == ts.num_stored == 7
    assert ts.view().data.data_ptr() == data.data_ptr()
    assert ts.view().data.shape == (7, 60)


def test_storage_copies_what_is_not_contiguous():
    data = make(torch.float32).transpose(1, 3)
    ts = TrainingSet(data)
    assert ts.view().data.is_contiguous()
    assert torch.equal(ts[:], data)


def test_storage_takes_arrays_of_every_kind():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    read_only = values.copy()
    read_only.flags.writeable = False
    swapped = values.astype(values.dtype.newbyteorder())
    for array in (values, read_only, swapped, values[::-1][::-1], np.asfortranarray(values)):
        assert np.array_equal(TrainingSet(array)[:].numpy(), values)
    assert TrainingSet(values).view().data.data_ptr() == values.ctypes.data
    assert np.array_equal(TrainingSet(values[::-1])[:].numpy(), values[::-1])


def test_storage_detaches_from_autograd():
    data = torch.nn.Parameter(torch.randn(3, 2))
    assert not TrainingSet(data).view().data.requires_grad


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 3), (1, 1, 1, 1)])
def test_storage_takes_small_shapes(shape):
    ts = TrainingSet(torch.ones(shape))
    assert ts.sample_shape == shape[1:]
    assert ts.view().data.shape == (shape[0], math.prod(shape[1:]))
    assert ts[0].shape == shape[1:]


@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), ()])
def test_empty_data_is_refused(shape):
    with pytest.raises(ValueError, match=r"at least one row and one feature, got shape"):
        TrainingSet(torch.ones(shape))


@pytest.mark.parametrize(
    "data",
    [
        torch.ones(3, 2, dtype=torch.int64),
        torch.ones(3, 2, dtype=torch.bool),
        np.ones((3, 2), np.int16),
        np.ones((3, 2), np.complex64),
        np.array([["a"]]),
        np.array([[None]]),
    ],
    ids=str,
)
def test_other_types_are_refused(data):
    with pytest.raises(TypeError, match=r"data must be uint8, float16, bfloat16, float32, float64"):
        TrainingSet(data)


@pytest.mark.parametrize("data", [[[1.0]], "x.npy", None, 3])
def test_other_objects_are_refused(data):
    with pytest.raises(TypeError, match=r"data must be a Tensor, an ndarray, a torch Dataset"):
        TrainingSet(data)


def test_sparse_and_meta_tensors_are_refused():
    for data in (torch.eye(3).to_sparse(), torch.ones(3, 2, device="meta")):
        with pytest.raises(TypeError, match="dense"):
            TrainingSet(data)


# Values, norms, NaN


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0, 1), (0.0, 255.0), (-3.5, 0.25)])
def test_uint8_decodes_to_the_nearest_float32(value_range):
    data = torch.arange(256, dtype=torch.uint8)[:, None]
    low, high = value_range
    decoded = TrainingSet(data, value_range=value_range)[:]
    assert decoded.dtype == torch.float32
    # float64 holds lo + u (hi - lo) / 255 to 3 roundings of at most max(|lo|, |hi|) 2^-53, far
    # under half a float32 step except at a tie, which no u of these ranges is within 2^-50 of.
    exact = low + np.arange(256) * ((high - low) / 255)
    step = np.spacing(np.abs(exact).astype(np.float32))
    assert (np.abs(decoded[:, 0].numpy() - exact) <= 0.5 * step + 1e-13).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_decode_to_themselves(dtype):
    data = make(dtype)
    decoded = TrainingSet(data)[:]
    assert decoded.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(decoded.double(), data.double())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 4, 5), (3000,)])
def test_norms_are_right_to_float64(dtype, shape):
    data = make(dtype, count=9, shape=shape)
    view = TrainingSet(data).view()
    flat = real_values(data).reshape(9, -1)
    exact = [math.fsum((v - view.origin) ** 2 for v in row) for row in flat.tolist()]
    # A sum of D non-negative terms in any order: relative error at most (D + 4) 2^-53; decoding
    # here adds a few roundings of values of size 1, as large as 2^-52 beside terms that matter.
    bound = (math.prod(shape) + 64) * 2.0**-53
    assert view.norms.dtype == torch.float64
    for got, want in zip(view.norms.tolist(), exact, strict=True):
        assert abs(got - want) <= bound * want + 1e-15


def test_uint8_norms_are_exact_integers():
    data = make(torch.uint8, count=5, shape=(70_000,))
    norms = TrainingSet(data, value_range=(0.0, 255.0)).view().norms
    exact = [sum((u - 128) ** 2 for u in row) for row in data.tolist()]
    assert norms.tolist() == exact


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_data_names_its_row(dtype, bad):
    data = torch.zeros(700, 3000, dtype=dtype)
    data[650, 17] = bad
    with pytest.raises(DataError, match=r"data: must be finite, got .* in row 650, feature 17"):
        TrainingSet(data)


def test_norm_overflow_names_its_row():
    with pytest.raises(DataError, match=r"squared norm of row 1 overflows float64"):
        TrainingSet(torch.tensor([[1.0], [1e200]], dtype=torch.float64))


def test_float64_data_is_not_changed_by_the_norms():
    data = make(torch.float64)
    before = data.clone()
    TrainingSet(data)
    assert torch.equal(data, before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_value_range_is_refused_for_floats(dtype):
    with pytest.raises(ValueError, match="value_range must be left out"):
        TrainingSet(make(dtype), value_range=(-1.0, 1.0))


@pytest.mark.parametrize("bad", [(1, 1), (1, -1), (math.nan, 1), (0, math.inf)])
def test_value_range_must_be_an_interval(bad):
    with pytest.raises(ValueError, match="value_range must be finite"):
        TrainingSet(make(torch.uint8), value_range=bad)


def test_construction_expands_nothing():
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("peak memory is read from /proc")
    for dtype in (torch.uint8, torch.float32, torch.float64):
        data = torch.zeros(64 << 20, dtype=torch.uint8).view(dtype).reshape(2048, -1)
        TrainingSet(data[:100])
        reset_peak()
        before = resident("VmRSS")
        TrainingSet(data)
        # A block has 2^20 elements: 8 MiB in float64 and its square; int16 is smaller. The rest is
        # slack of the allocator. Widening the data would take 64 MiB or more.
        assert resident("VmHWM") - before < 32 << 20


def reset_peak():
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def resident(field):
    with open("/proc/self/status") as stream:
        line = next(line for line in stream if line.startswith(field))
    return int(line.split()[1]) * 1024


# Labels, weights, classes


def test_labels_make_a_stable_index():
    labels = [2, 0, 2, 4, 0, 2, 2]
    view = (ts := TrainingSet(make(torch.uint8), labels=labels)).view()
    assert view.order.tolist() == [1, 4, 0, 2, 5, 6, 3]
    assert view.class_offsets.tolist() == [0, 2, 2, 6, 6, 7]
    assert view.order.dtype == view.class_offsets.dtype == torch.int64
    assert ts.num_classes == 5
    assert ts.labels.tolist() == labels
    assert torch.equal(ts.class_log_weights.exp().round(), torch.tensor([2, 0, 4, 0, 1.0]).double())


def test_rows_of_weight_zero_leave_the_index():
    ts = TrainingSet(
        make(torch.float32), labels=[0, 1, 1, 0, 2, 2, 0], weights=[0, 1, 2, 3, 0, 0, 1]
    )
    view = ts.view()
    assert view.order.tolist() == [3, 6, 1, 2]
    assert view.class_offsets.tolist() == [0, 2, 4, 4]
    assert view.log_weights.tolist() == pytest.approx(
        [-math.inf, 0, math.log(2), math.log(3), -math.inf, -math.inf, 0]
    )
    assert ts.class_log_weights.tolist() == pytest.approx([math.log(4), math.log(3), -math.inf])
    assert ts.log_total_weight == pytest.approx(math.log(7), rel=1e-15)


def test_without_labels_there_is_no_index():
    ts = TrainingSet(make(torch.float32))
    view = ts.view()
    assert view.order is None and view.class_offsets is None and view.log_weights is None
    assert ts.labels is None and ts.class_log_weights is None and ts.num_classes == 0
    assert ts.log_total_weight == math.log(7)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.floats(0, 1e300)).filter(
            lambda pair: pair[1] == 0 or pair[1] > 1e-300
        ),
        min_size=1,
        max_size=20,
    ).filter(lambda pairs: any(weight > 0 for _, weight in pairs)),
    st.booleans(),
)
def test_totals_are_sums_of_weights(pairs, flip):
    labels = [label for label, _ in pairs]
    weights = [weight for _, weight in pairs]
    ts = TrainingSet(torch.zeros(len(pairs), 1, 1), labels=labels, weights=weights, flip=flip)
    top = max(weights)
    copies = 2 if flip else 1
    total = math.log(copies * math.fsum(w / top for w in weights)) + math.log(top)
    # Logarithms of numbers up to 1e300 are below 691: a few roundings of 691 * 2^-53.
    assert ts.log_total_weight == pytest.approx(total, abs=1e-12)
    for label, got in enumerate(ts.class_log_weights.tolist()):
        own = [w for number, w in pairs if number == label and w > 0]
        want = -math.inf
        if own:
            want = math.log(copies * math.fsum(w / max(own) for w in own)) + math.log(max(own))
        assert got == pytest.approx(want, abs=1e-12)


def test_weights_near_the_end_of_the_range_do_not_overflow():
    ts = TrainingSet(torch.zeros(3, 2), weights=[1.7e308, 1.7e308, 1.7e308])
    assert ts.log_total_weight == pytest.approx(math.log(1.7e308) + math.log(3), rel=1e-15)


def test_log_weight_of_counts_mirror_images():
    ts = TrainingSet(torch.zeros(3, 2, 2), weights=[1.0, 0.0, 4.0], flip=True)
    got = ts.log_weight_of(torch.tensor([[0, 1, 2], [3, 4, 5]]))
    row = [0.0, -math.inf, math.log(4.0)]
    assert got.tolist() == [row, row]
    assert ts.log_weight_of(torch.tensor([-1, 2])).tolist() == [-math.inf, math.log(4.0)]
    plain = TrainingSet(torch.zeros(3, 2))
    assert plain.log_weight_of(torch.tensor([2, -1])).tolist() == [0.0, -math.inf]
    assert plain.log_weight_of(torch.tensor([2])).dtype == torch.float64
    with pytest.raises(ValueError, match=r"indices must be in \[-1, 3\), got 3"):
        plain.log_weight_of(torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2, -1], r"weights must be finite and zero or more, got -1.0 at index 2"),
        ([1, math.nan, 1], r"got nan at index 1"),
        ([math.inf, 1, 1], r"got inf at index 0"),
        ([0, 0, 0], r"weights must have a positive sum, got zeros only"),
        ([1, 2], r"weights must have shape \(3,\), got \(2,\)"),
        ([[1, 2, 3]], r"weights must have shape \(3,\), got \(1, 3\)"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        TrainingSet(torch.zeros(3, 2), weights=weights)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0, -1, 2], ValueError, r"labels must be in \[0, 16777216\), got -1 at index 1"),
        ([0, 1, 1 << 40], ValueError, r"got 1099511627776 at index 2"),
        ([0, 1], ValueError, r"labels must have shape \(3,\)"),
        ([0.0, 1.0, 2.0], TypeError, "labels must be integers"),
        ([True, False, True], TypeError, "labels must be integers"),
        (["a", "b", "c"], TypeError, "labels must be numbers"),
    ],
)
def test_bad_labels_are_refused(labels, kind, message):
    with pytest.raises(kind, match=message):
        TrainingSet(torch.zeros(3, 2), labels=labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64, np.int64])
def test_labels_of_any_width_are_taken(dtype):
    for labels in (np.array([1, 0, 1], dtype), torch.from_numpy(np.array([1, 0, 1], dtype))):
        assert TrainingSet(torch.zeros(3, 2), labels=labels).view().order.tolist() == [1, 0, 2]


def test_labels_and_weights_are_copied():
    labels, weights = torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    ts = TrainingSet(torch.zeros(3, 2), labels=labels, weights=weights)
    labels.zero_()
    weights.zero_()
    assert ts.labels.tolist() == [0, 1, 1]
    ts.labels.zero_()
    ts.class_log_weights.zero_()
    assert ts.labels.tolist() == [0, 1, 1]
    assert ts.class_log_weights.tolist() == pytest.approx([0.0, math.log(5)])


# Points


@pytest.mark.parametrize("dtype", TYPES)
def test_flip_mirrors_without_storing(dtype):
    data = make(dtype)
    plain, both = TrainingSet(data), TrainingSet(data, flip=True, labels=range(7))
    assert len(both) == 14 and both.num_stored == 7
    assert both.view().data.data_ptr() == data.data_ptr()
    for row in range(7):
        assert torch.equal(both[row], plain[row])
        assert torch.equal(both[7 + row], plain[row].flip(-1))
    assert torch.equal(both[:], torch.cat([plain[:], plain[:].flip(-1)]))
    assert torch.equal(both[-1], plain[6].flip(-1))
    assert both.labels.tolist() == [*range(7), *range(7)]
    assert both.log_total_weight == math.log(14)


def test_flip_needs_images():
    with pytest.raises(ValueError, match=r"flip needs samples of shape \(..., H, W\), got \(9,\)"):
        TrainingSet(torch.zeros(3, 9), flip=True)


def test_index_takes_what_arrays_take():
    data = make(torch.float32)
    ts = TrainingSet(data)
    assert torch.equal(ts[2], data[2])
    assert torch.equal(ts[np.int64(2)], data[2])
    assert torch.equal(ts[-2], data[5])
    assert torch.equal(ts[torch.tensor(2)], data[2])
    for index in ([1, 5, 5], np.array([1, 5, 5]), torch.tensor([1, 5, -2]), (1, 5, 5)):
        assert torch.equal(ts[index], data[[1, 5, 5]])
    assert torch.equal(ts[1:6:2], data[1:6:2])
    assert torch.equal(ts[::-1], data.flip(0))
    assert torch.equal(ts[range(3)], data[:3])
    pairs = torch.tensor([[0, 1], [2, 3], [4, 6]])
    assert torch.equal(ts[pairs], data[pairs])
    mask = torch.tensor([True, False, True, False, False, False, True])
    assert torch.equal(ts[mask], data[mask])
    assert ts[[]].shape == (0, 3, 4, 5)
    assert [row.shape for row in ts] == [(3, 4, 5)] * 7


@pytest.mark.parametrize("dtype", TYPES)
def test_index_returns_a_copy(dtype):
    data = make(dtype)
    before = data.clone()
    ts = TrainingSet(data)
    ts[0].zero_()
    ts[:].zero_()
    assert torch.equal(data, before)


@pytest.mark.parametrize("index", [7, -8, [0, 7], torch.tensor([-8]), [True, False]])
def test_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError):
        TrainingSet(make(torch.float32))[index]


@pytest.mark.parametrize("index", [1.0, [0.5], "a", None])
def test_index_must_be_integers(index):
    with pytest.raises(TypeError):
        TrainingSet(make(torch.float32))[index]


def test_set_works_as_a_map_style_dataset():
    ts = TrainingSet(make(torch.uint8), flip=True)
    batches = list(DataLoader(ts, batch_size=4))
    assert torch.equal(torch.cat(batches), ts[:])


# Datasets and loaders


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Endless(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from self.rows


def test_dataset_of_tensors_and_labels_is_gathered():
    data = make(torch.uint8)
    for labels in ([0, 1, 2, 0, 1, 2, 3], np.arange(7), torch.arange(7), torch.arange(7)[:, None]):
        ts = TrainingSet(Items([(data[i], labels[i]) for i in range(7)]))
        assert ts.dtype == torch.uint8
        assert torch.equal(ts.view().data, data.reshape(7, -1))
        assert ts.labels.tolist() == [int(label) for label in labels]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, None])
def test_loader_is_gathered(batch_size):
    data = make(torch.float32)
    ts = TrainingSet(DataLoader(TensorDataset(data, torch.arange(7)), batch_size=batch_size))
    assert torch.equal(ts[:], data)
    assert ts.labels.tolist() == list(range(7))
    ts = TrainingSet(DataLoader(TensorDataset(data), batch_size=batch_size))
    assert torch.equal(ts[:], data) and ts.labels is None


def test_loader_that_drops_or_repeats_rows_is_gathered_as_it_comes():
    data = make(torch.float32)
    assert TrainingSet(DataLoader(data, batch_size=3, drop_last=True)).num_stored == 6
    sampler = [0, 1, 2, 3, 4, 5, 6] * 3
    ts = TrainingSet(DataLoader(data, batch_size=2, sampler=sampler))
    assert torch.equal(ts[:], data[sampler])


def test_iterable_and_array_datasets_are_gathered():
    data = make(torch.float64)
    assert torch.equal(TrainingSet(Endless(list(data)))[:], data)
    assert torch.equal(TrainingSet(Items(list(data.numpy())))[:], data)
    assert TrainingSet(Endless([(row, 1) for row in data])).labels.tolist() == [1] * 7


def test_dataset_of_pillow_images_is_gathered():
    from PIL import Image

    images = make(torch.uint8, shape=(4, 5, 3))
    ts = TrainingSet(Items([(Image.fromarray(image.numpy()), 2) for image in images]))
    assert torch.equal(ts.view().data, images.permute(0, 3, 1, 2).reshape(7, -1))
    assert ts.sample_shape == (3, 4, 5)


def test_given_labels_replace_those_of_a_dataset():
    ts = TrainingSet(TensorDataset(torch.zeros(3, 2), torch.arange(3)), labels=[1, 1, 0])
    assert ts.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("items", "kind", "message"),
    [
        ([], ValueError, "got an empty dataset"),
        ([torch.zeros(2), torch.zeros(3)], DataError, r"row 1 of data must have shape \(2,\)"),
        ([torch.zeros(2), torch.zeros(2).double()], DataError, r"row 1 of data .* torch.float64"),
        ([(torch.zeros(2), 1), torch.zeros(2)], DataError, "row 1 of data must have a label"),
        ([torch.zeros(2), (torch.zeros(2), 1)], DataError, "row 1 of data must have a label"),
        ([(torch.zeros(2), 0.5)], TypeError, "y of row 0 must be an integer, got float"),
        ([(torch.zeros(2), torch.tensor([1, 2]))], DataError, "2 labels for 1 rows"),
        ([(torch.zeros(2), {"a": 1})], TypeError, "y of row 0 must be an integer, got dict"),
        ([(torch.zeros(2), 1, 2)], TypeError, "x or \\(x, y\\), got 3 values"),
        ([{"image": torch.zeros(2)}], TypeError, "x of row 0 must be a tensor"),
        ([torch.zeros(2, dtype=torch.int32)], TypeError, "data must be uint8"),
    ],
)
def test_bad_items_are_refused(items, kind, message):
    with pytest.raises(kind, match=message):
        TrainingSet(Items(items))


# Memory maps


@pytest.fixture
def mapped(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(10, 6)
    np.save(tmp_path / "x.npy", values)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), values


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x,
        lambda x: x[3:],
        lambda x: x[2:9:3],
        lambda x: x[:, None],
        lambda x: x.reshape(10, 2, 3)[4:],
        lambda x: np.asarray(x)[1:],
        lambda x: x[5:][2:],
        lambda x: x[:, :4],
        lambda x: x[9:],
    ],
)
def test_memory_map_is_read_from_its_file(mapped, cut, tmp_path):
    array, values = mapped
    ts = TrainingSet(cut(array))
    assert np.array_equal(ts[:].numpy(), cut(values))
    assert ts.path == str(tmp_path / "x.npy")
    assert torch.equal(pickle.loads(pickle.dumps(ts))[:], ts[:])


def test_memory_map_far_into_a_file_is_found(tmp_path):
    path = tmp_path / "raw.bin"
    values = np.arange(40_000, dtype=np.uint16).astype(np.uint8)
    values.tofile(path)
    array = np.memmap(path, np.uint8, mode="r", offset=10_001, shape=(100, 30))
    assert np.array_equal(TrainingSet(array[7:]).view().data, values[10_211:13_001].reshape(-1, 30))


def test_memory_map_that_is_written_to_is_seen(tmp_path):
    array = np.memmap(tmp_path / "raw.bin", np.float64, mode="w+", shape=(3, 2))
    array[:] = 5.0
    assert TrainingSet(array)[:].eq(5.0).all()


def test_memory_map_of_a_file_that_shrank_is_an_error_and_not_a_signal(tmp_path):
    path = tmp_path / "raw.bin"
    np.zeros(100_000, np.float32).tofile(path)
    array = np.memmap(path, np.float32, mode="r", shape=(1000, 100))
    os.truncate(path, 200_000)
    with pytest.raises(DataError, match=r"raw.bin: ends at byte 200000, .*truncated"):
        TrainingSet(array)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x.T, "rows in C order"), (lambda x: x[::-1], "rows in C order")],
)
def test_memory_map_in_another_order_is_refused(mapped, change, message):
    with pytest.raises(ValueError, match=message):
        TrainingSet(change(mapped[0]))


def test_copy_on_write_map_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    array = np.load(tmp_path / "x.npy", mmap_mode="c")
    with pytest.raises(ValueError, match="copy-on-write"):
        TrainingSet(array)
    assert TrainingSet(np.array(array)).path is None


def test_copies_out_of_a_map_are_ordinary_arrays(mapped):
    array, values = mapped
    ts = TrainingSet(array[[1, 2]])
    assert ts.path is None
    assert np.array_equal(ts[:].numpy(), values[1:3])


# Digest


def test_sha256_depends_on_shape_type_range_and_bytes_only():
    data = make(torch.uint8, count=4, shape=(2, 3, 4))
    base = TrainingSet(data).sha256
    assert len(base) == 64
    same = [
        TrainingSet(data.numpy()),
        TrainingSet(TensorDataset(data)),
        TrainingSet(data, labels=[0, 1, 2, 3]),
        TrainingSet(data, weights=[0, 1, 2, 3]),
        TrainingSet(data, flip=True),
        TrainingSet(data, value_range=(-1, 1)),
        TrainingSet(data, value_range=np.array([-1.0, 1.0], np.float32)),
    ]
    assert {ts.sha256 for ts in same} == {base}
    changed = data.clone()
    changed[3, 1, 2, 3] ^= 1
    other = [
        TrainingSet(changed),
        TrainingSet(data.reshape(4, 24)),
        TrainingSet(data, value_range=(0, 1)),
        TrainingSet(data.float()),
        TrainingSet(data.half()),
    ]
    assert len({base, *(ts.sha256 for ts in other)}) == 6


def test_sha256_is_pinned():
    """Digests stand in files of results: they must never change."""
    ts = TrainingSet(torch.arange(6, dtype=torch.uint8).reshape(2, 3))
    assert ts.sha256 == "c20e34a0f1407c8c0aebcea745d24e66fb528cb1f44901dd0373e312bc4cfb3e"
    zero = TrainingSet(torch.zeros(1, 1))
    assert zero.sha256 == "0bcc87a5b898bc8259a23e999a3744182dacc67104b3603a5135792f75b55ebf"


def test_sha256_of_many_shards_is_that_of_their_digests(monkeypatch):
    import hashlib

    from diffgen.readers import rows

    monkeypatch.setattr(rows, "SHARD_BYTES", 100)
    data = make(torch.float32, count=11, shape=(13,))
    content = data.numpy().tobytes()
    total = hashlib.sha256(b'{"dtype": "float32", "range": null, "shape": [11, 13]}\n')
    for start in range(0, len(content), 100):
        total.update(hashlib.sha256(content[start : start + 100]).digest())
    assert TrainingSet(data).sha256 == total.hexdigest()


# Subsets, copies, pickles


def test_subset_carries_labels_weights_and_classes():
    data = make(torch.uint8)
    ts = TrainingSet(data, labels=[0, 1, 2, 3, 4, 5, 6], weights=[0, 1, 2, 3, 4, 5, 6], flip=True)
    part = ts.subset([4, 1, 4])
    assert torch.equal(part.view().data, ts.view().data[[4, 1, 4]])
    assert part.view().log_weights.exp().tolist() == pytest.approx([4, 1, 4])
    assert part.labels.tolist() == [4, 1, 4] * 2
    assert part.num_classes == 7 and part.flip and len(part) == 6
    assert part.view().order.tolist() == [1, 0, 2]
    assert torch.equal(part.view().norms, ts.view().norms[[4, 1, 4]])
    assert torch.equal(part[:], TrainingSet(data[[4, 1, 4]], flip=True)[:])
    mask = torch.tensor([False] * 5 + [True] * 2)
    assert ts.subset(mask).labels.tolist() == [5, 6] * 2
    assert ts.subset(slice(5, None)).labels.tolist() == [5, 6] * 2


def test_subset_refuses_no_rows_no_weight_and_mirror_images():
    ts = TrainingSet(make(torch.uint8), weights=[0, 1, 1, 1, 1, 1, 1], flip=True)
    with pytest.raises(ValueError, match="at least one row"):
        ts.subset([])
    with pytest.raises(ValueError, match="positive weight"):
        ts.subset([0])
    with pytest.raises(IndexError, match=r"indices must be in \[-7, 7\), got 7"):
        ts.subset([7])


def test_split_parts_are_disjoint_equal_and_seeded():
    ts = TrainingSet(torch.arange(23.0)[:, None], labels=range(23))
    parts = ts.split(4, generator=torch.Generator().manual_seed(3))
    again = ts.split(4, generator=torch.Generator().manual_seed(3))
    other = ts.split(4, generator=torch.Generator().manual_seed(4))
    rows = [part[:].flatten().tolist() for part in parts]
    assert [len(part) for part in rows] == [5] * 4
    assert len({row for part in rows for row in part}) == 20
    assert all(part == sorted(part) for part in rows)
    assert [part.labels.tolist() for part in parts] == [[int(x) for x in row] for row in rows]
    assert rows == [part[:].flatten().tolist() for part in again]
    assert rows != [part[:].flatten().tolist() for part in other]
    for k in (0, 24, -1):
        with pytest.raises(ValueError, match=rf"k must be in \[1, 23\], got {k}"):
            ts.split(k)


def test_copies_share_the_set():
    ts = TrainingSet(make(torch.uint8))
    assert copy.deepcopy(ts) is ts
    assert copy.copy(ts) is ts
    assert copy.deepcopy({"a": [ts]})["a"][0] is ts
    assert ts.to("cpu") is ts
    assert ts.view() is ts.view()


def test_refresh_sees_a_change_in_place():
    data = make(torch.float32)
    ts = TrainingSet(data)
    before = ts.sha256
    data[2] = 3.0
    assert ts.view().norms[2] != 60 * 9.0
    ts.refresh()
    assert ts.view().norms[2] == 60 * 9.0
    assert ts.sha256 != before
    norms = ts.view().norms
    data[5, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="row 5"):
        ts.refresh()
    assert ts.view().norms is norms


@pytest.mark.parametrize("dtype", TYPES)
def test_pickle_carries_data_in_memory(dtype):
    ts = TrainingSet(
        make(dtype), labels=[0, 1, 2, 0, 1, 2, 3], weights=[1, 2, 3, 0, 5, 6, 7], flip=True
    )
    for read in (pickle.loads(pickle.dumps(ts)), through_torch(ts)):
        assert torch.equal(read.view().data, ts.view().data)
        assert torch.equal(read.view().norms, ts.view().norms)
        assert torch.equal(read.view().log_weights, ts.view().log_weights)
        assert torch.equal(read.view().order, ts.view().order)
        assert torch.equal(read.labels, ts.labels)
        assert (read.flip, read.num_classes, read.value_range) == (True, 4, ts.value_range)
        assert read.sha256 == ts.sha256


def through_torch(ts):
    stream = io.BytesIO()
    torch.save(ts, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def test_pickle_carries_the_rows_and_not_what_surrounds_them():
    big = torch.zeros(100_000, 10)
    assert len(pickle.dumps(TrainingSet(big[:10]))) < 10_000


@pytest.fixture
def file_set(tmp_path):
    np.save(tmp_path / "x.npy", make(torch.uint8, count=1000).numpy())
    return TrainingSet.open(
        tmp_path / "x.npy", labels=np.arange(1000) % 3, weights=np.arange(1000), value_range=(0, 1)
    )


def test_pickle_of_a_file_carries_its_path(file_set, tmp_path, monkeypatch):
    content = pickle.dumps(file_set)
    assert len(content) < 60_000 - 8 * 3000 + 24_000
    assert len(pickle.dumps(TrainingSet.open(tmp_path / "x.npy"))) < 3000
    monkeypatch.chdir("/")
    read = pickle.loads(content)
    assert read.path == str(tmp_path / "x.npy")
    assert torch.equal(read.view().data, file_set.view().data)
    assert torch.equal(read.view().norms, file_set.view().norms)
    assert torch.equal(read.labels, file_set.labels)
    assert read.value_range == (0.0, 1.0)
    assert read.sha256 == file_set.sha256


def test_pickle_of_a_subset_of_a_file_finds_its_rows(file_set):
    part = file_set.subset([5, 3, 900, 7]).subset([2, 0])
    content = pickle.dumps(part)
    assert len(content) < 3000
    read = pickle.loads(content)
    assert torch.equal(read.view().data, file_set.view().data[[900, 5]])
    assert torch.equal(read.labels, part.labels)


def test_pickle_of_a_changed_file_is_refused(file_set, tmp_path):
    content = pickle.dumps(file_set)
    with open(tmp_path / "x.npy", "r+b") as stream:
        stream.seek(4000)
        byte = stream.read(1)
        stream.seek(4000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=r"x.npy: changed since the set was pickled: sha256"):
        pickle.loads(content)
    os.remove(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError, match=r"x\.npy"):
        pickle.loads(content)


def test_refreshed_set_of_a_file_pickles_its_rows(file_set, tmp_path):
    file_set.view().data[0] = 7
    file_set.refresh()
    assert file_set.path is None
    os.remove(tmp_path / "x.npy")
    assert pickle.loads(pickle.dumps(file_set)).view().data[0].eq(7).all()


def test_repr_says_what_the_set_holds(file_set):
    text = repr(file_set)
    assert text.startswith(
        "TrainingSet(1000 x (3, 4, 5), uint8 in [0, 1], 3 classes, weighted, from "
    )
    flipped = TrainingSet(torch.zeros(2, 3, 3), flip=True)
    assert repr(flipped) == "TrainingSet(2 x (3, 3), float32, with mirror images)"


def test_signature_shows_the_default_range():
    import inspect

    for function in (TrainingSet.__init__, TrainingSet.open):
        assert str(inspect.signature(function).parameters["value_range"].default) == "(-1.0, 1.0)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", TYPES)
def test_set_moves_to_a_gpu(dtype):
    ts = TrainingSet(make(dtype), labels=[0, 1, 2, 0, 1, 2, 3], weights=[1, 2, 3, 0, 5, 6, 7])
    there = ts.to("cuda")
    assert there.device.type == "cuda" and there.to("cuda") is there
    view = there.view()
    assert all(part.is_cuda for part in (view.data, view.norms, view.log_weights, view.order))
    assert not view.class_offsets.is_cuda
    built = TrainingSet(make(dtype).cuda())
    assert torch.allclose(built.view().norms.cpu(), ts.view().norms, rtol=1e-14)
    assert built.sha256 == ts.sha256
    assert torch.equal(there[[1, 2]].cpu(), ts[[1, 2]])


def test_rows_stay_on_the_host_when_asked() -> None:
    data = torch.randint(0, 256, (6, 3), dtype=torch.uint8)
    moved = TrainingSet(data, labels=[0, 1, 0, 1, 0, 1]).to("meta", rows_on_host=True)
    view = moved.view()
    assert moved.device.type == "meta"
    assert view.data.device.type == "cpu"
    assert view.norms.device.type == view.order.device.type == "meta"
    assert moved.to("meta", rows_on_host=True) is moved
    assert moved.to("meta").view().data.device.type == "meta"
    here = TrainingSet(data)
    assert here.to("cpu", rows_on_host=True) is here
