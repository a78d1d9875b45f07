"""Train LeNet on handwritten digits with trinn's kernels: python examples/train_digits.py

The data are the 1,797 digits in scikit-learn (E. Alpaydin and C. Kaynak, Optical recognition of handwritten digits, UCI, 1998),
enlarged from 8x8 to LeNet's 32x32 by bilinear upsampling. A stratified fifth of them is held out from training. Every layer
runs as a Triton kernel, forward and backward: on a GPU if there is one, else in Triton's interpreter. Loss and optimizer are
torch's.

The script writes digits.png, a figure of the training and its result, and lenet-digits.pt, weights for the same network in
plain torch.nn.
"""

import os
import sys

# The interpreter's matrix products are so small that several threads would be slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if __name__ == "__main__":  # before the imports, since they take seconds: Ctrl-C during them also prints one line

    def end_in_one_line(kind, error, traceback):
        if kind is not KeyboardInterrupt:
            return sys.__excepthook__(kind, error, traceback)
        print("interrupted", file=sys.stderr)
        raise SystemExit(130)

    sys.excepthook = end_in_one_line

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import trinn
import trinn.layers
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.models import LeNet

DEVICE = "cpu" if INTERPRETED else "cuda"
WHERE = "Triton's interpreter on the CPU" if INTERPRETED else f"Triton on {torch.cuda.get_device_name()}"

SMOOTHING = 0.1  # the targets are 0.91 for the correct digit and 0.01 for each other digit
LEAST_LOSS = -0.91 * math.log(0.91) - 9 * 0.01 * math.log(0.01)

INK, GREY, LIGHT, BLUE, RED = "#1f2328", "#68707a", "#d5dae0", "#1f6fb5", "#d1352b"


class Digits(NamedTuple):
    """Images (N, 1, 32, 32) from -1 (paper) to 1 (ink), and labels (N)."""

    images: Tensor
    labels: Tensor


@dataclass
class History:
    """Records of a training: loss and accuracy of each step, accuracy on held-out digits after each epoch, and seconds."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: float = 0.0


def digits(seed: int, limit: int | None) -> tuple[Digits, Digits]:
    """The training digits, and the held-out fifth."""
    data = load_digits()
    images = torch.tensor(data.images[:limit], dtype=torch.float32, device=DEVICE).unsqueeze(1)
    images = trinn.layers.Upsample(size=32, mode="bilinear")(images) / 8 - 1
    labels = data.target[:limit]
    parts = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    training, held_out = (Digits(images[part], torch.tensor(labels[part], device=DEVICE)) for part in parts)
    return training, held_out


def train(network: LeNet, training: Digits, held_out: Digits, epochs: int, batch: int, console: Console) -> History:
    """Train with Adam, a one-cycle learning rate and smoothed labels."""
    history, began = History(), time.perf_counter()
    steps = math.ceil(len(training.labels) / batch)
    quarters = {math.ceil(steps * quarter / 4) for quarter in (1, 2, 3)} - {steps}

    def named(epoch: int) -> str:
        return f"epoch {epoch:{len(str(epochs))}}/{epochs}"

    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * steps, cycle_momentum=False)
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=epochs * steps, epoch=1, state="")
        for epoch in range(1, epochs + 1):
            for step, chosen in enumerate(torch.randperm(len(training.labels)).to(DEVICE).split(batch), 1):
                logits, labels = network(training.images[chosen]), training.labels[chosen]
                loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                history.losses.append(loss.item())
                history.accuracies.append(accuracy(logits, labels))
                recent = percent(mean(history.accuracies[-steps:]))
                state = f"loss {history.losses[-1]:.3f}   training {recent}"
                progress.update(bar, advance=1, epoch=epoch, state=state)
                history.seconds = time.perf_counter() - began
                if not console.is_terminal and step in quarters:  # no progress bar in a pipe
                    console.print(
                        f"{named(epoch)}   step {step:{len(str(steps))}}/{steps}   {state}   {history.seconds:4.0f} s"
                    )
            history.held_out.append(accuracy(predict(network, held_out.images), held_out.labels))
            history.seconds = time.perf_counter() - began
            console.print(
                f"{named(epoch)}   loss {mean(history.losses[-steps:]):.3f}   training {recent:>7}   "
                f"held out {percent(history.held_out[-1]):>7}   {history.seconds:4.0f} s"
            )
    return history


@torch.no_grad()
def predict(network: LeNet, images: Tensor) -> Tensor:
    """Logits (N, 10)."""
    return network(images)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def picture(history: History, images: Tensor, logits: Tensor, labels: Tensor, subtitle: str) -> Figure:
    """A figure: training curves, confusion matrix of the held-out digits, and the hardest of these digits."""
    figure: Any = Figure(figsize=(10, 7.8), dpi=160)
    figure.text(0.07, 0.943, "LeNet reads handwritten digits", fontsize=18, weight="bold", color=INK)
    figure.text(0.07, 0.911, subtitle, fontsize=10, color=GREY)
    loss, accuracy = figure.add_gridspec(2, 1, left=0.07, right=0.46, top=0.83, bottom=0.36, hspace=0.36).subplots(sharex=True)
    confusion = figure.add_gridspec(1, 1, left=0.56, right=0.97, top=0.83, bottom=0.36).subplots()
    strip = figure.add_gridspec(2, 16, left=0.07, right=0.97, top=0.24, bottom=0.04, wspace=0.12, hspace=0.3).subplots()
    draw_history(loss, accuracy, history)
    draw_confusion(confusion, logits.argmax(1), labels)
    draw_hardest(strip.ravel(), images, logits, labels)
    return figure


def draw_history(loss: Axes, accuracy: Axes, history: History) -> None:
    epochs = len(history.held_out)
    epoch = np.linspace(0, epochs, len(history.losses) + 1)[1:]
    caption(loss, "Loss")
    loss.plot(epoch, history.losses, color=LIGHT, linewidth=1)
    loss.plot(epoch, running_mean(history.losses), color=INK, linewidth=1.5)
    loss.axhline(LEAST_LOSS, color=GREY, linewidth=0.8, dashes=(4, 3))
    loss.text(epochs, LEAST_LOSS - 0.08, "minimum for smoothed labels", color=GREY, fontsize=8, ha="right", va="top")
    loss.set(xlim=(0, epochs), ylim=(-0.03, max(2.5, *history.losses)), yticks=(0, 1, 2))
    caption(accuracy, "Accuracy")
    accuracy.plot(epoch, running_mean(history.accuracies), color=INK, linewidth=1.5)
    accuracy.plot(range(1, epochs + 1), history.held_out, color=BLUE, linewidth=1.5, marker="o", markersize=4.5, clip_on=False)
    accuracy.text(epochs, 0.19, f"held out {percent(history.held_out[-1])}", color=BLUE, fontsize=9, ha="right")
    last_epoch = history.accuracies[-len(history.accuracies) // epochs :]
    accuracy.text(epochs, 0.06, f"training {percent(mean(last_epoch))}", color=INK, fontsize=9, ha="right")
    accuracy.set(ylim=(-0.01, 1.02), yticks=(0, 0.5, 1), xlabel="epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    for axes in (loss, accuracy):
        axes.grid(axis="y", color=LIGHT, linewidth=0.5)


def draw_confusion(axes: Axes, read: Tensor, truth: Tensor) -> None:
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (truth.numpy(), read.numpy()), 1)
    caption(axes, "Held-out digits")
    for (row, column), count in np.ndenumerate(counts):
        color = (BLUE if row == column else RED) if count else LIGHT
        strength = (0.35 if row == column else 0.15) * bool(count)
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=color, alpha=strength, linewidth=0))
        axes.text(column, row, str(count) if count else "·", color=color, ha="center", va="center_baseline", fontsize=10)
    axes.set(xlim=(-0.5, 9.5), ylim=(9.5, -0.5), xticks=range(10), yticks=range(10), xlabel="read as", ylabel="written")


def draw_hardest(strip: Any, images: Tensor, logits: Tensor, truth: Tensor) -> None:
    """Draw the misread digits, then the digits with the lowest confidence."""
    read, certainty = logits.argmax(1), logits.softmax(1).amax(1)
    wrong = read != truth
    order = (certainty + 2.0 * ~wrong).argsort().tolist()
    mistakes = int(wrong.sum())
    shown = min(mistakes, len(strip))
    heading = "No mistake" if mistakes == 0 else f"{shown} of {mistakes} mistakes" if shown < mistakes else "The mistakes"
    caption(strip[0], heading + ("" if shown == len(strip) else ", and the digits with the lowest confidence"))
    for axes in strip:
        axes.set_axis_off()
    for axes, i in zip(strip, order, strict=False):  # there may be fewer digits than axes
        axes.imshow(images[i, 0], cmap="Greys", vmin=-1, vmax=1)
        label, color, frame = (f"{truth[i]} as {read[i]}", RED, RED) if wrong[i] else (str(int(read[i])), INK, LIGHT)
        axes.text(15.5, 34, label, color=color, fontsize=9, ha="center", va="top")
        axes.add_patch(Rectangle((-0.5, -0.5), 32, 32, fill=False, edgecolor=frame, linewidth=1.2, clip_on=False))


def caption(axes: Axes, heading: str) -> None:
    """Set the heading, and remove the frame and the ticks."""
    axes.set_title(heading, loc="left", fontsize=11, weight="bold", color=INK, pad=9)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=GREY)
    axes.xaxis.label.set(color=GREY, fontsize=9)
    axes.yaxis.label.set(color=GREY, fontsize=9)


def running_mean(values: list[float], width: int = 9) -> np.ndarray:
    """The mean of the `width` values around each value; fewer values at the ends."""
    window = np.ones(min(width, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write to a temporary file, and rename it to `path` when it is complete."""
    part = path.with_stem(path.stem + ".part")
    try:
        save(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train LeNet on handwritten digits with trinn's kernels.")
    parser.add_argument("--epochs", type=positive, default=4 if INTERPRETED else 20, help="default: %(default)s")
    parser.add_argument("--batch", type=positive, default=40, help="digits per step; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the output folder; default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the split, the initial weights and the order; default: %(default)s"
    )
    parser.add_argument("--limit", type=positive, help=argparse.SUPPRESS)
    options = parser.parse_args()

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{WHERE}, trinn {trinn.__version__}, torch {torch.__version__}, triton {version('triton')}")
    torch.manual_seed(options.seed)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # no TF32, so that the logits of torch.nn and trinn are comparable
    training, held_out = digits(options.seed, options.limit)
    console.print(f"{len(training.labels)} digits to train on, {len(held_out.labels)} held out")

    network = trinn.convert(LeNet().to(DEVICE), fuse=LeNet.RUNS)
    history = train(network, training, held_out, options.epochs, options.batch, console)
    logits = predict(network, held_out.images)
    right = int((logits.argmax(1) == held_out.labels).sum())
    result = f"{percent(right / len(logits))} of the held-out digits read right, {right} of {len(logits)}"
    console.print(f"{result}, after {history.seconds:.0f} s")

    options.out.mkdir(parents=True, exist_ok=True)
    weights, drawing = options.out / "lenet-digits.pt", options.out / "digits.png"
    write(weights, lambda part: torch.save(network.state_dict(), part))
    twin = LeNet(nn=torch.nn).to(DEVICE)
    twin.load_state_dict(torch.load(weights, weights_only=True))
    torchs = predict(twin, held_out.images)
    same = int((torchs.argmax(1) == logits.argmax(1)).sum())
    console.print(
        f"{weights}: plain torch.nn loads it and reads {same} of {len(logits)} digits the same; "
        f"largest difference of a logit: {(torchs - logits).abs().max():.1e}"
    )
    subtitle = f"{result}, after {history.seconds:.0f} s of training; {WHERE}"
    figure = picture(history, held_out.images.cpu(), logits.cpu(), held_out.labels.cpu(), subtitle)
    write(drawing, figure.savefig)
    console.print(f"{drawing}: training curves and confusion matrix")


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


if __name__ == "__main__":
    main()
