"""The rule of check.py for networks: logits, gradients of all parameters, and weights after training."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.check import close, error

Optimizer = Callable[[Any], torch.optim.Optimizer]

# A step of Adam scales an error in a gradient by at most lr / eps: here 1. With the usual eps of 1e-8, pure rounding in a
# gradient near 0 would become a full step, in torch as well.
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-3),
}


def check_network(ours: nn.Module, torchs: nn.Module, images: Tensor) -> None:
    """Compare the logits and the gradients of all parameters with torch."""
    _check(passes, ours, torchs, images)


def check_deep_network(ours: nn.Module, torchs: nn.Module, batches: Sequence[Tensor]) -> None:
    """Compare the logits and the gradients of all parameters with torch, on most of the batches.

    With many small parameters, torch's error is tiny by chance in some gradients. So the rule compares the largest error of all
    gradients, each relative to its gradient's largest value. An activation may round to the other side of a ReLU's 0, in
    trinn or in torch, and change the gradients of all earlier layers. So one batch of three may fail.

    torch's error is the larger one with and without oneDNN: on a CPU they add in other orders.
    """
    torchs.load_state_dict(ours.state_dict(), strict=True)
    oracle = copy.deepcopy(torchs).cpu().double()
    failures = []
    for images in batches:
        true, expected, got = passes(oracle, images.cpu().double()), passes(torchs, images), passes(ours, images)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            with torch.backends.mkldnn.flags(enabled=False):
                without_onednn = passes(copy.deepcopy(torchs), images)
        logits, torchs_logits, true_logits = (results.pop("logits") for results in (got, expected, true))
        del without_onednn["logits"]
        size = {name: float(gradient.abs().max()) for name, gradient in true.items()}
        ours_error, *torchs_errors = (
            # Skip gradients of pure rounding: an error relative to their largest value has no meaning.
            max(error(results[name], true[name]) / size[name] for name in true if size[name] > 1e-12)
            for results in (got, expected, without_onednn)
        )
        torchs_error = max(torchs_errors)
        try:
            close(logits, torchs_logits, true_logits, error(torchs_logits, true_logits), "logits")
            assert ours_error <= 2 * torchs_error, f"gradients: error {ours_error:.2e}, torch's {torchs_error:.2e}"
        except AssertionError as failure:
            failures.append(str(failure))
    assert 2 * len(failures) < len(batches), "; ".join(failures)


def check_training(ours: nn.Module, torchs: nn.Module, batches: Sequence[Tensor], optimizer: Optimizer) -> None:
    """Compare the parameters after training with torch.

    The float64 oracle trains from the same weights, so the comparison includes the growth of errors over the steps, for
    trinn and torch alike.
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
    """`check_network` for logits and gradients computed elsewhere from the weights of `ours`."""
    _check(lambda network, images: found if network is ours else passes(network, images), ours, torchs, images)


def loss_of(logits: Tensor) -> Tensor:
    """Cross entropy with labels 0, 1, 2, ..., per pixel for images of logits; the mean square for a single channel."""
    if logits.shape[1] == 1:
        return logits.square().mean()
    labels = torch.arange(logits[:, 0].numel(), device=logits.device).view(logits[:, 0].shape)
    return F.cross_entropy(logits, labels % logits.shape[1])


def passes(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The logits, and the gradient of each parameter by name."""
    logits = network(images)
    names, parameters = zip(*network.named_parameters(), strict=True)
    return {"logits": logits.detach()} | dict(zip(names, torch.autograd.grad(loss_of(logits), parameters), strict=True))


def step(call: Callable[..., Any], model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients of the input and the parameters, and the buffers. Skip parameters without a gradient."""
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
