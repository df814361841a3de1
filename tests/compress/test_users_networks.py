"""Networks as users bring them: each passes, and then all its forms agree, or is refused in a line that says why."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from held_together import differences
from networks import settled
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from autocomp.compress.trace import trace
from autocomp.errors import UserError

Made = tuple[nn.Module, Tensor]


def batch(*shape: int, n: int = 24) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(7))


class Function(nn.Module):
    """A forward function with the modules and parameters that it uses."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self._function(self, x)


def images(body: nn.Module) -> Made:
    """A stem of 16 channels, the body, a mean and a linear layer."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    network = Function(lambda self, x: self.head(self.body(self.stem(x)).mean((2, 3))), stem=stem, body=body,
                       head=nn.Linear(16, 6))  # fmt: skip
    return settled(network), batch(3, 12, 12)


def tokens(forward: Callable[..., object], **parts: nn.Module | nn.Parameter) -> Made:
    return settled(Function(forward, **parts)), batch(10, 8)


PASSES: dict[str, Callable[[], Made]] = {}
REFUSED: dict[str, tuple[str, Callable[[], Made]]] = {}


def passes(make: Callable[[], Made]) -> Callable[[], Made]:
    PASSES[make.__name__] = make
    return make


def refused(reason: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def register(make: Callable[[], Made]) -> Callable[[], Made]:
        REFUSED[make.__name__] = (reason, make)
        return make

    return register


# ---- folding ---------------------------------------------------------------------------------------------------------


@passes
def batch_norm_over_tokens_behind_a_linear_layer() -> Made:
    """BatchNorm1d normalizes axis 1, the tokens; the layer writes the last axis."""
    network = Function(lambda self, x: self.head(torch.relu(self.bn(self.a(x))).mean(1)), a=nn.Linear(8, 16),
                       bn=nn.BatchNorm1d(16), head=nn.Linear(16, 5))  # fmt: skip
    return settled(network), batch(16, 8)


@passes
def batch_norm_over_features_behind_a_linear_layer() -> Made:
    return settled(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))), batch(8)


@passes
def batch_norm_behind_a_functional_convolution() -> Made:
    return images(
        Function(
            lambda self, x: torch.relu(self.bn(functional.conv2d(x, self.kernel, self.shift, padding=1))),
            kernel=nn.Parameter(torch.zeros(16, 16, 3, 3)), shift=nn.Parameter(torch.zeros(16)), bn=nn.BatchNorm2d(16),
        )
    )  # fmt: skip


@passes
def a_convolution_that_two_batch_norms_read() -> Made:
    return images(
        Function(lambda self, x: self.a(self.c(x)) + self.b(self.c(x)), c=nn.Conv2d(16, 16, 3, padding=1),
                 a=nn.BatchNorm2d(16), b=nn.BatchNorm2d(16))
    )  # fmt: skip


# ---- weights that are computed ---------------------------------------------------------------------------------------


@passes
def standardized_weights() -> Made:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return functional.conv2d(x, w, self.bias, padding=1)

    return images(nn.Sequential(Standardized(16, 16, 3), nn.GroupNorm(4, 16), nn.ReLU()))


@passes
def spectral_norm_left_on() -> Made:
    return images(nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(16, 16, 3, padding=1)), nn.ReLU()))


@passes
def weight_norm_left_on() -> Made:
    return images(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(16, 16, 3, padding=1)), nn.ReLU()))


@passes
def a_low_rank_adapter() -> Made:
    network = Function(lambda self, x: self.head(torch.relu(self.base(x) + x @ self.a.T @ self.b.T)),
                       base=nn.Linear(8, 16), a=nn.Parameter(torch.zeros(2, 8)), b=nn.Parameter(torch.zeros(16, 2)),
                       head=nn.Linear(16, 4))  # fmt: skip
    return settled(network), batch(8)


@passes
def a_linear_layer_by_function() -> Made:
    return tokens(lambda self, x: self.head(torch.relu(functional.linear(x, self.table)).mean(1)),
                  table=nn.Parameter(torch.zeros(16, 8)), head=nn.Linear(16, 4))  # fmt: skip


@passes
def a_product_with_a_parameter() -> Made:
    return tokens(lambda self, x: self.head(torch.relu(x @ self.table).mean(1)),
                  table=nn.Parameter(torch.zeros(8, 16)), head=nn.Linear(16, 4))  # fmt: skip


@passes
def a_decoder_tied_to_its_encoder() -> Made:
    network = Function(lambda self, x: functional.linear(torch.relu(self.encoder(x)), self.encoder.weight.T),
                       encoder=nn.Linear(8, 16))  # fmt: skip
    return settled(network), batch(8)


@passes
def a_table_of_positions() -> Made:
    return tokens(lambda self, x: self.head(torch.relu(self.a(x + self.positions[:, : x.shape[1]])).mean(1)),
                  positions=nn.Parameter(torch.zeros(1, 20, 8)), a=nn.Linear(8, 16), head=nn.Linear(16, 4))  # fmt: skip


@passes
def a_module_that_is_called_twice() -> Made:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    return images(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU()))


@passes
def blocks_that_are_copies() -> Made:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    network = Function(lambda self, x: self.head(self.encoder(x).mean(1)),
                       encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                       head=nn.Linear(16, 4))  # fmt: skip
    return network.eval(), batch(10, 16)


@passes
def a_network_that_is_one_layer() -> Made:
    return settled(nn.Conv2d(3, 8, 3)), batch(3, 12, 12)


# ---- splits, views, names --------------------------------------------------------------------------------------------


@passes
def three_parts_and_then_two() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b, c = self.c1(x).chunk(3, 1)
        d, e = self.c2(a * torch.sigmoid(b) + c).chunk(2, 1)
        return torch.relu(self.c3(d * torch.sigmoid(e)))

    return images(Function(forward, c1=nn.Conv2d(16, 24, 1), c2=nn.Conv2d(8, 16, 1), c3=nn.Conv2d(8, 16, 3, padding=1)))


@passes
def a_part_that_nobody_reads() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b = self.c1(x).chunk(2, 1)
        _, d = self.c2(torch.cat([torch.relu(b), a], 1)).chunk(2, 1)
        return torch.relu(self.c3(d))

    return images(
        Function(forward, c1=nn.Conv2d(16, 16, 1), c2=nn.Conv2d(16, 16, 1), c3=nn.Conv2d(8, 16, 3, padding=1))
    )


@passes
def parts_of_unequal_size() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.c1(x), [4, 8, 12], 1)
        return self.c2(torch.cat([c, a, torch.relu(b)], 1))

    return images(Function(forward, c1=nn.Conv2d(16, 24, 1), c2=nn.Conv2d(24, 16, 1)))


@passes
def a_view_that_names_its_channels() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(self.c1(x))
        return torch.relu(self.c2(y.view(y.size(0), 20, y.size(2), y.size(3))))

    return images(Function(forward, c1=nn.Conv2d(16, 20, 3, padding=1), c2=nn.Conv2d(20, 16, 3, padding=1)))


@passes
def parameters_that_are_called_as_the_files_tensors() -> Made:
    names = ("s1", "z0", "q1", "d1", "w0", "w0b", "w0a", "w0h", "y", "n0", "e1", "k1")

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(self.c1(x)) * self.s1 + self.z0 - self.n0
        x = torch.relu(self.c2(x)) * self.w0 + self.q1 - self.d1
        return self.head(x.mean((2, 3))) + self.w0b * self.w0a + self.y + self.e1 * self.k1 * self.w0h

    parts = {name: nn.Parameter(torch.rand(1) + 0.5) for name in names}
    network = Function(forward, c1=nn.Conv2d(3, 12, 3, padding=1), c2=nn.Conv2d(12, 12, 3, padding=1),
                       head=nn.Linear(12, 5), **parts)  # fmt: skip
    return network.eval(), batch(3, 12, 12)


@passes
def modules_that_are_called_as_the_files_nodes() -> Made:
    parts = {"n0": nn.Conv2d(3, 12, 3), "n1": nn.Conv2d(12, 12, 3), "w0": nn.Linear(12, 5)}
    network = Function(lambda self, x: self.w0(torch.relu(self.n1(torch.relu(self.n0(x)))).mean((2, 3))), **parts)
    return settled(network), batch(3, 12, 12)


# ---- modules in another state ----------------------------------------------------------------------------------------


@passes
def masks_of_torch_left_on() -> Made:
    network, x = images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    prune.l1_unstructured(network.body[0], "weight", 0.5)
    network(x[:2])
    return network, x


@passes
def the_old_weight_norm() -> Made:
    network, x = images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    nn.utils.weight_norm(network.body[0])
    network(x[:2])
    return network, x


@passes
def double_precision() -> Made:
    network, x = images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    return network.double(), x


@passes
def wrapped_for_several_gpus() -> Made:
    network, x = images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    return nn.DataParallel(network), x


@refused("torch.jit")
def scripted() -> Made:
    network, x = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), batch(3, 12, 12)
    return torch.jit.script(network), x


@refused("body.0")
def not_a_number_in_a_weight() -> Made:
    network, x = images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    with torch.no_grad():
        network.body[0].weight[0, 0, 0, 0] = float("nan")
    return network, x


@refused("dropout")
def dropout_that_never_stops() -> Made:
    network = Function(lambda self, x: self.f(functional.dropout(torch.relu(self.c(x)).mean((2, 3)), 0.5)),
                       c=nn.Conv2d(3, 8, 3, padding=1), f=nn.Linear(8, 5))  # fmt: skip
    return settled(network), batch(3, 12, 12)


@refused("batch")
def statistics_of_the_batch() -> Made:
    return images(
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU())
    )


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@passes
def a_layer_without_weights() -> Made:
    network, x = images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)))
    with torch.no_grad():
        network.body[2].weight.zero_()
    return network, x


@passes
def averages_over_cut_windows() -> Made:
    average = nn.AvgPool2d(3, 2, ceil_mode=True)
    return images(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), average, nn.Conv2d(16, 16, 1)))


# ---- signatures ------------------------------------------------------------------------------------------------------


@passes
def a_dict_of_outputs() -> Made:
    def forward(self: nn.Module, x: Tensor) -> object:
        y = torch.relu(self.a(x))
        return {"aux": self.c(y), "logits": self.b(y)}

    return settled(Function(forward, a=nn.Linear(8, 16), b=nn.Linear(16, 3), c=nn.Linear(16, 2))), batch(8)


@passes
def a_tuple_whose_second_output_other_layers_read() -> Made:
    def forward(self: nn.Module, x: Tensor) -> object:
        y = torch.relu(self.c1(x))
        z = torch.relu(self.c2(y))
        return self.head(z.mean((2, 3))), y, {"deep": z, "none": None}

    network = Function(forward, c1=nn.Conv2d(3, 8, 3, padding=1), c2=nn.Conv2d(8, 8, 3), head=nn.Linear(8, 5))
    return settled(network), batch(3, 12, 12)


def ids(*shape: int, n: int = 24, below: int = 50) -> Tensor:
    return torch.randint(0, below, (n, *shape), generator=torch.Generator().manual_seed(7))


@passes
def token_ids() -> Made:
    network = Function(lambda self, x: self.head(torch.relu(self.hidden(self.embedding(x).mean(1)))),
                       embedding=nn.Embedding(50, 32), hidden=nn.Linear(32, 32), head=nn.Linear(32, 4))  # fmt: skip
    return settled(network), ids(12)


@passes
def token_ids_in_32_bits_with_positions_and_padding() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.words(x) + self.places(torch.arange(x.shape[1]))
        return self.head((torch.relu(self.a(self.norm(y))) * (x != 0)[..., None]).sum(1))

    network = Function(forward, words=nn.Embedding(50, 16, padding_idx=0), places=nn.Embedding(20, 16),
                       norm=nn.LayerNorm(16), a=nn.Linear(16, 16), head=nn.Linear(16, 4))  # fmt: skip
    return settled(network), ids(12).int()


@passes
def one_id_an_example() -> Made:
    return settled(nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8, 4))), ids(1)


@passes
def an_embedding_tied_to_the_head() -> Made:
    network = Function(lambda self, x: functional.linear(torch.relu(self.a(self.e(x).mean(1))), self.e.weight),
                       e=nn.Embedding(50, 8), a=nn.Linear(8, 8))  # fmt: skip
    return settled(network), ids(12)


@passes
def columns_of_a_table_that_are_categories() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        parts = [self.e0(x[:, 0]), self.e1(x[:, 1].clamp(max=9)), x[:, 2:].float() / 50]
        return self.head(torch.relu(self.a(torch.cat(parts, 1))))

    network = Function(forward, e0=nn.Embedding(50, 8), e1=nn.Embedding(10, 4), a=nn.Linear(16, 16),
                       head=nn.Linear(16, 4))  # fmt: skip
    return settled(network), ids(6)


@passes
def convolutions_over_embedded_tokens() -> Made:
    network = Function(lambda self, x: self.head(torch.relu(self.c(self.e(x).transpose(1, 2))).amax(2)),
                       e=nn.Embedding(50, 16), c=nn.Conv1d(16, 16, 3), head=nn.Linear(16, 4))  # fmt: skip
    return settled(network), ids(12)


@passes
def a_mask_of_booleans() -> Made:
    network = Function(lambda self, x: self.head(torch.relu(self.a(x.float()))), a=nn.Linear(12, 16),
                       head=nn.Linear(16, 4))  # fmt: skip
    return settled(network), ids(12) > 25


def over_steps(kind: type[nn.RNNBase], *, last: bool = False, **options: object) -> Made:
    """A recurrent layer over 9 steps; last: its last state is read, and not its results."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        results, state = self.cell(x if self.cell.batch_first else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        ends = results[:, -1] if self.cell.batch_first else results[-1]
        return self.head(torch.cat([*state[-directions:]], 1) if last else ends)

    directions = 2 if options.get("bidirectional") else 1
    cell = kind(8, 16, **options)  # type: ignore[arg-type]
    return settled(Function(forward, cell=cell, head=nn.Linear(16 * directions, 4))), batch(9, 8)


@passes
def a_vanilla_rnn() -> Made:
    return over_steps(nn.RNN, batch_first=True)


@passes
def two_layers_of_rnn_without_biases() -> Made:
    return over_steps(nn.RNN, nonlinearity="relu", num_layers=2, bias=False)


@passes
def an_rnn_in_both_directions() -> Made:
    return over_steps(nn.RNN, bidirectional=True, num_layers=2, last=True)


@passes
def an_lstm_in_both_directions() -> Made:
    return over_steps(nn.LSTM, bidirectional=True, batch_first=True, last=True)


@passes
def a_gru() -> Made:
    return over_steps(nn.GRU, batch_first=True, num_layers=2)


@passes
def an_lstm_that_is_called_twice() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.cell(torch.relu(self.a(self.cell(x)[0])))[0].mean(1))

    cell = nn.LSTM(8, 16, batch_first=True)
    return settled(Function(forward, cell=cell, a=nn.Linear(16, 8), head=nn.Linear(16, 4))), batch(9, 8)


@passes
def a_gru_of_one_step_at_a_time() -> Made:
    """nn.GRUCell is linear layers, which every step shares."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 16)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state)

    return settled(Function(forward, cell=nn.GRUCell(8, 16), head=nn.Linear(16, 4))), batch(4, 8)


@refused("proj_size")
def an_lstm_with_projections() -> Made:
    network = Function(lambda self, x: self.head(self.cell(x)[0][:, -1]), cell=nn.LSTM(8, 16, proj_size=4,
                       batch_first=True), head=nn.Linear(4, 4))  # fmt: skip
    return settled(network), batch(9, 8)


@refused("use nn.Embedding with the same weights")
def a_bag_of_embeddings() -> Made:
    return settled(nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 4))), ids(12)


@refused("a tensor, or a dict, tuple or data class of tensors")
def no_tensor_returned() -> Made:
    return settled(Function(lambda self, x: {"mean": 1.0, "x": None}, a=nn.Linear(8, 4))), batch(8)


@passes
def padding_that_two_convolutions_read() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        padded = functional.pad(functional.hardswish(self.stem(x)), (1, 0, 2, 1))
        return self.head((self.a(padded) + self.b(functional.pad(padded, (1, 1, 1, 1), "replicate"))).mean((2, 3)))

    network = Function(forward, stem=nn.Conv2d(3, 8, 3), a=nn.Conv2d(8, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3),
                       head=nn.Linear(8, 4))  # fmt: skip
    return settled(network), batch(3, 12, 12)


@pytest.mark.parametrize("name", PASSES)
def test_all_forms_of_a_network_agree(name, tmp_path):
    network, inputs = PASSES[name]()
    differ = []
    for seed in range(2):
        differ += differences(network, inputs, np.random.default_rng(seed), tmp_path)
    assert differ == []


def test_a_table_that_the_head_reads_too_is_left_float_and_said():
    network, inputs = an_embedding_tied_to_the_head()
    left = trace(network, inputs[:2], "tied").spec.left_alone
    reasons = {each.name: each.reason for each in left if each.what == "quantize"}
    assert reasons["e"] == "its weight is shared by several calls" and "embedding" not in reasons


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_is_refused_in_one_line(name):
    reason, make = REFUSED[name]
    network, inputs = make()
    with pytest.raises(UserError, match=reason) as error:
        trace(network, inputs[:2], name)
    assert "\n" not in str(error.value)
