"""What `hw check` prints: the worst network first, the estimator beside the guesses that it must beat."""

from rich.console import Console

from autocomp.check import Check, Timed
from autocomp.report.check import print_check


def timed(name: str, us: float, estimate_us: float) -> Timed:
    return Timed(name, 30, 12, 10_000_000, 400_000, us, (us, 1.01 * us), estimate_us, 900.0, 1300.0, 2 * us, 0.0)


def test_the_worst_network_comes_first_and_the_guesses_stand_beside() -> None:
    networks = (timed("good", 1000.0, 1010.0), timed("bad", 1500.0, 1200.0), timed("fair", 1000.0, 1050.0))
    console = Console(width=80, record=True, color_system=None)
    print_check(Check(networks, 0.01, 4321, "a CPU", "1.32.0"), console)
    text = console.export_text()
    order = [text.index(name) for name in ("bad", "fair", "good")]
    assert order == sorted(order)
    assert "-20.0 %" in text and "outside" in text and "12 of 30" in text
    assert "3 networks, a table of 4,321 kernels" in text
    assert "sum of single operators in float32" in text and "regression on bytes" in text
    assert "67 % of the networks lie inside their 90 % band." in text
    assert max(map(len, text.splitlines())) <= 80
