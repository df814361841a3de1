import pytest

from autocomp.report import figures


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (figures.percent, 0.98467, "98.47 %"),
        (figures.percent, None, "–"),
        (figures.points, -0.004, "−0.40"),
        (figures.points, 0.00312, "+0.31"),
        (figures.points, -0.00000001, "0.00"),
        (figures.size, 512, "512 B"),
        (figures.size, 999, "999 B"),
        (figures.size, 214_499, "214 kB"),
        (figures.size, 999_950, "1.00 MB"),
        (figures.size, 3_912_345, "3.91 MB"),
        (figures.milliseconds, 0.41234, "0.412 ms"),
        (figures.milliseconds, 0.0123, "0.0123 ms"),
        (figures.milliseconds, 0.9996, "1.00 ms"),
        (figures.milliseconds, 12.345, "12.3 ms"),
        (figures.milliseconds, 1234.5, "1234 ms"),
        (figures.times, 9.53, "×9.5"),
        (figures.times, 141.6, "×142"),
        (figures.times, 0.873, "×0.87"),
        (figures.duration, 42, "0:42"),
        (figures.duration, 725, "12:05"),
        (figures.duration, 3723, "1:02:03"),
    ],
)
def test_figures(write, value, expected):
    assert write(value) == expected
