"""What labels are taken for, by their shape and values beside the outputs; what cannot be told is asked for."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional

from autocomp.errors import UserError
from autocomp.tasks.labels import Meaning, Split, meaning_of, without_labels
from autocomp.tasks.metrics import DefaultLoss, Distillation, deviations, f1, guess, mean_iou, measure_of, relative_fit

N, K = 40, 4
RNG = np.random.default_rng(0)
CLASSES = RNG.permutation(np.arange(N) % K)
ONE_HOT = np.eye(K)[CLASSES]
SEVERAL = RNG.integers(0, 2, (N, K))
SEVERAL[0] = 1, 1, 0, 1
YES = np.arange(N) % 2
PIXELS = RNG.integers(0, K, (N, 5, 6))
TOKENS = RNG.integers(0, K, (N, 7))


def outputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, *shape)).astype(np.float32)


def meant(shape: tuple[int, ...], labels, said: str | None = None) -> Meaning:
    return meaning_of(outputs(*shape), [Split("Task.train", np.asarray(labels))], said)


@pytest.mark.parametrize(
    ("shape", "labels", "kind", "axis", "metric"),
    [
        ((K,), CLASSES, "classes", 0, "top-1 accuracy"),
        ((K,), CLASSES.astype(np.float32), "classes", 0, "top-1 accuracy"),
        ((K,), CLASSES[:, None], "classes", 0, "top-1 accuracy"),
        ((2,), YES.astype(bool), "classes", 0, "top-1 accuracy"),
        ((K, 1, 1), CLASSES, "classes", 0, "top-1 accuracy"),
        ((K,), ONE_HOT, "classes", 0, "top-1 accuracy"),
        ((K,), ONE_HOT.astype(bool), "classes", 0, "top-1 accuracy"),
        ((K,), 0.9 * ONE_HOT + 0.1 / K, "classes", 0, "top-1 accuracy"),
        ((K,), 2 * ONE_HOT - 1, "classes", 0, "top-1 accuracy"),
        ((2,), 2 * YES - 1, "classes", 0, "top-1 accuracy"),
        ((1,), 0.9 * YES + 0.05, "binary", None, "accuracy"),
        ((K,), 0.8 * SEVERAL + 0.1, "binary", None, "F1"),
        ((K,), np.where(CLASSES[:, None] == 0, -100, SEVERAL), "binary", None, "F1"),
        ((1, 5, 6), np.where(PIXELS == 3, 255, PIXELS % 2), "binary", None, "mean IoU"),
        ((K,), SEVERAL, "binary", None, "F1"),
        ((K,), SEVERAL.astype(np.float32), "binary", None, "F1"),
        ((1,), YES, "binary", None, "accuracy"),
        ((1,), YES[:, None].astype(np.float32), "binary", None, "accuracy"),
        ((), YES.astype(bool), "binary", None, "accuracy"),
        ((1,), 2 * YES - 1, "binary", None, "accuracy"),
        ((1,), np.arange(N) * 1000, "numbers", None, "relative fit"),
        ((1,), np.arange(N)[:, None] % 5, "numbers", None, "relative fit"),
        ((1,), RNG.normal(size=N), "numbers", None, "relative fit"),
        ((K,), RNG.normal(size=(N, K)), "numbers", None, "relative fit"),
        ((K,), RNG.integers(0, 99, (N, K)), "numbers", None, "relative fit"),
        ((K, 5, 6), PIXELS, "classes", 0, "mean IoU"),
        ((K, 5, 6), PIXELS[:, None], "classes", 0, "mean IoU"),
        ((5, 6, K), PIXELS, "classes", 2, "mean IoU"),
        ((K, 5, 6), np.moveaxis(np.eye(K)[PIXELS], -1, 1), "classes", 0, "mean IoU"),
        ((1, 5, 6), PIXELS % 2, "binary", None, "mean IoU"),
        ((1, 5, 6), RNG.normal(size=(N, 5, 6)), "numbers", None, "relative fit"),
        ((7, K), TOKENS, "classes", 1, "accuracy of tokens"),
        ((K, 7), TOKENS, "classes", 0, "accuracy of tokens"),
    ],
)  # fmt: skip
def test_what_labels_are(shape, labels, kind, axis, metric):
    meaning = meant(shape, labels)
    assert (meaning.kind, meaning.axis, measure_of(meaning).name) == (kind, axis, metric)


@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((K,), CLASSES), ((K,), ONE_HOT), ((K,), SEVERAL), ((1,), YES), ((1,), 2 * YES - 1), ((1,), np.arange(N) * 1e5),
        ((K, 5, 6), PIXELS), ((5, 6, K), PIXELS), ((1, 5, 6), PIXELS % 2), ((7, K), TOKENS), ((K, 7), TOKENS),
        ((K,), 0.9 * ONE_HOT + 0.1 / K),
    ],
)  # fmt: skip
def test_outputs_that_answer_the_labels_are_perfect_and_what_trains_moves_towards_them(shape, labels):
    """The default loss, minimized by plain descent from noise, brings the default metric to where it belongs."""
    split = Split("Task.train", np.asarray(labels))
    meaning = meant(shape, labels)
    encoded, targets = meaning.encode(split), torch.from_numpy(meaning.targets(split))
    scale = deviations(split.labels) if meaning.kind == "numbers" else (1.0,)
    x = torch.from_numpy(outputs(*shape) * max(scale)).requires_grad_()
    loss = DefaultLoss(meaning, scale)
    measure = measure_of(meaning).measure

    def score() -> float:
        return measure(meaning.decode(x.detach().numpy()), encoded)

    before = score()
    optimizer = torch.optim.Adam([x], 0.2 * max(scale))
    for _ in range(150):
        optimizer.zero_grad()
        loss(x, targets).backward()
        optimizer.step()
    assert before < 0.9
    assert score() > 0.99
    assert measure(guess(meaning, encoded), encoded) <= 0.7


@pytest.mark.parametrize(
    ("shape", "labels", "expected"),
    [
        ((K,), CLASSES + 1, r"the label of item \d+ is 4, and the network has 4 outputs: .* from 0 to 3.*subtract 1"),
        ((K,), np.where(np.arange(N) == 3, -1, CLASSES), r"the label of item 3 is -1"),
        ((K,), np.where(np.arange(N) == 3, -100, CLASSES), r"the label of item 3 is -100"),
        ((K, 5, 6), PIXELS + 1, r"the label of item \d+ at \[\d, \d\] is 4"),
        ((K, 5, 6), PIXELS - 1, r"is -1, .*; -100 marks positions that are not judged"),
        ((K, 5, 6), np.full_like(PIXELS, 255), r"every label is -100 or 255"),
    ],
)
def test_a_label_that_is_no_class_is_named_with_its_item(shape, labels, expected):
    with pytest.raises(UserError, match=expected):
        meant(shape, labels).encode(Split("Task.train", labels))


@pytest.mark.parametrize(
    ("shape", "labels", "expected"),
    [
        ((K,), RNG.normal(size=N), "are class indices, which are whole numbers"),
        ((K,), RNG.normal(size=(N, 3)), r"labels of shape \(40, 3\) do not fit outputs of shape \(40, 4\)"),
        ((1,), RNG.normal(size=(N, 3)), "do not fit"),
        ((K, 5, 6), PIXELS[:, :4], "do not fit"),
        ((1,), YES + 1, r"take the values 1, 2 only, .* give 0 and 1 .*labels == 2.*Task\(labels=\"numbers\"\)"),
        ((1, 5, 6), 255 * (PIXELS % 2), "take the values 0, 255 only"),
        ((K,), SEVERAL - (CLASSES[:, None] == 0), "0, 1 only, .*-100 instead of -1 where an output is not judged"),
        ((1,), np.where(CLASSES == 3, -100, YES), "0, 1 only, .*leave out what is not judged .-100."),
        ((7, 7), RNG.integers(0, 7, (N, 7)), "second or the last axis: give the task's metric and loss"),
    ],
)
def test_what_cannot_be_told_is_asked_for(shape, labels, expected):
    with pytest.raises(UserError, match=expected) as caught:
        meant(shape, labels)
    assert "\n" not in str(caught.value)


def test_what_is_said_decides():
    assert meant((1,), YES + 1, "numbers").kind == "numbers"
    assert meant((1,), YES, "numbers").kind == "numbers"
    assert meant((K,), ONE_HOT, "binary").kind == "binary"
    with pytest.raises(UserError, match=r"do not fit outputs .* as numbers"):
        meant((K,), CLASSES, "numbers")


def test_a_value_in_another_split_counts():
    """Validation holds ratings 0 and 1 alone, training 2 as well: numbers in both."""
    splits = [Split("Task.train", np.arange(N) % 3), Split("Task.validation", YES)]
    assert meaning_of(outputs(1), splits).kind == "numbers"
    with pytest.raises(UserError, match="all splits must have the same"):
        meaning_of(outputs(K), [Split("Task.train", CLASSES), Split("Task.test", ONE_HOT)])


def test_a_column_in_one_split_and_none_in_another_are_alike():
    splits = [Split("Task.train", CLASSES), Split("Task.test", CLASSES[:, None])]
    meaning = meaning_of(outputs(K), splits)
    assert (meaning.encode(splits[0]) == meaning.encode(splits[1])).all()


def test_signs_and_chances_are_the_classes_that_they_stand_for():
    for shape, labels, spelled in (
        ((2,), YES, 2 * YES - 1), ((K,), CLASSES, 2 * ONE_HOT - 1), ((1,), YES[:, None], 0.9 * YES + 0.05),
    ):  # fmt: skip
        split = Split("Task.train", np.asarray(spelled))
        assert np.array_equal(meant(shape, spelled).encode(split), labels)
    chances = RNG.uniform(size=N)
    said = meant((1,), chances, "binary")
    assert np.array_equal(said.encode(Split("", chances)), (chances > 0.5)[:, None])
    assert np.allclose(said.targets(Split("", chances))[:, 0], chances)  # the loss sees how sure
    assert meant((1,), chances).kind == "numbers"


@pytest.mark.parametrize(("shape", "mark"), [((K,), -100), ((1, 5, 6), 255), ((1, 5, 6), -100)])
def test_yes_or_no_that_is_not_judged_does_not_count(shape, mark):
    """Answers there change neither the metric nor the loss, whatever they are."""
    labels = RNG.integers(0, 2, (N, *shape))
    hidden = RNG.random((N, *shape)) < 0.3
    marked = np.where(hidden, mark, labels)
    meaning = meant(shape, marked)
    encoded, measure = meaning.encode(Split("", marked)), measure_of(meaning).measure
    right, wrong = np.where(hidden, 1 - labels, labels), np.where(hidden, labels, 1 - labels)
    assert measure(right, encoded) == 1
    assert measure(wrong, encoded) == 0
    loss, targets = DefaultLoss(meaning), torch.from_numpy(meaning.targets(Split("", marked)))
    x = torch.from_numpy(outputs(*shape))
    other = torch.where(torch.from_numpy(hidden), 7.0, x)
    torch.testing.assert_close(loss(x, targets), loss(other, targets))
    assert float(loss(x, torch.full_like(targets, -100))) == 0


def test_positions_that_are_not_judged_do_not_count():
    labels = PIXELS.copy()
    labels[:, 0], labels[:, 1, 0] = -100, 255
    meaning = meant((K, 5, 6), labels)
    encoded = meaning.encode(Split("Task.train", labels))
    right = np.moveaxis(np.eye(K)[PIXELS], -1, 1)
    wrong = right.copy()
    wrong[:, :, 0], wrong[:, :, 1, 0] = right[:, ::-1, 0], right[:, ::-1, 1, 0]
    assert mean_iou(meaning.decode(wrong), encoded) == 1
    loss, targets = DefaultLoss(meaning), torch.from_numpy(meaning.targets(Split("Task.train", labels)))
    torch.testing.assert_close(loss(torch.from_numpy(wrong), targets), loss(torch.from_numpy(right), targets))
    assert guess(meaning, encoded).min() >= 0


def test_networks_that_end_in_a_sigmoid_or_softmax_are_read_as_probabilities():
    chances = 1 / (1 + np.exp(-outputs(1)))
    meaning = meaning_of(chances, [Split("Task.train", YES)])
    assert meaning.probabilities
    assert (meaning.decode(chances) == (chances > 0.5)).all()
    shares = np.exp(outputs(K)) / np.exp(outputs(K)).sum(axis=1, keepdims=True)
    meaning = meaning_of(shares, [Split("Task.train", CLASSES)])
    expected = functional.cross_entropy(torch.from_numpy(outputs(K)), torch.from_numpy(CLASSES))
    torch.testing.assert_close(DefaultLoss(meaning)(torch.from_numpy(shares), torch.from_numpy(CLASSES)), expected)


def test_metrics_against_scikit_learn():
    answers = RNG.integers(0, 2, (N, K))
    assert f1(answers, SEVERAL) == pytest.approx(f1_score(SEVERAL, answers, average="micro"))
    other = RNG.integers(0, K, PIXELS.shape)
    assert mean_iou(other, PIXELS) == pytest.approx(jaccard_score(PIXELS.ravel(), other.ravel(), average="macro"))
    assert f1(np.zeros((3, 2)), np.zeros((3, 2))) == 1


def test_relative_fit_worked_by_hand():
    targets = np.array([[180_000.0], [220_000.0]])
    assert relative_fit(targets, targets) == 1
    assert relative_fit(np.full((2, 1), 200_000.0), targets) == pytest.approx(0.5)  # the mean of the targets
    assert relative_fit(targets + 40_000, targets) == pytest.approx(0.2)  # an error of twice the deviation


def test_each_column_of_numbers_counts_by_its_own_deviation():
    """A price and a share beside each other: an error in the share is not lost in the size of the price."""
    targets = np.stack([RNG.normal(180_000, 40_000, N), RNG.normal(0, 1e-3, N)], 1)
    noise = RNG.normal(size=(N, 2)) * targets.std(axis=0)
    assert relative_fit(targets + [[1, 0]] * noise, targets) == pytest.approx(
        relative_fit(targets + [[0, 1]] * noise, targets), abs=0.15
    )
    assert relative_fit(np.broadcast_to(targets.mean(axis=0), targets.shape), targets) == pytest.approx(0.5)


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("shape", [(), (1,), (K,), (1, 5, 6)])
def test_numbers_are_judged_and_trained_alike_in_any_unit(unit, shape):
    targets, noise = RNG.normal(3, 1, (N, *shape)), RNG.normal(0, 0.3, (N, *shape))
    assert relative_fit((targets + noise) * unit, targets * unit) == pytest.approx(
        relative_fit(targets + noise, targets)
    )
    loss = DefaultLoss(Meaning("numbers", shape), deviations(targets * unit))
    x = torch.from_numpy(((targets + noise) * unit).astype(np.float32))
    found = float(loss(x, torch.from_numpy((targets * unit).astype(np.float32))))
    assert 1 / (1 + found) == pytest.approx(relative_fit(targets + noise, targets), rel=1e-3)


def test_numbers_that_never_change_are_judged_by_their_size():
    assert deviations(np.full((N, 1), 7.0)) == (7,)
    assert deviations(np.zeros((N, 2))) == (1, 1)
    assert relative_fit(np.full((N, 1), 14.0), np.full((N, 1), 7.0)) == pytest.approx(0.5)


def test_a_batch_of_one_number_can_be_distilled():
    """Its deviation is 0, that of all examples is not."""
    distil = Distillation(Meaning("numbers", (1,)), (2.0,))
    assert float(distil(torch.tensor([[3.0]]), torch.tensor([[1.0]]))) == 1


def test_without_labels_classes_agree_by_the_largest_and_one_output_by_its_number():
    assert without_labels((K,)).kind == "classes"
    assert without_labels((K,), "numbers").kind == "numbers"
    for shape in ((1,), (), (K, 5, 6)):
        assert without_labels(shape).kind == "numbers"
    assert without_labels((1,), "binary").kind == "binary"
    assert without_labels((K, 5, 6), "classes").axis == 0


@pytest.mark.parametrize(("shape", "labels"), [((K,), RNG.normal(size=(N, K))), ((K,), SEVERAL), ((1,), YES)])
def test_distillation_sees_what_a_softmax_would_not(shape, labels):
    """Numbers and yes-or-no outputs that are off by one and the same amount are off."""
    x = torch.from_numpy(outputs(*shape))
    distil = Distillation(meant(shape, labels))
    assert float(distil(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(distil(x + 1, x)) > 0.1


@pytest.mark.parametrize(("shape", "axis"), [((K, 5, 6), 1), ((5, 6, K), 3)])
def test_distillation_of_maps_compares_the_classes_of_each_position(shape, axis):
    labels = PIXELS
    distil = Distillation(meant(shape, labels))
    x, y = torch.from_numpy(outputs(*shape)), torch.from_numpy(outputs(*shape)[::-1].copy())
    scores = [t.movedim(axis, -1).reshape(-1, K) / 2 for t in (x, y)]
    mine, theirs = (functional.log_softmax(s, 1) for s in scores)
    expected = 4 * (theirs.exp() * (theirs - mine)).sum(1).mean()
    torch.testing.assert_close(distil(x, y), expected)
