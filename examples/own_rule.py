"""Write an optimizer of your own in a few lines, check it, and train with it.

    python examples/own_rule.py
    python examples/own_rule.py --lr 0.1 --alpha 1.5

The rule is PowerSign (Bello et al., "Neural optimizer search with reinforcement learning", 2017),
which no library here has built in: steps are longer where the gradient agrees in sign with its
average, and shorter where it does not. A fused kernel, parameter groups, weight decay, schedules,
guards and state dicts come with it.
"""

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import steprule as optim
from steprule.ops import exp, log, sign
from steprule.schedules import linear


# The paper's formula: param and grad, then what is kept from step to step (it starts at 0); numbers
# by keyword. What is returned stands in the order of what was taken. The range makes beta=90 an
# error.
@optim.rule(ranges={"beta": optim.Range(0, 1)})
def power_sign(param, grad, exp_avg, *, lr, beta, alpha):
    """Multiply the gradient by alpha where it agrees with its average, divide it where not."""
    exp_avg = beta * exp_avg + (1 - beta) * grad
    factor = exp(log(alpha) * sign(grad) * sign(exp_avg))
    return param - lr * factor * grad, exp_avg


# Names and defaults of its options; betas=(b,) is what the rule calls beta.
# Every option that has no default here must be given to the class.
PowerSign = optim.make_optimizer(power_sign, lr=0.3, beta=0.9, alpha=math.e)


def plain_loop(param: Tensor, grads: list[Tensor], lr: float, beta: float, alpha: float) -> Tensor:
    """Do the same as a newcomer would write it, to check the rule against."""
    param, average = param.clone(), torch.zeros_like(param)
    for grad in grads:
        average = beta * average + (1 - beta) * grad
        param = param - lr * grad * alpha ** (grad.sign() * average.sign())
    return param


def check(alpha: float) -> float:
    """Return by how much five steps of the two differ, as a part of how far they went."""
    start, grads = torch.randn(1000), [torch.randn(1000) for _ in range(5)]
    param = start.clone().requires_grad_()
    optimizer = PowerSign([param], lr=0.1, alpha=alpha)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    expected = plain_loop(start, grads, 0.1, 0.9, alpha)
    return float((param.detach() - expected).abs().max() / (expected - start).abs().max())


def train(model: nn.Module, optimizer: optim.Optimizer, data: list[Tensor], epochs: int) -> float:
    """Train in batches of 64, return the accuracy on the rows that were left out."""
    images, labels = data
    cut = len(labels) * 3 // 4
    for _ in range(epochs):
        for rows in torch.randperm(cut).to(labels.device).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return (model(images[cut:]).argmax(dim=1) == labels[cut:]).float().mean().item()


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
    """Check the rule, look where it runs, train, save and load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--alpha", type=float, default=math.e, help="the paper's is e")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="save the run to this file")
    args = parser.parse_args()
    if not args.alpha > 0:
        parser.error(
            f"--alpha: must be above 0, for the rule takes its logarithm, got {args.alpha}"
        )
    torch.manual_seed(args.seed)

    # 1. Is it the formula? float32 has 7 digits, and the two round in different places.
    apart = check(args.alpha)
    print(f"against a plain loop: {apart:.1e} apart", "(the same)" if apart < 1e-5 else "(WRONG)")

    # 2. Train. Groups, decoupled weight decay, a schedule and clipping need no line in the rule.
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32, device=args.device) / 8 - 1
    data = [images, torch.tensor(digits.target, device=args.device)]
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)).to(args.device)
    steps = args.epochs * -(-(len(images) * 3 // 4) // 64)
    groups = optim.param_groups(model, lr=linear(args.lr, 0, steps=steps), weight_decay=0.01)
    options = {"alpha": args.alpha, "decoupled_weight_decay": True, "clip_grad_norm": 1.0}
    optimizer = PowerSign(groups, **options)
    accuracy = train(model, optimizer, data, args.epochs)

    # 3. Where does it run? "fused" is one compiled kernel for all parameters of a group.
    print(optimizer.explain())

    # 4. Its state is like any optimizer's: the slot has the name that the rule gives it.
    if args.out:
        optim.save_training(args.out, model=model, optimizer=optimizer)
        print(f"saved {args.out}")
    state = optimizer.state_dict()
    resumed = PowerSign(optim.param_groups(model, lr=args.lr, weight_decay=0.01), **options)
    resumed.load_state_dict(state)
    weight = model[0].weight
    same = torch.equal(resumed.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
    print("state is the same after loading" if same else "STATE DIFFERS")
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
