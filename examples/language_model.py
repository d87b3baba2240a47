"""Train a small transformer to write like the Python language reference, and survive being killed.

    python examples/language_model.py
    python examples/language_model.py --out run.safetensors           # kill it whenever you like …
    python examples/language_model.py --out run.safetensors --resume  # … and go on, bit for bit

The text, half a million characters, comes with Python itself (what `help()` shows of the language).
Warm-up and cosine, weight decay on matrices only, gradients accumulated over several batches and
clipped within the step, and a checkpoint every so often.
"""

import argparse
import math
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

import steprule as optim
from steprule.schedules import cosine

CONTEXT, WIDTH, LAYERS, HEADS, DROPOUT = 64, 96, 2, 4, 0.1
# Without the spaces that lay it out, of which there is much more than of letters.
WORDS = [word for name in sorted(topics) for word in topics[name].split()]
TEXT = " ".join(WORDS).encode("ascii", "replace")


class Block(nn.Module):
    """Attention to what came before, then two layers for each position by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add to x what attention and the two layers find."""
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + functional.dropout(self.mlp(self.mlp_norm(x)), DROPOUT, self.training)


class LanguageModel(nn.Module):
    """From the characters so far to scores for the next one."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)
        for embedding in (self.embed, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Return (batch, length, characters)."""
        x = self.embed(text) + self.position.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, windows: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats a character, of windows of CONTEXT + 1."""
        return functional.cross_entropy(
            self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
        )


def draw(data: Tensor, count: int, seed: int) -> Tensor:
    """Return random stretches of the text; the seed says which.

    A seed for each batch, where one stream of random numbers would have to be wound forward to the
    place where a resumed run goes on.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - CONTEXT, (count, 1), generator=generator)
    return data[(starts + torch.arange(CONTEXT + 1)).to(data.device)]


@torch.no_grad()
def evaluate(model: LanguageModel, data: Tensor) -> float:
    """Return bits a character on text that was not trained on."""
    model.eval()
    loss = model.loss(draw(data, 128, seed=0)).item()
    model.train()
    return loss / math.log(2)


@torch.no_grad()
def write(model: LanguageModel, start: Tensor, length: int, seed: int) -> Tensor:
    """Return text that goes on from a start, drawn character by character."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    text = start
    for _ in range(length):
        likely = model(text[None, -CONTEXT:])[0, -1].mul(1.4).softmax(dim=0).cpu()
        text = torch.cat([text, torch.multinomial(likely, 1, generator=generator).to(text.device)])
    model.train()
    return text[len(start) :]


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
    """Train, save, go on, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=300)
    parser.add_argument("--batch-size", type=positive, default=16, help="windows in a batch")
    parser.add_argument("--accumulate", type=positive, default=2, help="batches for one step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak of the schedule")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="checkpoint to write")
    parser.add_argument("--save-every", type=positive, default=50, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from --out if it is there")
    args = parser.parse_args()
    if args.resume and args.out is None:
        parser.error("--resume goes on from the checkpoint that --out names")

    torch.manual_seed(args.seed)
    alphabet, codes = torch.tensor(list(TEXT)).unique(return_inverse=True)
    train_data, test_data = codes.to(args.device).split(
        [len(codes) * 9 // 10, -(-len(codes) // 10)]
    )
    model = LanguageModel(len(alphabet)).to(args.device)

    # Adam's first steps are its most erratic ones, for its averages know little yet: warm up.
    warmup = args.steps // 10
    lr = cosine(args.lr, 0, steps=args.steps - warmup).warmup(warmup)
    # Rows of an embedding that a batch does not use have no gradient, but would decay all the same.
    no_decay = ("bias", "norm", "embed.*", "position.*")
    groups = optim.param_groups(model, lr=lr, weight_decay=0.1, no_decay=no_decay)
    print(groups)
    # Clipping is part of the step, and a step with a nan in its gradients is not taken at all.
    optimizer = optim.AdamW(groups, betas=(0.9, 0.95), clip_grad_norm=1.0, on_nonfinite="skip")

    first = 0
    if args.resume and not args.out.exists():
        print(f"there is no {args.out} yet: starting at step 0")
    elif args.resume:
        # The state of the random generators as well: dropout goes on with the numbers it would
        # have drawn. keep: the schedule is the one of this command's --lr and --steps, at the step
        # that the run had come to. By the saved one, a run that is made longer would train with 0.
        run = optim.load_training(
            args.out, model=model, optimizer=optimizer, random_state=True, keep=("lr",)
        )
        first = run.step
        print(f"resumed {args.out} at step {first} of {args.steps}, lr: {lr}")

    for step in range(first, args.steps):
        optimizer.zero_grad()
        for part in range(args.accumulate):
            seed = (args.seed * 1_000_000 + step) * args.accumulate + part
            # Divided, so that the sum of the gradients is that of one large batch.
            loss = model.loss(draw(train_data, args.batch_size, seed)) / args.accumulate
            loss.backward()
        optimizer.step()
        done = step + 1
        if done % args.save_every == 0 or done == args.steps:
            rate, norm = optimizer.param_groups[0]["lr"], optimizer.last_step.grad_norm
            bits = evaluate(model, test_data)
            print(f"step {done:4}: lr {rate:.2e}, gradient norm {norm:.3f}, {bits:.3f} bits")
            if args.out:
                optim.save_training(
                    args.out, model=model, optimizer=optimizer, step=done, random_state=True
                )
                print(f"saved {args.out} at step {done}", flush=True)

    written = write(model, test_data[:CONTEXT], length=200, seed=args.seed)
    print(bytes(alphabet[written.cpu()].tolist()).decode())
    # What a table of how often each character occurs would need, whatever came before.
    share = torch.bincount(codes) / len(codes)
    print(f"by frequencies alone: {-(share * share.log2()).sum():.3f} bits a character")
    print(f"test bits a character: {evaluate(model, test_data):.4f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print(
            "\ninterrupted: with --out FILE, the same command and --resume go on", file=sys.stderr
        )
        sys.exit(130)
