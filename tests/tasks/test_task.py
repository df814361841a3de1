"""Tasks: what users may hand over as data, how splits are made, and task files that are wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.tasks import Data, Task, TaskRequest, load_task
from autocomp.tasks.task import split

INPUTS = np.arange(24, dtype=np.float64).reshape(6, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Items:
    """A dataset as torch.utils.data has them."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 6:
            raise IndexError
        return torch.from_numpy(INPUTS[index]), int(LABELS[index])


@pytest.mark.parametrize(
    "source",
    [
        Data(INPUTS.astype(np.float32), LABELS),
        (INPUTS, LABELS),
        [torch.from_numpy(INPUTS), torch.from_numpy(LABELS)],
        torch.utils.data.TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(LABELS)),
        Items(),
        [(row, label) for row, label in zip(INPUTS, LABELS, strict=True)],
        ((row, label) for row, label in zip(INPUTS, LABELS, strict=True)),
    ],
    ids=["Data", "arrays", "tensors", "TensorDataset", "dataset", "list of pairs", "generator"],
)
def test_data_in_every_form_that_users_have(source):
    data = Data.of(source, "Task.train")
    assert data.inputs.dtype == np.float32
    np.testing.assert_array_equal(data.inputs, INPUTS)
    np.testing.assert_array_equal(data.labels, LABELS)


@pytest.mark.parametrize("source", [INPUTS, torch.from_numpy(INPUTS), list(INPUTS)], ids=["array", "tensor", "list"])
def test_data_without_labels(source):
    data = Data.of(source, "Task.train")
    assert data.labels is None
    np.testing.assert_array_equal(data.inputs, INPUTS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (3, "Task.train: expected arrays .* got int"),
        ([], "Task.train is empty"),
        (np.empty((0, 4)), "Task.train is empty"),
        (np.full((3, 4), np.nan), "Task.train: the inputs contain NaN"),
        ((INPUTS, LABELS[:5]), "6 inputs but 5 labels"),
    ],
)
def test_data_that_is_none(source, expected):
    with pytest.raises(UserError, match=expected):
        Data.of(source, "Task.train")


def test_a_split_is_stratified_disjoint_and_always_the_same():
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 100])
    data = Data(np.arange(200, dtype=np.float32)[:, None], labels)
    rest, part = split(data, 0.3)
    assert np.bincount(part.labels).tolist() == [3, 6, 9, 12, 30]
    assert sorted([*rest.inputs[:, 0], *part.inputs[:, 0]]) == list(range(200))
    assert (split(data, 0.3)[1].inputs == part.inputs).all()
    assert (labels[part.inputs[:, 0].astype(int)] == part.labels).all()


def test_a_split_without_labels_and_one_that_would_be_empty():
    rest, part = split(Data(INPUTS.astype(np.float32)), 0.5)
    assert (len(rest), len(part)) == (3, 3)
    rest, part = split(Data(INPUTS.astype(np.float32), np.arange(6)), 0.1)  # a tenth of each class is nothing
    assert (len(rest), len(part)) == (5, 1)


def many(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n * 4, dtype=np.float32).reshape(n, 4), np.arange(n) % 2


def test_missing_splits_are_taken_from_what_is_there():
    train_only = Task(nn.Linear(4, 2), train=many(100))
    assert [len(s) for s in (train_only.train, train_only.validation, train_only.test)] == [70, 14, 16]  # 7 + 8 a class
    validation_only = Task(nn.Linear(4, 2), validation=many(100))
    parts = (validation_only.train, validation_only.validation, validation_only.test)
    assert sum(map(len, parts)) == 100
    assert validation_only.train.labels is None  # labels that candidates are scored on are not trained on
    assert len(np.unique(np.concatenate([part.inputs for part in parts])[:, 0])) == 100
    assert tuple(train_only.example.shape) == (2, 4)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Task(lambda x: x, train=many(10)), "Task.network must be a torch.nn.Module, got function"),
        (lambda: Task(nn.Linear(4, 2)), "Task needs data"),
        (lambda: Task(nn.Linear(4, 2), train=many(10), validation=np.ones((10, 5))), "different shapes"),
        (lambda: Task(nn.Linear(4, 2), train=many(2)), "at least 2 examples a split"),
    ],
)
def test_a_task_that_cannot_be(make, expected):
    with pytest.raises(UserError, match=expected):
        make()


GOOD = """
import torch
from autocomp import Task
from neighbour import WIDTH

def task():
    data = torch.randn(20, 4), torch.randint(0, 2, (20,))
    return Task(torch.nn.Linear(WIDTH, 2), train=data, name="mine")

def wrong_type():
    return 42

def raises():
    return 1 / 0

def leaves():
    raise SystemExit("no data at hand")

def wants(path, seed=0):
    return task()

def may_want(seed=0):
    return task()

ready = task()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "broken.py").write_text("def task(:\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    return tmp_path


def load(name: str, folder=None):
    task = name if folder is None else f"{folder / name}"
    return load_task(TaskRequest(task), QuietDisplay())


def test_a_task_file_and_its_neighbours(folder):
    task = load("mine.py:task", folder)
    assert task.name == "mine"
    assert task.network.in_features == 4
    assert load("mine.py:may_want", folder).name == load("mine.py:ready", folder).name == "mine"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine.py:tusk", "has no function 'tusk'; it has task, wrong_type, raises, .*, ready"),
        ("mine.py:wrong_type", r"wrong_type\(\) must return an autocomp.Task, got int"),
        ("mine.py:raises", "raised ZeroDivisionError at mine.py:14: division by zero"),
        ("mine.py:leaves", "raised SystemExit at mine.py:17: no data at hand"),
        ("mine.py:wants", "wants takes path: expected a function without arguments"),
        ("mine.py:WIDTH", "WIDTH is of type int: expected a function that returns an autocomp.Task"),
        ("broken.py:task", "raised SyntaxError at broken.py:1: invalid syntax"),
        ("needs.py:task", "raised ModuleNotFoundError at needs.py:1: No module named 'no_such_package'"),
        ("missing.py:task", "there is no file .*missing.py"),
        ("mine.py", "the function is missing"),
    ],
)
def test_a_task_file_that_is_wrong(name, expected, folder):
    with pytest.raises(UserError, match=expected) as caught:
        load(name, folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_and_options_that_do_not_apply(folder):
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load("mnits")
    with pytest.raises(UserError, match="--network is for built-in tasks"):
        load_task(TaskRequest(f"{folder / 'mine.py'}:task", network="resnet"), QuietDisplay())
    with pytest.raises(UserError, match="--data does not apply to the task mnist"):
        load_task(TaskRequest("mnist", data=folder), QuietDisplay())
