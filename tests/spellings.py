"""Small networks that say in an unusual way what a layer is: weights computed, shared, copied; splits, views, names."""

import copy
from collections.abc import Callable

import torch
from networks import images, settled, tokens
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class Network(nn.Module):
    """Parts by name, and a function of them and of the input."""

    def __init__(self, compute: Callable[["Network", Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def stored(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def relu(x: Tensor) -> Tensor:
    return functional.relu(x)


# --- computed, transposed, shared weights -----------------------------------------------------------------------------
def standardized() -> nn.Module:
    def compute(net: Network, x: Tensor) -> Tensor:
        w = net.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return net.head(relu(functional.conv2d(x, w, net.conv.bias)).mean((2, 3)))

    return Network(compute, conv=nn.Conv2d(3, 12, 3), head=nn.Linear(12, 4))


def parametrized() -> nn.Module:
    return Network(
        lambda net, x: net.head(relu(net.conv(x)).mean((2, 3))),
        conv=parametrizations.spectral_norm(nn.Conv2d(3, 12, 3)),
        head=parametrizations.weight_norm(nn.Linear(12, 4)),
    )


def products() -> nn.Module:
    def compute(net: Network, x: Tensor) -> Tensor:
        x = relu(x @ net.matmul)
        x = relu(torch.einsum("btf,of->bto", x, net.einsum))
        x = relu(torch.bmm(x, net.bmm.expand(x.size(0), 12, 10)))
        x = relu(net.left @ x).mean(1)
        x = relu(torch.addmm(net.shift, x, net.addmm))
        return torch.tensordot(x, net.tensordot, dims=([1], [1]))

    return Network(
        compute, matmul=stored(16, 12), einsum=stored(12, 12), bmm=stored(12, 10), left=stored(6, 12),
        shift=stored(8), addmm=stored(10, 8), tensordot=stored(4, 8),
    )  # fmt: skip


def heads_by_einsum() -> nn.Module:
    def compute(net: Network, x: Tensor) -> Tensor:
        x = relu(torch.einsum("btf,fhd->bthd", x, net.split))
        return net.head(relu(torch.einsum("bthd,hdo->bto", x, net.join)).mean(1))

    return Network(compute, split=stored(16, 2, 6), join=stored(2, 6, 12), head=nn.Linear(12, 4))


def low_rank() -> nn.Module:
    return Network(
        lambda net, x: net.head(relu(net.base(x) + x @ net.a.T @ net.b.T).mean(1)),
        base=nn.Linear(16, 12), a=stored(3, 16), b=stored(12, 3), head=nn.Linear(12, 4),
    )  # fmt: skip


def tied() -> nn.Module:
    return Network(
        lambda net, x: functional.linear(relu(net.encode(x)), net.encode.weight.T, net.shift).mean(1),
        encode=nn.Linear(16, 6), shift=stored(16),
    )  # fmt: skip


def positions() -> nn.Module:
    return Network(
        lambda net, x: net.head(relu(functional.linear(x, net.table) + net.places[:, : x.size(1)]).mean(1)),
        table=stored(12, 16), places=stored(1, 20, 12), head=nn.Linear(12, 4),
    )  # fmt: skip


def shared() -> nn.Module:
    """One matrix read by two linear layers, one bias by two others."""
    net = Network(
        lambda net, x: net.head(relu(net.d(relu(net.c(relu(net.b(relu(net.a(x)))))))).mean(1)),
        a=nn.Linear(16, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 12), d=nn.Linear(12, 12), head=nn.Linear(12, 4),
    )  # fmt: skip
    net.b.weight, net.d.bias = net.a.weight, net.c.bias
    return net


# --- copies -----------------------------------------------------------------------------------------------------------
def copies() -> nn.Module:
    """Layers of the same bytes, one behind another and side by side; biases are zeros, and others are added after."""
    layer = nn.Linear(16, 16, bias=False)
    net = Network(
        lambda net, x: net.head(relu(net.c(relu(net.a(x)) + relu(net.b(x)) + net.shift) + net.shift).mean(1)),
        a=nn.Linear(16, 16), b=nn.Linear(16, 16), c=layer, shift=stored(16), head=nn.Linear(16, 4),
    )  # fmt: skip
    settled(net)
    with torch.no_grad():
        net.a.bias.zero_()
    net.b.load_state_dict(net.a.state_dict())
    net.c.weight = copy.deepcopy(net.a.weight)
    return net


# --- batch-norm -------------------------------------------------------------------------------------------------------
def norm_over_tokens() -> nn.Module:
    return Network(
        lambda net, x: net.head(relu(net.norm(net.a(x))).mean(1)),
        a=nn.Linear(16, 12), norm=nn.BatchNorm1d(12), head=nn.Linear(12, 4),
    )  # fmt: skip


def norm_over_features() -> nn.Module:
    return Network(
        lambda net, x: net.head(relu(net.norm(net.a(x).transpose(1, 2))).mean(2)),
        a=nn.Linear(16, 12), norm=nn.BatchNorm1d(12), head=nn.Linear(12, 4),
    )  # fmt: skip


def norm_of_own_parameters() -> nn.Module:
    return Network(
        lambda net, x: net.head(relu(net.norm(functional.conv2d(x, net.kernel, net.shift))).mean((2, 3))),
        kernel=stored(12, 3, 3, 3), shift=stored(12), norm=nn.BatchNorm2d(12), head=nn.Linear(12, 4),
    )  # fmt: skip


def norms_of_one_layer() -> nn.Module:
    """A convolution that two batch-norms read in turn: it is folded into neither."""
    return Network(
        lambda net, x: net.head((net.one(net.conv(x)) + net.two(net.conv(relu(x)))).mean((2, 3))),
        conv=nn.Conv2d(3, 12, 3), one=nn.BatchNorm2d(12), two=nn.BatchNorm2d(12), head=nn.Linear(12, 4),
    )  # fmt: skip


# --- splits -----------------------------------------------------------------------------------------------------------
def splits() -> nn.Module:
    """Three parts, then two of which one is not read, then unequal ones, then parts of a part."""

    def compute(net: Network, x: Tensor) -> Tensor:
        a, b, c = net.one(x).chunk(3, 1)
        _, d = net.two(a * torch.sigmoid(b) + c).chunk(2, 1)
        e, f, _ = net.three(relu(d)).split([4, 6, 2], 1)
        g, h = f.chunk(2, 1)
        return net.head(relu(net.four(torch.cat([h, e, g], 1))).mean((2, 3)))

    return Network(
        compute, one=nn.Conv2d(3, 24, 1), two=nn.Conv2d(8, 16, 1), three=nn.Conv2d(8, 12, 3, padding=1),
        four=nn.Conv2d(10, 12, 1), head=nn.Linear(12, 4),
    )  # fmt: skip


def unbound() -> nn.Module:
    def compute(net: Network, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).view(x.size(0), 12, 3, 8).unbind(2)
        return net.head(relu(net.out(q * k + v)).topk(5, 1)[0].mean(1))

    return Network(compute, qkv=nn.Linear(16, 24), out=nn.Linear(8, 12), head=nn.Linear(12, 4))


# --- views ------------------------------------------------------------------------------------------------------------
def views() -> nn.Module:
    """Reshapes that say 20 channels: as they are, with the positions merged, flattened, and back."""

    def compute(net: Network, x: Tensor) -> Tensor:
        y = relu(net.one(x))
        y = relu(net.two(y.view(y.size(0), 20, y.size(2), y.size(3))))
        y = relu(net.three(y.view(y.size(0), 12, -1)))
        y = y.view(-1, 8 * 256).view(-1, 8, 16, 16)
        return net.head(relu(net.four(y)).view(-1, 6 * 256))

    return Network(
        compute, one=nn.Conv2d(3, 20, 1), two=nn.Conv2d(20, 12, 1), three=nn.Conv1d(12, 8, 1),
        four=nn.Conv2d(8, 6, 1), head=nn.Linear(6 * 256, 4),
    )  # fmt: skip


def patches() -> nn.Module:
    """As a vision transformer begins: convolution, flatten(2), transpose, tokens merged with the batch, and back."""

    def compute(net: Network, x: Tensor) -> Tensor:
        x = net.embed(relu(net.patch(x)).flatten(2).transpose(1, 2))
        x = relu(net.hidden(relu(x).reshape(-1, 12)))
        return net.head(x.reshape(-1, 16, 10).mean(1))

    return Network(
        compute, patch=nn.Conv2d(3, 16, 4, 4), embed=nn.Linear(16, 12), hidden=nn.Linear(12, 10), head=nn.Linear(10, 4)
    )


def fixed_numbers() -> nn.Module:
    """What fixes the number of channels in a way that pruning does not follow: heads, added channels."""

    def compute(net: Network, x: Tensor) -> Tensor:
        x = functional.pad(relu(net.one(x)), (0, 0, 0, 0, 2, 2))
        x = relu(net.two(x)).view(x.size(0), 2, 6, 16, 16).transpose(1, 2).reshape(x.size(0), 12, 16, 16)
        return net.head(relu(net.three(x)).mean((2, 3)))

    return Network(
        compute, one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(12, 12, 1), three=nn.Conv2d(12, 10, 1), head=nn.Linear(10, 4)
    )


# --- names ------------------------------------------------------------------------------------------------------------
class NamedAsTheFile(nn.Module):
    """Input, parameters and modules have names that the file gives to its own tensors and nodes."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("s1", "z0", "q1", "d1", "e1", "r0", "w0b", "y", "relu", "mean_4d", "linear_raw"):
            setattr(self, name, stored(1))
        self.w0, self.w0a = stored(4, 12), stored(4)
        self.n1, self.n0, self.conv2d = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 12)

    def forward(self, q0: Tensor) -> Tensor:
        x = relu(self.n1(q0)) * self.s1 + self.z0
        x = relu(self.n0(x)) * self.relu + self.q1 - self.d1 + self.e1
        x = relu(self.conv2d(x.mean((2, 3)) + self.mean_4d)) * self.r0
        return functional.linear(x, self.w0, self.w0a) + self.w0b * self.y + self.linear_raw


def itself_a_convolution() -> nn.Module:
    return nn.Conv2d(3, 8, 3, padding="same")


#: Function that makes a network → one that makes its input.
INPUTS: dict[Callable[[], nn.Module], Callable[[], Tensor]] = {
    standardized: images, parametrized: images, products: tokens, heads_by_einsum: tokens, low_rank: tokens,
    tied: tokens, positions: tokens, shared: tokens, copies: tokens, norm_over_tokens: tokens,
    norm_over_features: tokens, norm_of_own_parameters: images, norms_of_one_layer: images, splits: images,
    unbound: tokens, views: images, patches: images, fixed_numbers: images, NamedAsTheFile: images,
    itself_a_convolution: images,
}  # fmt: skip


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    """The network in evaluation mode, its weights drawn unless it drew them itself."""
    torch.manual_seed(0)  # spectral norm draws vectors of its own
    network = kind()
    return network.eval() if kind is copies else settled(network)
