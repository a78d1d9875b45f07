"""From a first network to AlexNet and its initialisation, on trinn's kernels: python examples/notes.py

The examples follow the notes of a course on building and initialising models in PyTorch, and are numbered like the sections 2.3
and 2.4 of these notes. The notes are not in this repository, and not needed. Each line prints a call on the left, and its
result on the right or below. Every layer runs as a Triton kernel: on a GPU if there is one, else in Triton's interpreter.
"""

import os

# The interpreter's matrix products are so small that several threads would be slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from trinn import layers as nn
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.models import MLP, AlexNet, LeNet, MyDictDense, MyLayer, MyListDense, init_weights
from trinn.models.init import SCHEMES

DEVICE = "cpu" if INTERPRETED else "cuda"
WIDTH = 56


def show(call: str, value: Any) -> None:
    """Print a call and its result: a result of one line on the right, else below."""
    lines = text(value).splitlines()
    if len(lines) == 1:
        print(f"    {call:{WIDTH}} {lines[0]}")
    else:
        print(f"    {call}", *(f"        {line}" for line in lines), sep="\n")


def text(value: Any) -> str:
    """A tensor as rows of numbers, without decimals if all are integers; a size as 8 x 8; any other value as str."""
    if isinstance(value, (torch.Size, tuple)):
        return " x ".join(map(str, value))
    if not isinstance(value, Tensor):
        return str(value)
    whole = bool((value == value.round()).all())
    numbers = [[f"{number:.0f}" if whole else f"{number:.4f}" for number in row] for row in value.reshape(-1, value.shape[-1])]
    width = max(len(number) for row in numbers for number in row)
    return "\n".join("  ".join(number.rjust(width) for number in row) for row in numbers)


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=DEVICE)


def image(*rows: Any) -> Tensor:
    """Rows of pixels as a batch of one image with one channel, (1, 1, H, W)."""
    return tensor(*rows)[None, None]


def filled(layer: Any, weight: Any, bias: Any = None) -> Any:
    """Set the parameters of `layer`, and move it to DEVICE."""
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight).view_as(layer.weight))
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer.to(DEVICE)


def comp_conv2d(conv2d: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """The convolution of a plain (H, W) tensor: adds the batch and channel axes, and removes them from the result."""
    Y = conv2d(X.view((1, 1) + X.shape))
    return Y.view(Y.shape[2:])


def a_network() -> None:
    X = torch.rand(2, 784).to(DEVICE)
    net = MLP().to(DEVICE)
    show("net = MLP()", net)
    show("net(X)", net(X))
    net(X).sum().backward()
    show("net.hidden.weight.grad.shape", net.hidden.weight.grad.shape)


def layers_without_parameters() -> None:
    layer = MyLayer()
    show("MyLayer()(tensor([1., 2., 3., 4., 5.]))", layer(tensor(1, 2, 3, 4, 5)))
    try:
        layer(torch.tensor([1, 2, 3, 4, 5], device=DEVICE))
    except RuntimeError as refusal:
        show("MyLayer()(tensor([1, 2, 3, 4, 5])): integers", f"RuntimeError: {refusal}")


def layers_with_parameters() -> None:
    x = tensor([1, 2, 3, 4])
    net = MyListDense().to(DEVICE)
    show("net = MyListDense()", net)
    show("net(x).shape", net(x).shape)
    choosing = MyDictDense().to(DEVICE)
    show("net = MyDictDense()", choosing)
    for choice in choosing.params:
        show(f"net(x, choice='{choice}').shape", choosing(x, choice).shape)


def convolution() -> None:
    X = image([0, 1, 2], [3, 4, 5], [6, 7, 8])
    conv2d = filled(nn.Conv2d(1, 1, kernel_size=2), [0.0, 1.0, 2.0, 3.0], [0.0])
    show("X", X)
    show("filter", conv2d.weight)
    show("conv2d(X) = 0 * 0 + 1 * 1 + 3 * 2 + 4 * 3, ...", conv2d(X))
    X = torch.rand(8, 8).to(DEVICE)
    conv2d = nn.Conv2d(in_channels=1, out_channels=1, kernel_size=3, padding=1).to(DEVICE)
    show("Conv2d(1, 1, kernel_size=3, padding=1) of 8 x 8", comp_conv2d(conv2d, X).shape)
    conv2d = nn.Conv2d(in_channels=1, out_channels=1, kernel_size=(5, 3), padding=(2, 1)).to(DEVICE)
    show("Conv2d(1, 1, kernel_size=(5, 3), padding=(2, 1))", comp_conv2d(conv2d, X).shape)
    conv2d = nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2).to(DEVICE)
    show("Conv2d(4, 8, 3, stride=2, padding=2, dilation=2)", conv2d(torch.rand(1, 4, 8, 8).to(DEVICE)).shape)
    conv2d = nn.Conv2d(4, 8, 3, groups=4, bias=False).to(DEVICE)
    show("Conv2d(4, 8, 3, groups=4, bias=False), weight", conv2d.weight.shape)


def output_sizes() -> None:
    print("    without dilation   H_out = floor((H + 2P - F) / S) + 1")
    print("    with dilation D    H_out = floor((H + 2P - D(F - 1) - 1) / S) + 1\n")
    print("      H   F   S      P   D   formula   layer")
    geometries: list[tuple[int, int, int, int | str, int]] = [
        (32, 5, 1, 0, 1), (28, 2, 2, 0, 1), (224, 11, 4, 2, 1), (27, 5, 1, 2, 1), (8, 3, 1, "valid", 1), (8, 3, 1, "same", 1),
        (8, 3, 1, 0, 2), (8, 3, 2, 2, 2), (8, 3, 1, "same", 2),
    ]  # fmt: skip
    for height, kernel, stride, padding, dilation in geometries:
        formula, _ = nn.conv_output_size(height, kernel, stride, padding, dilation)
        conv2d = nn.Conv2d(1, 1, kernel, stride, padding, dilation).to(DEVICE)
        layer = conv2d(torch.zeros(1, 1, height, height, device=DEVICE)).shape[2]
        print(f"    {height:3}  {kernel:2}  {stride:2}  {padding!s:>5}  {dilation:2}  {formula:8}  {layer:6}")


def bilinear_upsampling() -> None:
    corners = image([1, 2], [4, 8])
    (q11, q21), (q12, q22) = corners[0, 0].tolist()
    up = nn.interpolate(corners, size=(4, 4), mode="bilinear", align_corners=True)

    def f(x: float, y: float) -> float:
        """Interpolate between the corners, at 0 and 1: first along x, at the top and at the bottom, then along y."""
        top, bottom = (1 - x) * q11 + x * q21, (1 - x) * q12 + x * q22
        return (1 - y) * top + y * bottom

    by_hand = tensor(*([f(x / 3, y / 3) for x in range(4)] for y in range(4)))
    show("corners Q11 Q21, Q12 Q22", corners)
    show("f(x, y) = (1 - y) f(x, y1) + y f(x, y2), by hand", by_hand)
    show("interpolate(corners, size=(4, 4), mode='bilinear', align_corners=True)", up)
    show("equal up to rounding", bool((up[0, 0] - by_hand).abs().max() < 1e-6))
    layer = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    show("Upsample(scale_factor=2, mode='bilinear', align_corners=True) is equal", torch.equal(layer(corners), up))


def transposed_convolution() -> None:
    X = image([1, 2], [3, 4])
    layer = filled(nn.ConvTranspose2d(1, 1, 2, stride=2, bias=False), [1.0, 10.0, 100.0, 1000.0])
    show("X", X)
    show("filter", layer.weight)
    show("ConvTranspose2d(1, 1, 2, stride=2)(X)", layer(X))
    show("conv_transpose_output_size(2, 2, stride=2)", nn.conv_transpose_output_size(2, 2, stride=2))
    show("the inverse: conv_output_size(4, 2, stride=2)", nn.conv_output_size(4, 2, stride=2))


def pooling() -> None:
    X = image([1, 2, 5, 0], [3, 4, 1, 2], [9, 6, 0, 0], [8, 5, 0, 8])
    show("X", X)
    show("MaxPool2d(2)(X)", nn.MaxPool2d(2)(X))
    show("AvgPool2d(2)(X)", nn.AvgPool2d(2)(X))


def normalisation() -> None:
    X = image([1, 2], [3, 6])
    layer = nn.BatchNorm2d(1).to(DEVICE)
    show("X, with mean 3 and variance 3.5", X)
    show("BatchNorm2d(1)(X) = (X - mean) / sqrt(variance + eps)", layer(X))
    show("running_mean: momentum 0.1 from 0 to the mean", layer.running_mean)
    show("running_var: from 1 to the unbiased variance", layer.running_var)
    show("in evaluation: with the running statistics", layer.eval()(X))


def activation() -> None:
    x = tensor(-2, -1, 0, 1, 2).requires_grad_()
    y = nn.ReLU()(x)
    y.backward(torch.ones_like(y))
    show("x", x)
    show("ReLU()(x)", y)
    show("x.grad", x.grad)


def fully_connected() -> None:
    layer = filled(nn.Linear(2, 3), [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [10.0, 20.0, 30.0])
    show("weight", layer.weight)
    show("bias", layer.bias)
    show("Linear(2, 3)(tensor([[1., 2.], [3., 4.]])) = x W^T + b", layer(tensor([1, 2], [3, 4])))


def model(network: torch.nn.Module, size: tuple[int, ...]) -> None:
    """Print the layers of a network in the order of execution, with the output size and the parameters of each."""
    network = network.to(DEVICE).eval()

    def line(name: str, module: torch.nn.Module, output: Tensor) -> None:
        print(f"    {name:16} {type(module).__name__:20} {text(output.shape):20} {count(module):>12}".rstrip())

    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, _, output, name=name: line(name, module, output))
    print(f"    {'image':37} {text(size)}")
    with torch.no_grad():
        network(torch.rand(size).to(DEVICE))
    print(f"    {'all parameters':58} {count(network):>12}")


def count(module: torch.nn.Module) -> str:
    """The number of parameters; empty if there are none."""
    total = sum(parameter.numel() for parameter in module.parameters())
    return f"{total:,}" if total else ""


def initialisers() -> None:
    """Apply each function of torch.nn.init to the weight of a convolution, or of a linear layer if it requires two axes."""
    arguments: dict[str, dict[str, float]] = {"constant": {"val": 0.3}, "sparse": {"sparsity": 0.5}}
    print(f"    {'torch.nn.init':30} {'shape':16} {'mean':>8} {'std':>8} {'min':>8} {'max':>8}")
    for name, scheme in SCHEMES.items():
        size = (64, 64) if name in ("eye", "sparse") else (32, 16, 3, 3)
        given = ", ".join(f", {key}={value}" for key, value in arguments.get(name, {}).items())
        w = torch.empty(size)
        scheme(w, **arguments.get(name, {}))
        figures = " ".join(f"{float(figure):8.4f}" for figure in (w.mean(), w.std(correction=0), w.min(), w.max()))
        print(f"    {f'{name}_(weight{given})':30} {text(size):16} {figures}")
    print()
    show("calculate_gain('relu'), the factor in kaiming_*", round(init.calculate_gain("relu"), 4))


def single_layers() -> None:
    conv = nn.Conv2d(1, 3, 3)
    linear = nn.Linear(10, 1)
    init.kaiming_normal_(conv.weight)
    show("init.kaiming_normal_(conv.weight), 3 x 1 x 3 x 3", conv.weight[0, 0])
    init.constant_(linear.weight, 0.3)
    show("init.constant_(linear.weight, 0.3), 1 x 10", linear.weight[0, :4])


def a_wrapper() -> None:
    network = LeNet()
    show("init_weights(LeNet(), 'xavier_uniform', seed=0)", init_weights(network, "xavier_uniform", seed=0))
    print()
    schemes: dict[Any, Any] = {
        torch.nn.Conv2d: partial(init.kaiming_normal_, nonlinearity="relu"),
        torch.nn.Linear: "orthogonal",
        "linear3": partial(init.normal_, std=0.01),
        "linear3.bias": partial(init.constant_, val=0.1),
    }
    print("    init_weights(LeNet(), {")
    print("        torch.nn.Conv2d: partial(init.kaiming_normal_, nonlinearity='relu'),")
    print("        torch.nn.Linear: 'orthogonal',")
    print("        'linear3': partial(init.normal_, std=0.01),")
    print("        'linear3.bias': partial(init.constant_, val=0.1),")
    show("}, seed=0)", init_weights(network, schemes, seed=0))
    again = LeNet()
    init_weights(again, schemes, seed=0)
    same = all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    show("the same seed gives the same weights", same)


SECTIONS: list[tuple[str, str, Callable[[], None]]] = [
    ("2.3.1", "A network: MLP", a_network),
    ("2.3.2 1)", "A layer without parameters: MyLayer, x - mean(x)", layers_without_parameters),
    ("2.3.2 2)", "Layers with parameters: MyListDense, MyDictDense", layers_with_parameters),
    ("2.3.2 3)", "Convolution: cross-correlation and a bias", convolution),
    ("2.3.2 3) c.", "The size of the output", output_sizes),
    ("2.3.2 4) a.", "Bilinear upsampling", bilinear_upsampling),
    ("2.3.2 4) b.", "Transposed convolution", transposed_convolution),
    ("2.3.2 5)", "Pooling", pooling),
    ("2.3.2 6)", "Normalisation", normalisation),
    ("2.3.2 7)", "Activation", activation),
    ("2.3.2 8)", "Fully connected layer", fully_connected),
    ("2.3.3 1)", "LeNet", lambda: model(LeNet(), (1, 1, 32, 32))),
    ("2.3.3 2)", "AlexNet", lambda: model(AlexNet(), (1, 3, 224, 224))),
    ("2.4.1", "The functions of torch.nn.init", initialisers),
    ("2.4.2", "Initialising single layers", single_layers),
    ("2.4.3", "A wrapper for a whole model: init_weights", a_wrapper),
]


def main() -> None:
    for number, title, print_section in SECTIONS:
        print(f"{number}  {title}\n")
        torch.manual_seed(0)
        print_section()
        print()


if __name__ == "__main__":
    main()
