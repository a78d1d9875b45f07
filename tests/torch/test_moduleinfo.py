"""trinn on torch's own module inputs (ModuleInfo).

trinn's and torch's modules have the same repr, load each other's state_dict strictly, and have the same outputs, gradients and
buffers in training and evaluation. Copies and pickles keep trinn's class.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trinn.layers as tnn
from tests.models.test_lenet import OnlyOurs
from tests.support.check import DEVICE, randn
from tests.support.torchs_material import ModuleErrorEnum, ModuleInfo, module_db

pytestmark = [pytest.mark.torchs_material, pytest.mark.usefixtures("full_float32")]

NAMES = [name for name in vars(tnn) if isinstance(getattr(tnn, name), type) and issubclass(getattr(tnn, name), nn.Module)]
MODULES: dict[str, ModuleInfo] = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls.__name__ in NAMES and info.module_cls.__module__.startswith("torch.nn.modules")
}


def made(name: str, training: bool) -> list[tuple[Any, nn.Module, nn.Module]]:
    """(input, torch's module, trinn's module) for each of torch's inputs."""
    torch.manual_seed(0)
    info = MODULES[name]
    inputs = info.module_inputs_func(info, device=DEVICE, dtype=torch.float32, requires_grad=True, training=training)
    modules = []
    for case in inputs:
        theirs, ours = (
            getattr(source, name)(*case.constructor_input.args, **case.constructor_input.kwargs).to(DEVICE).train(training)
            for source in (nn, tnn)
        )
        modules.append((case.forward_input, theirs, ours))
    return modules


def run(module: nn.Module, given: Any) -> dict[str, Any]:
    """The outputs, the gradients of inputs and parameters, and the state_dict after the call."""
    inputs = [a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in given.args]
    result = module(*inputs, **given.kwargs)
    outputs = result if isinstance(result, tuple) else (result,)
    leaves = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad] + list(module.parameters())
    roots = [y for y in outputs if y.requires_grad]
    gradients = torch.autograd.grad(roots, leaves, [randn(*y.shape, dtype=y.dtype, seed=1) for y in roots])
    return {"outputs": [y.detach() for y in outputs], "gradients": list(gradients), "state": dict(module.state_dict())}


def check_first_call(ours: nn.Module, theirs: nn.Module, given: Any) -> None:
    """Compare the first calls of lazy modules from the same seed; the calls create the parameters."""
    torch.manual_seed(1)
    with OnlyOurs():
        got = ours(*given.args, **given.kwargs)
    torch.manual_seed(1)
    torch.testing.assert_close(got, theirs(*given.args, **given.kwargs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_module(name: str, training: bool, record_property: Any) -> None:
    modules = made(name, training)
    for given, theirs, ours in modules:
        assert repr(ours) == repr(theirs)
        if name.startswith("Lazy"):
            check_first_call(ours, theirs, given)
            assert type(ours) is getattr(tnn, name.removeprefix("Lazy"))
        ours.load_state_dict(theirs.state_dict(), strict=True)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        again = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
        got = run(ours, given)
        torch.testing.assert_close(got, run(theirs, given), rtol=1e-4, atol=1e-5)
        for copied in again:
            assert type(copied) is type(ours)
            torch.testing.assert_close(run(copied, given), got, rtol=0, atol=0)
    record_property("torch's material", (f"nn.{name}", "training" if training else "evaluation", len(modules), len(modules), 0))


@pytest.mark.parametrize("name", [name for name, info in MODULES.items() if info.module_error_inputs_func is not None])
def test_errors(name: str, record_property: Any) -> None:
    info = MODULES[name]
    cases = info.module_error_inputs_func(info, device=DEVICE, dtype=torch.float32, requires_grad=True, training=True)
    for case in cases:
        given = case.module_error_input
        with pytest.raises(case.error_type, match=case.error_regex):
            module = getattr(tnn, name)(*given.constructor_input.args, **given.constructor_input.kwargs).to(DEVICE)
            assert case.error_on is ModuleErrorEnum.FORWARD_ERROR
            module(*given.forward_input.args, **given.forward_input.kwargs)
    record_property("torch's material", (f"nn.{name}", "errors", len(cases), len(cases), 0))
