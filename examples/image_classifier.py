"""Train a small convolutional network on handwritten digits: the loop most projects start from.

    python examples/image_classifier.py
    python examples/image_classifier.py --epochs 20 --lr 0.005 --out digits.safetensors

AdamW with a warmed-up cosine schedule, no weight decay on biases and norms, label smoothing, a
running average of the weights for evaluation, and a table of which digit is taken for which. The
1797 images of 8 by 8 pixels come with scikit-learn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import steprule as optim
from steprule.schedules import cosine

try:  # rich is a convenience, not a dependency
    from rich.progress import track
except ImportError:

    def track(sequence: Sequence[Any], **_: Any) -> Sequence[Any]:
        """Do without a progress bar."""
        return sequence


def make_model() -> nn.Module:
    """Make 10,000 weights: two convolutions and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),  # unlike BatchNorm it has no statistics that an average would miss
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 4 * 4, 10),
    )


def load_data(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels: the first three quarters to train on, the rest to test on.

    The split is not shuffled: neighbours are often of one hand, and would be on both sides of it.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device)[:, None] / 8 - 1
    labels = torch.tensor(digits.target, device=device)
    cut = len(labels) * 3 // 4
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the most likely class of each image."""
    model.eval()
    classes = model(images).argmax(dim=1)
    model.train()
    return classes


def confusion(predicted: Tensor, labels: Tensor) -> str:
    """Return a table: a row for each true digit, a column for each predicted one."""
    counts = torch.zeros(10, 10, dtype=torch.int64)
    ones = torch.ones(len(labels), dtype=torch.int64)
    counts.index_put_((labels.cpu(), predicted.cpu()), ones, accumulate=True)
    lines = ["true   " + "".join(f"{digit:>4}" for digit in range(10))]
    for digit, row in enumerate(counts.tolist()):
        lines.append(f"{digit:>4} | " + "".join(f"{n or '.':>4}" for n in row))
    return "\n".join(lines)


def positive(text: str) -> int:
    """Read a whole number above 0; argparse names the option that has another."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def new_file(text: str) -> Path:
    """Read the name of a file to write; that its folder is missing is said before the training."""
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return Path(text)


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak of the schedule")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="save the averaged weights to this file")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    images, labels, test_images, test_labels = load_data(args.device)
    model = make_model().to(args.device)

    # A schedule is a function of the step, so the optimizer can follow it by itself: there is no
    # scheduler object to step, and none to forget in a checkpoint.
    steps_per_epoch = -(-len(labels) // args.batch_size)
    steps = args.epochs * steps_per_epoch
    warmup = min(steps_per_epoch, steps // 10)
    lr = cosine(args.lr, 0, steps=steps - warmup).warmup(warmup)

    # Decaying a bias or the scale of a norm towards 0 regularises nothing and costs accuracy.
    groups = optim.param_groups(model, lr=lr, weight_decay=0.05)
    print(groups)
    optimizer = optim.AdamW(groups, ema_decay=0.98)

    # Smoothed labels: the network need not become ever more certain of what it gets right already.
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(args.epochs):
        total = torch.zeros((), device=args.device)
        order = torch.randperm(len(labels)).to(args.device).split(args.batch_size)
        for rows in track(order, description=f"epoch {epoch + 1}", disable=not sys.stdout.isatty()):
            optimizer.zero_grad()
            loss = criterion(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)  # .item() would wait for a GPU at every batch
        accuracy = (predict(model, test_images) == test_labels).float().mean()
        with optimizer.averaged():  # the average is usually better, and never jumps
            averaged = (predict(model, test_images) == test_labels).float().mean()
        print(
            f"epoch {epoch + 1:2}: loss {total / len(labels):.4f}, "
            f"test accuracy {accuracy:.1%}, of the averaged weights {averaged:.1%}"
        )

    with optimizer.averaged():
        predicted = predict(model, test_images)
        if args.out:
            optim.save_training(args.out, model=model)
            print(f"saved {args.out}")
    print(confusion(predicted, test_labels))
    print(f"test accuracy: {(predicted == test_labels).float().mean():.4f}")


if __name__ == "__main__":
    main()
