"""Import torch, Triton and trinn in every order, each in a process without a GPU: `python -m tests.support.import_orders`.

It prints, as JSON, a traceback for each order, empty if the order succeeds. Importing torch takes the most time, so one
process imports it, and a fork of this process runs each order.
"""

import functools
import itertools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

# Actions that may import Triton before trinn does.
FIRST = {
    "nothing": "pass",
    "Triton": "import triton",
    "an optimizer": "torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)",
    "torch.compile": "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2))",
    "torch.export": "torch.export.export(torch.nn.ReLU(), (torch.ones(2),))",
    "FlopCounterMode": "from torch.utils.flop_counter import FlopCounterMode",
    "Inductor": "import torch._inductor",
}
# Programs with the action, {}, before or after the import of trinn.
TEMPLATES = {"before trinn": "import torch; {}; import trinn", "after trinn": "import torch, trinn; {}"}


def in_a_process(function: Callable[[], object]) -> str:
    """The traceback of `function` in a fork of this process; empty if it succeeds."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        with os.fdopen(write_end, "w") as pipe:
            try:
                function()
            except BaseException:
                traceback.print_exc(file=pipe)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        found = pipe.read()
    return found if os.waitpid(child, 0)[1] == 0 else f"{found} and ended with an error"


def compute() -> None:
    """Check that a converted network has torch's outputs and gradients."""
    import torch

    import trinn

    torch.manual_seed(0)
    layers = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()
    model, x = torch.nn.Sequential(*layers, torch.nn.Linear(12, 4)), torch.randn(2, 2, 6, 6)
    expected = [y := model(x), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]
    with warnings.catch_warnings(record=True) as warned:
        trinn.convert(model)
    got = [y := model(x), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]
    assert isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction) and not warned, (
        "torch computed the outputs, or trinn warned"
    )
    torch.testing.assert_close(got, expected)


def in_order(*steps: str) -> None:
    """Run these imports in order, compute after each, and assert that trinn does not warn."""
    with warnings.catch_warnings(record=True) as warned:
        for step in steps:
            exec(step)
            compute()
    assert not [w for w in warned if "trinn" in str(w.message)]


def too_late(first: str, reason: str) -> None:
    """Assert that the import of trinn and `convert` warn with the reason, and that the first layer raises it."""
    exec(first)
    import torch

    words = f"since {reason}; set TRITON_INTERPRET=1 before trinn is imported"
    with warnings.catch_warnings(record=True) as warned:
        import trinn.layers
    assert [words in str(w.message) for w in warned] == [True], warned
    with warnings.catch_warnings(record=True) as warned:
        trinn.convert(torch.nn.Linear(1, 1, device="meta"))
        assert not warned, "a warning for a model on the meta device"
        trinn.convert(torch.nn.BatchNorm2d(1))
    assert [words in str(w.message) for w in warned] == [True], warned
    try:
        trinn.layers.relu(torch.ones(3))
    except RuntimeError as error:
        assert words in str(error), error
    else:
        raise AssertionError("the layer did not raise")


def orders() -> dict[str, Callable[[], None]]:
    no, yes = ('import os, triton; os.environ["TRITON_INTERPRET"] = ' + value for value in ('"0"', '"1"'))
    in_use = "import triton; triton.runtime.driver.set_active(object())"
    return {
        f"{name} {when}": functools.partial(in_order, order.format(first))
        for (when, order), (name, first) in itertools.product(TEMPLATES.items(), FIRST.items())
    } | {
        "after trinn.layers": lambda: in_order("import torch, trinn.layers", *FIRST.values()),
        "TRITON_INTERPRET=0": lambda: too_late(no, "TRITON_INTERPRET=0 is set"),
        "Triton in use": lambda: too_late(in_use, "Triton has compiled for another device already"),
        "Triton in use, TRITON_INTERPRET=1": lambda: in_order(f"{in_use}; {yes}"),
    }


def main(names: Sequence[str] = ()) -> None:
    """Run the named orders, or all."""
    found = {"Triton before torch": in_a_process(lambda: in_order("import triton, torch, trinn"))}
    import torch

    assert "triton" not in sys.modules and not torch.cuda.is_available()
    print(json.dumps(found | {name: in_a_process(order) for name, order in orders().items() if name in (names or orders())}))


if __name__ == "__main__":
    main()
