"""Train LeNet on handwritten digits in several processes: torchrun --nproc-per-node 2 examples/train_ddp.py

Each process uses its own GPU, or Triton's interpreter on a machine without GPUs, and computes its share of every batch. torch's
DistributedDataParallel averages the gradients, so all processes have bitwise the same network. The digits are those of
examples/train_digits.py, and the last fifth of them is held out from training.
"""

import os

# The interpreter's matrix products are so small that several threads would be slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import trinn.layers
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.models import LeNet


def digits(device: torch.device, limit: int | None) -> tuple[TensorDataset, TensorDataset]:
    """The training digits and the held-out digits: images (N, 1, 32, 32) from -1 (paper) to 1 (ink), and labels (N)."""
    data = load_digits()
    small = torch.tensor(data.images[:limit], dtype=torch.float32, device=device).unsqueeze(1)
    images = trinn.layers.interpolate(small, size=32, mode="bilinear") / 8 - 1
    labels = torch.tensor(data.target[:limit], device=device)
    count = len(labels) * 4 // 5
    return TensorDataset(images[:count], labels[:count]), TensorDataset(images[count:], labels[count:])


def train(network: DistributedDataParallel, training: TensorDataset, epochs: int, batch: int) -> None:
    """Train with Adam. `batch` is the number of digits in a step, over all processes."""
    optimizer = torch.optim.Adam(network.parameters())
    sampler: DistributedSampler = DistributedSampler(training)
    shares = DataLoader(training, max(1, batch // distributed.get_world_size()), sampler=sampler)
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)  # a new random order
        losses = []
        for images, labels in shares:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        distributed.all_reduce(mean)
        say(f"epoch {epoch}/{epochs}   loss {mean.item() / distributed.get_world_size():.3f}")


@torch.no_grad()
def accuracy(network: DistributedDataParallel, held_out: TensorDataset) -> float:
    images, labels = held_out.tensors
    return (network(images).argmax(1) == labels).float().mean().item()


def same_everywhere(network: DistributedDataParallel) -> bool:
    """Whether all processes have bitwise the same weights."""
    weights = torch.cat([w.detach().flatten() for w in network.parameters()])
    all_weights: list[Tensor] = [torch.empty_like(weights) for _ in range(distributed.get_world_size())]
    distributed.all_gather(all_weights, weights)
    return all(torch.equal(weights, others) for others in all_weights)


def say(line: str) -> None:
    """Print a line, in the first process only."""
    if distributed.get_rank() == 0:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train LeNet on handwritten digits in several processes.")
    parser.add_argument("--epochs", type=int, default=4 if INTERPRETED else 20, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=40, help="digits per step, over all processes; default: %(default)s")
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:
        parser.error("start this script with torchrun --nproc-per-node 2 examples/train_ddp.py")

    device = torch.device("cpu") if INTERPRETED else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if INTERPRETED else "nccl")
    training, held_out = digits(device, options.limit)
    say(f"{distributed.get_world_size()} processes, {len(training)} digits to train on, {len(held_out)} held out")

    torch.manual_seed(0)
    network = DistributedDataParallel(LeNet().to(device))
    train(network, training, options.epochs, options.batch)
    say(f"{100 * accuracy(network, held_out):.1f} % of the held-out digits read right")
    say(f"the same weights in all processes: {'yes' if same_everywhere(network) else 'NO'}")
    if INTERPRETED:
        time.sleep(0.2)  # gloo's threads must release their buffers before Python exits; otherwise they abort the process
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
