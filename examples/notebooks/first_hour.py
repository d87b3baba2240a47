# %% [markdown]
# # The first hour
#
# A tour on a small problem: groups of parameters, a schedule that is seen before it is used, training
# and watching it, what a nan does, and a run that goes on where it was stopped. It needs
# `pip install '.[cli]'` in a checkout, runs in ten seconds without a GPU, and every output below comes from
# the code above it.
#
# If you know `torch.optim`, you know most of it: `optimizer.step()`, `zero_grad()`, `param_groups` and
# `state_dict()` are what they were.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import steprule as optim
from steprule.schedules import cosine

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = slice(0, 1350), slice(1350, None)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


model = make_model()

# %% [markdown]
# ## See the schedule
#
# A learning rate may be a function of the step. It can be asked and drawn before anything is trained,
# and there is no scheduler to step: the optimizer counts its own steps.

# %%
EPOCHS = 6
steps_per_epoch = -(-1350 // 64)
steps = EPOCHS * steps_per_epoch
lr = cosine(0.01, 0, steps=steps - 20).warmup(20)
print(lr, [round(lr(step), 5) for step in (0, 10, 20, steps)])
lr.plot(steps)

# %% [markdown]
# ## Groups
#
# Weight decay is for matrices; biases and norms do better without. `param_groups` tells them apart and
# prints what went where.

# %%
groups = optim.param_groups(model, lr=lr, weight_decay=0.05)
groups

# %%
optimizer = optim.AdamW(groups, clip_grad_norm=1.0, ema_decay=0.95)
optimizer

# %% [markdown]
# ## Train, and watch
#
# `log_to` takes a TensorBoard writer, a run of Weights & Biases, or any function. Beside the lr it tells
# by how much each step changes the weights (`update_ratio`): about a thousandth is usual for Adam in large
# networks; small ones, as here, stand more.

# %%
history = {}
log = optim.log_to(lambda values, step: history.update({step: values}), optimizer, every=1)


def accuracy(model):
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


def train_epoch(model, optimizer):
    total = 0.0
    order = torch.randperm(1350)
    for rows in order.split(64):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows) / 1350
    return total


for epoch in range(EPOCHS):
    loss = train_epoch(model, optimizer)
    with optimizer.averaged():  # the weights are at their running average in this block
        averaged = accuracy(model)
    print(
        f"epoch {epoch + 1}: loss {loss:.3f}, accuracy {accuracy(model):.1%}, averaged {averaged:.1%}"
    )
log.remove()

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for name in ("decay", "no_decay"):
    ratios = [seen[f"optimizer/update_ratio/{name}"] for seen in history.values()]
    # The first step of a warm-up has an lr of 0.
    left.semilogy([*history][1:], ratios[1:], label=name)
left.set(xlabel="step", title="change of the weights in a step")
left.legend(frameon=False)
right.plot([*history], [seen["optimizer/grad_norm"] for seen in history.values()], color="#009e73")
right.axhline(1.0, color="0.5", linestyle="--", label="clipped above")
right.set(xlabel="step", title="norm of the gradients")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Where does it run?
#
# `explain()` says which engine updates each parameter, and why where it is not the fast one. A
# parameter whose memory has gaps, for one, is left to torch's operations:

# %%
odd = torch.zeros(100, 200)[:, ::2].requires_grad_()
odd.grad = torch.ones_like(odd)
print(optimizer.explain())
print(optim.AdamW([odd]).explain())

# %% [markdown]
# ## A nan
#
# One bad batch can ruin a run: a nan in a gradient goes into every average. `on_nonfinite="raise"` says
# where it came from, before anything has changed.

# %%
fragile = optim.AdamW(model.named_parameters(), lr=1e-3, on_nonfinite="raise")


def bad_batch():
    model.zero_grad()
    broken = images[:8].clone()
    broken[0, 0, 3, 3] = float("nan")
    functional.cross_entropy(model(broken), labels[:8]).backward()


bad_batch()
try:
    fragile.step()
except Exception as error:
    print(type(error).__name__, "-", error)

# %% [markdown]
# `"skip"` passes over such a step, counts it, and goes on:

# %%
patient = optim.AdamW(model.named_parameters(), lr=1e-3, on_nonfinite="skip")
before = model[0].weight.clone()
bad_batch()
patient.step()
print(patient.last_step)
assert torch.equal(model[0].weight, before)

# %% [markdown]
# ## Stop, and go on
#
# One file has the model, the optimizer with its schedule, and the states of the random generators. The
# run that goes on is the run that was not stopped, bit for bit.

# %%
half = EPOCHS // 2
model = make_model()
optimizer = optim.AdamW(optim.param_groups(model, lr=lr, weight_decay=0.05))
for _ in range(half):
    train_epoch(model, optimizer)
optim.save_training(
    "run.safetensors", model=model, optimizer=optimizer, step=half, random_state=True
)
for _ in range(half):
    train_epoch(model, optimizer)

# Tomorrow, in another process:
resumed = make_model()
again = optim.AdamW(optim.param_groups(resumed, lr=lr, weight_decay=0.05))
run = optim.load_training("run.safetensors", model=resumed, optimizer=again, random_state=True)
print(f"resumed after epoch {run.step}, lr {again.param_groups[0]['lr']:.5f}")
for _ in range(EPOCHS - run.step):
    train_epoch(resumed, again)

assert all(map(torch.equal, model.parameters(), resumed.parameters()))
print(f"the same to the last bit; accuracy {accuracy(resumed):.1%}")

# %% [markdown]
# ## Back to torch
#
# Nothing ties you to it: state dicts go both ways.

# %%
theirs = torch.optim.AdamW(optim.param_groups(resumed, lr=0.01))
theirs.load_state_dict(again.torch_state_dict())
print(theirs.state[resumed[0].weight]["step"], isinstance(again, torch.optim.Optimizer))

# %% [markdown]
# Next: `choosing_an_optimizer.ipynb`, and the scripts in `examples/`.
