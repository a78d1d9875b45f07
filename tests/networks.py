"""The rule of check.py for whole networks: logits, all gradients, and weights after training."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.check import close, error

Optimizer = Callable[[Any], torch.optim.Optimizer]

# An error in a gradient is at most lr / eps times as large in a step of Adam: here, no larger than itself. With the usual eps,
# what is rounding alone in a gradient would be a step like any other, in torch as here.
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-3),
}


def check_network(ours: nn.Module, torchs: nn.Module, images: Tensor) -> None:
    """Assert that logits and the gradients of all parameters are torch's."""
    _check(passes, ours, torchs, images)


def check_deep_network(ours: nn.Module, torchs: nn.Module, batches: Sequence[Tensor]) -> None:
    """Assert that logits and the gradients of all parameters, these as one tensor, are torch's on most of the batches.

    With many parameters of a few elements, some error of torch's is small by chance: so what counts is the largest of all
    gradients' errors, each in units of the gradient's largest value. And where an activation rounds to the other side of a
    ReLU's 0, in ours or in torch's, everything before it has another gradient: so one batch of three may be worse.
    """
    torchs.load_state_dict(ours.state_dict(), strict=True)
    oracle = copy.deepcopy(torchs).cpu().double()
    said = []
    for images in batches:
        true, expected, got = passes(oracle, images.cpu().double()), passes(torchs, images), passes(ours, images)
        logits, torchs_logits, true_logits = (results.pop("logits") for results in (got, expected, true))
        size = {name: float(gradient.abs().max()) for name, gradient in true.items()}
        ours_error, torchs_error = (
            # A gradient that is 0 but for rounding has no units.
            max(error(results[name], true[name]) / size[name] for name in true if size[name] > 1e-12)
            for results in (got, expected)
        )
        try:
            close(logits, torchs_logits, true_logits, error(torchs_logits, true_logits), "logits")
            assert ours_error <= 2 * torchs_error, f"gradients: error {ours_error:.2e}, torch's {torchs_error:.2e}"
        except AssertionError as failure:
            said.append(str(failure))
    assert 2 * len(said) < len(batches), "; ".join(said)


def check_training(ours: nn.Module, torchs: nn.Module, batches: Sequence[Tensor], optimizer: Optimizer) -> None:
    """Assert that training ends at torch's parameters.

    The oracle is trained as well, in float64 from the same weights: what an error of one step does in the next ones counts,
    ours as torch's.
    """

    def train(network: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
        steps = optimizer(network.parameters())
        for images in batches:
            steps.zero_grad()
            loss_of(network(images)).backward()
            steps.step()
        return {name: parameter.detach() for name, parameter in network.named_parameters()}

    _check(train, ours, torchs, *batches)


def check_found(found: dict[str, Tensor], ours: nn.Module, torchs: nn.Module, images: Tensor) -> None:
    """`check_network` of logits and gradients that were found elsewhere, from the weights of ours."""
    _check(lambda network, images: found if network is ours else passes(network, images), ours, torchs, images)


def loss_of(logits: Tensor) -> Tensor:
    """Cross entropy of classes in turn, in each pixel where there are some; the mean square of what is no choice."""
    if logits.shape[1] == 1:
        return logits.square().mean()
    labels = torch.arange(logits[:, 0].numel(), device=logits.device).view(logits[:, 0].shape)
    return F.cross_entropy(logits, labels % logits.shape[1])


def passes(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The logits, and each parameter's gradient by its name."""
    logits = network(images)
    names, parameters = zip(*network.named_parameters(), strict=True)
    return {"logits": logits.detach()} | dict(zip(names, torch.autograd.grad(loss_of(logits), parameters), strict=True))


def step(call: Callable[..., Any], model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients of the input and of those parameters that have one, and the buffers."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = call(x)
    y.square().sum().backward()
    gradients = [p.grad.clone() for p in (x, *model.parameters()) if p.grad is not None]
    return [y.detach().clone(), *gradients, *(buffer.clone() for buffer in model.buffers())]


def _check(run: Callable[..., dict[str, Tensor]], ours: nn.Module, torchs: nn.Module, *batches: Tensor) -> None:
    torchs.load_state_dict(ours.state_dict(), strict=True)
    oracle = copy.deepcopy(torchs).cpu().double()
    true = run(oracle, *(images.cpu().double() for images in batches))
    expected, got = run(torchs, *batches), run(ours, *batches)
    for name in got:
        close(got[name], expected[name], true[name], error(expected[name], true[name]), name)
