"""Networks that nobody designed for: all forms of each agree. experiments/random_networks draws thousands."""

import numpy as np
import pytest
import torch
from held_together import differences
from random_networks import draw


@pytest.mark.parametrize("seed", range(5000, 5020))
def test_all_forms_of_a_drawn_network_agree(seed, tmp_path):
    drawn = draw(seed)
    assert differences(drawn.network, drawn.inputs, np.random.default_rng(seed), tmp_path) == [], drawn.blocks


def test_one_seed_gives_one_network():
    first, second = draw(7), draw(7)
    assert first.blocks == second.blocks
    assert torch.equal(first.network(first.inputs), second.network(second.inputs))
    assert draw(8).blocks != first.blocks


def test_a_fault_in_any_form_is_seen(tmp_path, monkeypatch):
    import held_together

    drawn = draw(7)
    run = held_together.run_file
    monkeypatch.setattr(held_together, "run_file", lambda path, inputs, batch: run(path, inputs, batch) * 1.05)
    found = differences(drawn.network, drawn.inputs, np.random.default_rng(0), tmp_path)
    assert any("float file" in line for line in found)
    assert any("quantized" in line for line in found)
