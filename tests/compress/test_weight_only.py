"""Layers of which only the weights are compressed: tables of embeddings and matrices of recurrent layers."""

import numpy as np
import onnx
import pytest
import torch
from networks import settled
from onnx import numpy_helper
from torch import Tensor, nn

from autocomp.compress.graph import get_parameter
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.compress.tracing.recurrent import CELLS
from autocomp.errors import UserError
from autocomp.export.scorer import open_session
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.profile import find_profile, profile_names
from autocomp.network import NETWORK_INPUT
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy
from autocomp.prepare import _check_expressible
from autocomp.space import SearchSpace, SpaceOptions


class Words(nn.Module):
    """Embedding → norm → GRU → linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(300, 16), nn.LayerNorm(16)
        self.cell, self.head = nn.GRU(16, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.norm(self.table(ids)))[0][:, -1])


IDS = torch.randint(0, 300, (24, 7), generator=torch.Generator().manual_seed(7))
WEIGHT_ONLY = ("table", "cell.weight_ih_l0", "cell.weight_hh_l0")


@pytest.fixture(scope="module")
def traced() -> Traced:
    return trace(settled(Words()), IDS[:2], "words")


def test_their_weights_are_layers_with_what_they_multiply(traced):
    layers = traced.spec.layer_by_name
    assert {name: layers[name].weight_shape for name in WEIGHT_ONLY} == {
        "table": (300, 16), "cell.weight_ih_l0": (72, 16), "cell.weight_hh_l0": (72, 24),
    }  # fmt: skip
    assert layers["table"].macs() == 0
    assert layers["cell.weight_hh_l0"].macs() == 7 * 72 * 24
    reasons = {left.name: left.reason for left in traced.spec.left_alone if left.what == "prune"}
    assert "features are not pruned" in reasons["table"]


def test_a_space_offers_few_bits_of_their_weights_and_nothing_on_integers(traced):
    """Also where other layers are not offered weights alone."""
    space = SearchSpace.build(traced.spec, SpaceOptions(weight_only=False), find_profile("mobile_arm").veto)
    genes = {gene.target: gene.choices for gene in (*space.genes, *space.fixed) if gene.kind == "quant"}
    for name in WEIGHT_ONLY:
        assert [choice.weight_bits for choice in genes[name]] == [2, 3, 4, 5, 6, 8, None]
        assert {choice.activation for choice in genes[name]} == {"float"}
    assert INT8 in genes["head"] and LayerPolicy(4, "float") not in genes["head"]


@pytest.mark.parametrize("name", profile_names())
def test_every_device_with_floating_point_unpacks_them(traced, name):
    profile = find_profile(name)
    for layer in WEIGHT_ONLY:
        spec = traced.spec.layer_by_name[layer]
        refused = [profile.veto(spec, decision) for decision in (FLOAT, LayerPolicy(4, "float"), INT8)]
        assert [reason is None for reason in refused] == ([False] * 3 if profile.integer_only else [True, True, False])
        if not profile.integer_only:
            capability = profile.capability(spec, LayerPolicy(4, "float"))
            assert capability is not None and capability.bytes_only and capability.runs_as == "fp32"
        assert "no runtime has an integer kernel" in str(refused[2])


def test_a_device_without_floating_point_says_which_layer_it_cannot_execute(traced):
    with pytest.raises(UserError, match=r"layer \S+: no runtime has an integer kernel for a layer of kind"):
        _check_expressible(traced.spec, find_profile("npu_ethos_u55"))


def test_operators_on_ids_are_not_listed_as_left_in_float():
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)

        def forward(self, ids: Tensor) -> Tensor:
            kept = (ids < 8)[..., None]
            return self.head((self.table(ids.clamp(max=9)) * kept).sum(1))

    left = trace(settled(Clamped()), IDS[:2], "clamped").spec.left_alone
    names = {each.name for each in left if each.what == "quantize"}
    assert "sum_1" in names and not names & {"clamp", "lt", "unsqueeze", "table"}


def test_a_policy_that_asks_for_integers_is_refused(traced):
    with pytest.raises(UserError, match="layer 'table' cannot be"):
        QuantizedNetwork(traced, Policy({"table": INT8}))


def test_ids_stay_integers_in_the_file_and_are_not_quantized(traced, tmp_path):
    eight = {name: LayerPolicy(8, "float") for name in WEIGHT_ONLY} | {"head": INT8}
    network = QuantizedNetwork(traced, Policy(eight))
    network.quantize([IDS])
    assert NETWORK_INPUT not in network.ranges
    OnnxWriter(traced).write(network.freeze(), tmp_path / "file.onnx")
    model = onnx.load(tmp_path / "file.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    _, executed = open_session(str(tmp_path / "file.onnx"))
    assert [executed[name] for name in WEIGHT_ONLY] == ["Gather", "GRU", "GRU"]


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_a_file_holds_their_weights_in_so_many_bits(traced, bits):
    decision = LayerPolicy(bits, "float")
    network = QuantizedNetwork(traced, Policy(dict.fromkeys(WEIGHT_ONLY, decision)))
    network.quantize([IDS])
    model = OnnxWriter(traced).build(network.freeze())
    stored = sum(numpy_helper.to_array(i).nbytes for i in model.graph.initializer)
    weights = sum(traced.spec.layer_by_name[name].weights() for name in WEIGHT_ONLY)
    assert weights * bits / 8 <= stored < weights * bits / 8 + 5_000  # scales, and what stays float


def test_what_a_file_does_not_hold_anew_is_not_trained(traced):
    trained = {path for path, value in traced.graph.named_parameters() if value.requires_grad}
    assert trained == {"table.weight", "cell.weight_ih_l0", "cell.weight_hh_l0", "head.weight", "head.bias"}
    assert not get_parameter(traced.graph, "norm.weight").requires_grad


def test_gates_are_put_in_the_order_of_the_operators():
    """Of two units a gate: torch counts i f g o and r z n, ONNX i o f c and z r h."""
    by_operator = {cell.operator: cell for cell in CELLS.values()}
    assert by_operator["LSTM"].in_order(np.arange(8)).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert by_operator["GRU"].in_order(np.arange(6)).tolist() == [2, 3, 0, 1, 4, 5]
    assert by_operator["RNN"].in_order(np.arange(2)).tolist() == [0, 1]
