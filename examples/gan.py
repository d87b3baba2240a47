"""Train a generator against a discriminator: two optimizers, two parts of one checkpoint.

    python examples/gan.py
    python examples/gan.py --steps 4000 --out gan.safetensors

The data are eight clusters on a ring, on which a GAN is seen to fail when it fails: points between
the clusters, or clusters left out. The distance between the distributions is measured as it falls.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import steprule as optim
from steprule.schedules import linear

CLUSTERS, NOISE = 8, 4


def real_points(count: int, device: str) -> Tensor:
    """Draw points of the data: eight Gaussians on a circle of radius 2."""
    angles = torch.randint(CLUSTERS, (count,)) * (2 * math.pi / CLUSTERS)
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return (centres + 0.1 * torch.randn(count, 2)).to(device)


def make_network(inputs: int, outputs: int) -> nn.Module:
    """Make the network that both players have."""
    return nn.Sequential(
        nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2),
        nn.Linear(128, outputs),
    )  # fmt: skip


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return sqrt(2 E|x - y| - E|x - x'| - E|y - y'|), which is 0 for equal distributions."""
    between = 2 * torch.cdist(x, y).mean()
    # The mean over pairs of different points: a point's distance to itself is no draw.
    within = sum(torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return max(0.0, float(between - within)) ** 0.5


def clusters_reached(points: Tensor) -> int:
    """Return on how many clusters at least a hundredth of the points lie."""
    angle = torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi / CLUSTERS)
    is_near = (points.norm(dim=1) - 2).abs() < 0.4
    cluster = angle.round().long()[is_near] % CLUSTERS
    return int((torch.bincount(cluster.cpu(), minlength=CLUSTERS) > len(points) / 100).sum())


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
    """Let them play, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=2000)
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=new_file, help="checkpoint to write at the end, both players in one file"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = make_network(NOISE, 2).to(args.device)
    discriminator = make_network(2, 1).to(args.device)

    # Each optimizer has its own network's parameters, so that the generator's step can't move the
    # discriminator, whatever gradients lie there. A low beta1: the opponent moves, and an average
    # over many old gradients would answer what it no longer does.
    lr = linear(args.lr, 0, steps=args.steps)
    generator_optimizer = optim.Adam(
        generator.parameters(), lr=lr, betas=(0.5, 0.99), ema_decay=0.995
    )
    discriminator_optimizer = optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.99))

    def generate(count: int) -> Tensor:
        return generator(torch.randn(count, NOISE).to(args.device))

    @torch.no_grad()
    def distance() -> tuple[float, int]:
        # Players circle round each other; the average of the generator's weights stands still.
        with generator_optimizer.averaged():
            points = generate(1000)
        return energy_distance(points, real_points(1000, args.device)), clusters_reached(points)

    for step in range(args.steps):
        if step % max(1, args.steps // 8) == 0:
            apart, reached = distance()
            print(f"step {step:5}: energy distance {apart:.4f}, {reached} of {CLUSTERS} clusters")
            if step == 0:
                start = apart

        # The discriminator: real points up, generated ones down. detach() keeps the backward pass
        # out of the generator, which is not to learn from this.
        real, fake = real_points(args.batch_size, args.device), generate(args.batch_size).detach()
        noise = 0.2 * torch.randn(2, *real.shape, device=args.device) * (1 - step / args.steps)
        loss = functional.softplus(-discriminator(real + noise[0])).mean()
        loss = loss + functional.softplus(discriminator(fake + noise[1])).mean()
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()

        # The generator: its points up. What gradients this leaves in the discriminator is cleared
        # before they are used.
        loss = functional.softplus(-discriminator(generate(args.batch_size))).mean()
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()

    if args.out:
        optim.save_training(
            args.out,
            model={"generator": generator, "discriminator": discriminator},
            optimizer={"generator": generator_optimizer, "discriminator": discriminator_optimizer},
            step=args.steps,
            random_state=True,
        )
        print(f"saved {args.out}")
    apart, reached = distance()
    print(f"clusters reached: {reached}")
    print(f"energy distance: {start:.4f} at first, {apart:.4f} at last")


if __name__ == "__main__":
    main()
