"""Batch-norm for the time of a recovery: what was trained with it is what is left when it is folded away."""

import networks
import pytest
import torch
from networks import images, traced
from torch import nn

from autocomp.compress.prune import prune
from autocomp.compress.renormalize import Renormalized
from autocomp.policy import Policy


@pytest.mark.parametrize(("kind", "norms"), [(networks.SqueezeExcite, 3), (networks.Shared, 1)])
def test_folding_a_changed_norm_changes_nothing(kind, norms):
    # A convolution that is called twice gets none: its weights would be scaled by the norms of both calls.
    graph, x = prune(traced(kind), Policy()), images(8)
    with torch.no_grad():
        before = graph(x)
        renormalized = Renormalized(graph, x)
        found = [module for module in graph.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(found) == norms
        for norm in found:
            norm.weight.mul_(1.5)
        trained = graph.eval()(x)
        assert not torch.allclose(trained, before, atol=1e-2)
        renormalized.fold()
        torch.testing.assert_close(graph(x), trained, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
