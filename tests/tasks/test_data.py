"""Data in the forms that users have it in, and what is said of data that cannot be taken."""

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from autocomp.errors import UserError
from autocomp.tasks import Data, Task
from autocomp.tasks.data import split

N = 12
X = np.random.default_rng(0).normal(size=(N, 1, 4, 4)).astype(np.float32)
Y = np.arange(N) % 3
TX, TY = torch.from_numpy(X), torch.from_numpy(Y)


class Dicts(Dataset):
    """Items as dicts, as the data sets of Hugging Face give them."""

    def __init__(self, input_key="image", label_key="label", **more):
        self.keys, self.more = (input_key, label_key), more

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {self.keys[0]: TX[index], self.keys[1]: int(Y[index])} | self.more


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(TX, TY, strict=True)


def halved(items):
    """A collate_fn of one's own, which prepares the inputs."""
    return torch.stack([x for x, _ in items]) / 2, torch.tensor([y for _, y in items])


def fits(shape) -> bool:
    return shape == (1, 4, 4)


class Named(NamedTuple):
    """The label stands first, and its name says so."""

    label: int
    image: np.ndarray
    path: str


@dataclass
class Record:
    x: np.ndarray
    y: int


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(TensorDataset(TX, TY), batch_size=5, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(TX, TY), batch_size=None),
        DataLoader(Dicts(), batch_size=5),
        DataLoader(Stream(), batch_size=5),
        Subset(TensorDataset(TX, TY), range(N)),
        Stream(),
        Dicts(),
        Dicts("pixel_values", "labels", path="photo.png", attention_mask=np.ones(3)),
        {"image": X, "label": Y},
        [(TX[i : i + 5], TY[i : i + 5]) for i in range(0, N, 5)],
        [(TX[i : i + 4], TY[i : i + 4]) for i in range(0, N, 4)],
        ({"x": TX[i : i + 5], "y": TY[i : i + 5]} for i in range(0, N, 5)),
        (list(X), list(Y)),
        (X, [int(y) for y in Y]),
        (TX.clone().requires_grad_(), TY),
        (TX.contiguous(memory_format=torch.channels_last), TY.float()),
        (X, pd.Series(Y, index=np.arange(N) + 100)),
        (X, pd.Series(Y, dtype="Int64")),
        (X, Y.astype(object)),
        (X, Y.astype(str)),
        (X, [Decimal(int(y)) for y in Y]),
        [[x, y] for x, y in zip(X, Y, strict=True)],
        [Named(y, x, "photo.png") for x, y in zip(X, Y, strict=True)],
        [Record(x, y) for x, y in zip(X, Y, strict=True)],
    ],
    ids=[
        "DataLoader", "DataLoader of items", "DataLoader of dicts", "DataLoader of a stream", "Subset", "stream",
        "dicts", "dicts with more", "dict of columns", "batches", "equal batches", "batches as dicts", "lists",
        "list of labels", "gradients", "channels last", "Series", "Series of nullable integers", "objects", "strings",
        "decimals", "lists of two", "named tuples", "data classes",
    ],
)  # fmt: skip
def test_data_in_every_form(source):
    data = Data.of(source, "Task.train", fits)
    assert data.inputs.dtype == np.float32
    np.testing.assert_array_equal(data.inputs, X)
    assert data.labels.shape == (N,)
    np.testing.assert_array_equal(data.labels.astype(int), Y)


@pytest.mark.parametrize(
    "source",
    [
        TX, list(X), TensorDataset(TX), DataLoader(TensorDataset(TX), batch_size=5), DataLoader(list(TX), batch_size=5),
        {"image": X}, (X, None), [TX[:5], TX[5:10], TX[10:]], [(x,) for x in X],
    ],
    ids=[
        "tensor", "list", "TensorDataset", "DataLoader of tuples", "DataLoader of tensors", "dict", "None for labels",
        "batches", "tuples of one",
    ],
)  # fmt: skip
def test_inputs_alone(source):
    data = Data.of(source, "Task.train", fits)
    assert data.labels is None
    np.testing.assert_array_equal(data.inputs, X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.bool])
def test_numbers_of_every_width_become_float32(dtype):
    source = (TX * 2 + 5).to(dtype)
    data = Data.of(source, "Task.train")
    assert data.inputs.dtype == np.float32
    np.testing.assert_array_equal(data.inputs, source.float().numpy())


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_tokens_stay_integers(dtype):
    ids = torch.arange(24).reshape(6, 4).to(dtype)
    data = Data.of(ids, "Task.train")
    assert data.inputs.dtype == np.int64
    np.testing.assert_array_equal(data.inputs, ids.numpy())


def test_a_loader_is_taken_as_it_prepares_its_batches():
    data = Data.of(DataLoader(TensorDataset(TX, TY), batch_size=5, shuffle=True, collate_fn=halved), "Task.train")
    np.testing.assert_array_equal(data.inputs, X / 2)
    np.testing.assert_array_equal(data.labels, Y)


def test_a_loader_of_a_part_gives_that_part():
    loader = DataLoader(TensorDataset(TX, TY), batch_size=5, sampler=SubsetRandomSampler([7, 2, 5]))
    np.testing.assert_array_equal(Data.of(loader, "Task.train").inputs, X[[2, 5, 7]])


def test_what_a_data_set_draws_at_random_is_drawn_alike_and_nobody_elses_draws_change():
    class Noisy(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return TX[index] + torch.randn(()) + float(np.random.rand()), TY[index]  # noqa: NPY002

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Data.of(Noisy(), "Task.train")
    torch.testing.assert_close(torch.rand(3), expected)
    np.testing.assert_array_equal(Data.of(Noisy(), "Task.train").inputs, first.inputs)
    assert len(np.unique(first.inputs - X)) > N / 2


def test_memory_mapped_and_sparse_inputs(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.testing.assert_array_equal(Data.of(np.load(tmp_path / "x.npy", mmap_mode="r"), "Task.train").inputs, X)
    rows = np.eye(5, dtype=np.float32)
    for source in (sparse.csr_matrix(rows), torch.from_numpy(rows).to_sparse()):
        np.testing.assert_array_equal(Data.of(source, "Task.train").inputs, rows)


def test_a_table_with_named_columns():
    table = np.array([(1, 0.5), (2, 0.25)], dtype=[("age", "i2"), ("share", "f8")])
    data = Data.of((table, np.arange(2)), "Task.train")
    np.testing.assert_array_equal(data.inputs, [[1, 0.5], [2, 0.25]])
    assert data.inputs.dtype == np.float32


@pytest.mark.parametrize(("no", "yes"), [("no", "yes"), ("False", "True"), ("No ", "YES")])
def test_no_and_yes_in_words(no, yes):
    data = Data.of((X, [yes if y else no for y in Y % 2]), "Task.train")
    np.testing.assert_array_equal(data.labels, Y % 2 == 1)
    assert Data.of((X, [yes] * N), "Task.test").labels.all()  # a split in which the other does not occur


def test_frames():
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6], "label": [0, 1, 0]})
    data = Data.of((frame[["a", "b"]], frame["label"]), "Task.train")
    np.testing.assert_array_equal(data.inputs, [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(data.labels, [0, 1, 0])
    assert Data.of((frame[["a"]], frame[["label"]]), "Task.train").labels.shape == (3, 1)
    with pytest.raises(UserError, match="a frame with a column 'label': hand over"):
        Data.of(frame, "Task.train")
    with pytest.raises(UserError, match=r"column 'a' holds .*: expected numbers"):
        Data.of((frame.assign(a=["x", "y", "z"])[["a", "b"]], frame["label"]), "Task.train")


class Broken(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        if index == 7:
            raise OSError("photo 7.png is cut off")
        return TX[index], int(Y[index])


class Unequal(Broken):
    def __getitem__(self, index):
        return torch.zeros(1, 4, 5 if index == 7 else 4), 0


def pictures():
    return [(Image.new("RGB", (8, 6)), 0)] * N


def broken_stream():
    yield X[0], 0
    raise OSError("connection lost")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Broken(), "Task.train: item 7 cannot be read: OSError: photo 7.png is cut off"),
        (DataLoader(Broken(), batch_size=5), "item 7 cannot be read: OSError: photo 7.png"),
        (broken_stream(), "item 1 cannot be read: OSError: connection lost"),
        (Unequal(), r"the input of item 7 has shape \(1, 4, 5\), that of item 0 \(1, 4, 4\).*resize, crop or pad"),
        (DataLoader(Unequal(), batch_size=5), "the input of item 7 has shape"),
        (DataLoader(Unequal(), batch_size=5, collate_fn=halved), "batch 1 cannot be read: RuntimeError"),
        (pictures(), "the input of item 0 is a PIL image of 8×6 pixels.*ToTensor"),
        ([("a sentence", 1)] * 4, "the input of item 0 is text.*token ids"),
        (Dicts("photo"), "item 0 is a dict with the keys 'photo', 'label': expected one input"),
        (Dicts("image", "fine_label"), "keys 'image', 'fine_label'"),
        (Dicts(pixel_values=1.0), "keys 'image', 'label', 'pixel_values'"),
        (Dicts("input_ids", attention_mask=np.array([1, 0])), "keys 'input_ids', 'label', 'attention_mask'"),
        ({"train": TensorDataset(TX, TY), "test": TensorDataset(TX, TY)}, "keys 'train', 'test'"),
        ([(x, y, "meta") for x, y in zip(X, Y, strict=True)], r"item 0 has 3 members: expected \(input, label\)"),
        ([(X[0], 1), (X[1], None)], "item 1 has no label, others have one"),
        ([(X[0], {"boxes": 1})] * 3, "the label of item 0 is a dict with the keys 'boxes'"),
        ([(X[0], np.zeros(3)), (X[1], np.zeros(4))], r"the label of item 1 has shape \(4,\)"),
        ((X, np.array(["cat", "dog", "cow"] * 4)), "the labels are text such as 'cat': give class indices"),
        ((X, [None, *Y[1:]]), "the label of item 0 is missing"),
        ((X, np.where(np.arange(N) == 3, np.nan, Y)), "the label of item 3 is nan"),
        ((X, np.full((N, 2), np.inf)), r"the label of item 0 is inf at \[0\]"),
        ((X, Y[:5]), "12 inputs but 5 labels"),
        ((X, Y[None]), r"12 inputs but 1 labels: labels of shape \(1, 12\) look transposed"),
        ([(X[0], 1), None, (X[2], 1)], "item 1 is None: expected"),
        (broken_stream, "got broken_stream itself: call it"),
        (TensorDataset, "got TensorDataset itself: call it"),
        (np, "expected arrays .* got module"),
        (torch.nested.nested_tensor([TX[0], TX[1]], layout=torch.jagged), "may be of unequal size; pad them"),
        ((X.astype(float) * 1e300 + 1e300, Y), "NaN or infinity, first in item 0"),
        ((X, np.array(3)), "12 inputs but 1 labels"),
        (np.where(np.arange(N) == 4, np.nan, X.T).T, "NaN or infinity, first in item 4"),
        (X.astype(complex), "holds complex numbers"),
        (np.empty((3, 0)), "the inputs are empty"),
        (TensorDataset(TX[:0], TY[:0]), "Task.train is empty"),
        (DataLoader([]), "Task.train is empty"),
        (iter(()), "Task.train is empty"),
        ("data.pt", "expected arrays .* got str"),
        (object(), "expected arrays .* got object"),
        (np.float32(3), "expected inputs of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_one_line_that_names_the_item(source, expected):
    with pytest.raises(UserError, match=expected) as caught:
        Data.of(source, "Task.train", fits)
    assert "\n" not in str(caught.value)


def test_a_list_that_may_be_items_or_batches_is_asked_for():
    with pytest.raises(UserError, match="may be items or batches: hand over a DataLoader"):
        Data.of([(TX[:4, 0], TX[:4, 0, 0])] * 3, "Task.train", lambda shape: True)
    rows = [(np.ones((3, 2)), np.ones(3))] * 4
    assert Data.of(rows, "Task.train", lambda shape: shape == (3, 2)).inputs.shape == (4, 3, 2)
    assert Data.of(rows, "Task.train", lambda shape: shape == (2,)).inputs.shape == (12, 2)


@pytest.mark.parametrize(
    ("labels", "stratified"),
    [
        (np.repeat([0, 1], [20, 80]), True),
        (np.repeat([0.0, 1.0], [20, 80])[:, None], True),
        (np.eye(2)[np.repeat([0, 1], [20, 80])], True),
        (np.repeat([False, True], [20, 80]), True),
        (np.arange(100) * 1000, False),
        (np.random.default_rng(0).normal(size=100), False),
        (np.random.default_rng(0).integers(0, 2, (100, 3)), False),
        (np.random.default_rng(0).integers(0, 3, (100, 4, 4)), False),
    ],
)
def test_a_split_of_any_labels(labels, stratified):
    rest, part = split(Data(np.arange(100, dtype=np.float32)[:, None], labels), 0.3)
    assert (len(rest), len(part)) == (70, 30)
    assert sorted([*rest.inputs[:, 0], *part.inputs[:, 0]]) == list(range(100))
    if stratified:
        assert (part.inputs[:, 0] < 20).sum() == 6


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.table(ids).mean(1))


IDS = np.random.default_rng(0).integers(0, 30, (40, 5))


@pytest.mark.parametrize(
    ("network", "inputs", "dtype"),
    [
        (Words(), IDS, np.int64),
        (Words(), IDS.astype(np.uint8), np.int64),
        (Words(), IDS.astype(np.float32), np.int64),
        (nn.Linear(5, 3), IDS, np.float32),
        (nn.Linear(5, 3), IDS.astype(np.uint8), np.float32),
    ],
    ids=["tokens", "bytes", "tokens as floats", "whole numbers", "pixels"],
)
def test_inputs_have_the_type_that_the_network_takes(network, inputs, dtype):
    task = Task(network.train(), train=(inputs, np.arange(40) % 3), validation=(inputs.astype(np.int32), IDS[:, 0] % 3))
    assert {data.inputs.dtype for data in (task.train, task.validation, task.test)} == {np.dtype(dtype)}
    assert network(task.example).shape == (2, 3)
    np.testing.assert_array_equal(task.train.inputs, inputs)
    assert network.training


def test_splits_of_other_shapes_are_named():
    with pytest.raises(UserError, match=r"different shapes: train \(4,\), validation \(5,\)"):
        Task(nn.Linear(4, 2), train=np.ones((10, 4)), validation=np.ones((10, 5)))
    with pytest.raises(UserError, match="at least 2 examples"):
        Task(nn.Linear(4, 2), train=np.ones((1, 4)))
