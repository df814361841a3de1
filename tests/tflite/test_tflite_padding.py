"""Borders against a picture of which rows a window reads."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from autocomp.tflite.padding import Border, Window, pooling_border, read_border, same_border

sizes = st.integers(4, 12)
windows = st.builds(
    Window,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


def convolved(image: torch.Tensor, border: Border, window: Window) -> torch.Tensor:
    weight = torch.arange(1.0, 1 + window.kernel[0] * window.kernel[1]).reshape(1, 1, *window.kernel)
    padded = functional.pad(image, (*border.columns, *border.rows))
    return functional.conv2d(padded, weight, stride=window.stride, dilation=window.dilation)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, windows, st.builds(Border, sides, sides))
def test_what_is_read_of_a_border_is_enough_and_no_more(height, width, window, border):
    image = torch.rand(1, 1, height, width) + 1
    wanted = read_border((height, width), border, window)
    if not convolvable(height, width, border, window):
        return
    assert torch.equal(convolved(image, wanted, window), convolved(image, border, window))
    for less in (
        Border((wanted.rows[0], wanted.rows[1] - 1), wanted.columns) if wanted.rows[1] else None,
        Border(wanted.rows, (wanted.columns[0], wanted.columns[1] - 1)) if wanted.columns[1] else None,
    ):
        if less is not None and convolvable(height, width, less, window):
            assert convolved(image, less, window).shape != convolved(image, border, window).shape


def convolvable(height: int, width: int, border: Border, window: Window) -> bool:
    """Whether the window fits; torch refuses one that is larger than what it moves over."""
    return height + sum(border.rows) >= window.reach[0] and width + sum(border.columns) >= window.reach[1]


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, windows)
def test_same_gives_a_result_for_every_step(height, width, window):
    border = same_border((height, width), window)
    if convolvable(height, width, border, window):
        result = convolved(torch.ones(1, 1, height, width), border, window)
        assert result.shape[2:] == (-(-height // window.stride[0]), -(-width // window.stride[1]))
    for before, after in (border.rows, border.columns):
        assert after - before in (0, 1)  # the odd one comes last


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 4), st.integers(1, 3), st.integers(0, 1))
def test_rounding_up_is_torchs(size, kernel, stride, padding):
    padding = min(padding, kernel // 2)
    image = torch.rand(1, 1, size, size)
    expected = functional.max_pool2d(image, kernel, stride, padding, ceil_mode=True)
    window = Window((kernel, kernel), (stride, stride))
    border = Border((padding, padding), (padding, padding))
    read = read_border((size, size), border, window, round_up=True)
    padded = functional.pad(image, (*read.columns, *read.rows), value=float("-inf"))
    assert torch.equal(functional.max_pool2d(padded, kernel, stride), expected)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 20), st.integers(2, 5), st.integers(1, 3))
def test_a_pooling_of_unknown_padding_is_taken_as_torch_networks_have_it(size, kernel, stride):
    padding = (kernel - 1) // 2
    if size + 2 * padding < kernel:
        return
    image = torch.rand(1, 1, size, size)
    expected = functional.max_pool2d(image, kernel, stride, padding, ceil_mode=True)
    if expected.shape[2] != -(-size // stride):
        return  # torch ends earlier or later than the sizes that a kernel's key stands for
    border = pooling_border((size, size), Window((kernel, kernel), (stride, stride)))
    padded = functional.pad(image, (*border.columns, *border.rows), value=-1.0)
    assert torch.equal(functional.max_pool2d(padded, kernel, stride), expected)
