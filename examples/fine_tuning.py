"""Fine-tune a network on a task with few examples: frozen at first, then layer by layer.

    python examples/fine_tuning.py
    python examples/fine_tuning.py --shots 5 --layer-decay 0.5

A network learns the digits 0 to 4 from all their images. Then it gets a new head and ten images of
each of 5 to 9. The head is trained alone until it makes sense; then the layers below are added to
the same optimizer, the deeper the slower. Beside it, a new network learns from these ten alone. How
much the first digits bring differs from seed to seed: try several.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import steprule as optim
from steprule.schedules import cosine


class Classifier(nn.Module):
    """Blocks with numbers in their names, by which layer decay tells how deep they are."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, stride=stride),
                nn.GroupNorm(4, after),
                nn.GELU(),
            )
            for before, after, stride in ((1, width, 1), (width, width, 2), (width, 2 * width, 2))
        )
        self.head = nn.Linear(2 * width * 2 * 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of the classes."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1))


def load_data(digits: range, device: str) -> tuple[Tensor, Tensor]:
    """Return images of these digits, and which of them each is, counted from 0."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=device)[:, None] / 8 - 1
    labels = torch.tensor(data.target, device=device) - digits.start
    chosen = (labels >= 0) & (labels < len(digits))
    return images[chosen], labels[chosen]


def train(
    model: nn.Module, optimizer: optim.Optimizer, data: tuple[Tensor, Tensor], steps: int
) -> None:
    """Take so many steps on batches of at most 64."""
    images, labels = data
    for _ in range(steps):
        rows = torch.randint(len(labels), (min(64, len(labels)),)).to(labels.device)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of images that are classified rightly."""
    return (model(data[0]).argmax(dim=1) == data[1]).float().mean().item()


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
    """Pretrain, fine-tune, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=positive, default=100, help="of each training on few images"
    )
    parser.add_argument("--pretraining-steps", type=positive, default=200)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--layer-decay", type=float, default=0.6)
    parser.add_argument("--shots", type=positive, default=10, help="images of each new digit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="save the fine-tuned weights to this file")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    # 1. Pretraining, on the digits of which there are many images.
    model = Classifier(classes=5).to(args.device)
    old = load_data(range(5), args.device)
    groups = optim.param_groups(
        model, lr=cosine(args.lr, 0, steps=args.pretraining_steps), weight_decay=0.05
    )
    train(model, optim.AdamW(groups), old, args.pretraining_steps)
    print(f"pretrained on 0 to 4: {accuracy(model, old):.1%} of its training images")

    # 2. A few images of each new digit; all others are for the test.
    images, labels = load_data(range(5, 10), args.device)
    fewest = int(labels.bincount().min())
    if args.shots >= fewest:
        parser.error(f"--shots: {fewest - 1} at most, for one image of each digit is for the test")
    few = torch.cat([(labels == digit).nonzero()[: args.shots, 0] for digit in range(5)])
    rest = torch.ones(len(labels), dtype=torch.bool, device=args.device).index_fill_(0, few, False)
    new, test = (images[few], labels[few]), (images[rest], labels[rest])

    # 3. A new head. Its gradients are noise at first, which would ruin the layers below: freeze.
    model.head = nn.Linear(model.head.in_features, 5).to(args.device)
    model.blocks.requires_grad_(False)
    head_steps = args.steps * 2 // 5
    optimizer = optim.AdamW(optim.param_groups(model, lr=args.lr, weight_decay=0.05))
    train(model, optimizer, new, head_steps)
    print(f"the head alone, {head_steps} steps: {accuracy(model, test):.1%} of 5 to 9")

    # 4. Thaw. Early layers find strokes, which all digits have, and need the least change. The lr
    # of a layer is lr * layer_decay ** (how far it is from the head). The head keeps its averages:
    # only what the optimizer does not have yet is added.
    model.blocks.requires_grad_(True)
    groups = optim.param_groups(model, lr=args.lr, weight_decay=0.05, layer_decay=args.layer_decay)
    print(groups)
    known = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for group in groups:
        if not known.intersection(map(id, group["params"])):
            optimizer.add_param_group(group)
    train(model, optimizer, new, args.steps - head_steps)
    tuned = accuracy(model, test)

    # 5. What the pretraining was worth.
    scratch = Classifier(classes=5).to(args.device)
    groups = optim.param_groups(scratch, lr=args.lr, weight_decay=0.05)
    train(scratch, optim.AdamW(groups), new, args.steps)
    print(f"accuracy from scratch: {accuracy(scratch, test):.4f}")
    print(f"accuracy fine-tuned: {tuned:.4f}")
    if args.out:
        optim.save_training(args.out, model=model, optimizer=optimizer)
        print(f"saved {args.out}")


if __name__ == "__main__":
    main()
