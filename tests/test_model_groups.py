"""``param_groups`` and ``build_optimizer``, beside groups written by hand for three models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import steprule
from steprule import build_optimizer, param_groups
from steprule.model_groups.depth import depths_of
from steprule.model_groups.named import named_params
from steprule.schedules import cosine


# ---- three models --------------------------------------------------------------------------------
class Block(nn.Module):
    """A layer of a transformer, with the normalisation before each part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, width: int = 8, words: int = 13, layers: int = 3) -> None:
        super().__init__()
        self.wte = nn.Embedding(words, width)
        self.wpe = nn.Parameter(torch.randn(6, width) / 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.wte(words) + self.wpe
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))

    def loss(self) -> torch.Tensor:
        words = torch.arange(12).reshape(2, 6) % 13
        return nn.functional.cross_entropy(self(words).flatten(0, 1), words.flatten())


class Residual(nn.Module):
    def __init__(self, channels: int, narrower: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrower, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(narrower, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn1(self.conv1(x)) + self.downsample(x))


class ConvNet(nn.Module):
    """Stages of residual blocks, named as in torchvision's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Residual(4, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(8, 4))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))

    def loss(self) -> torch.Tensor:
        x = torch.linspace(-1, 1, 4 * 36).reshape(4, 1, 6, 6).sin()
        return nn.functional.cross_entropy(self(x), torch.arange(4) % 3)


class Scale(nn.Module):
    """A gain of each feature, and a temperature of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma / self.temperature


class Autoencoder(nn.Module):
    """Decodes by the matrices that it encodes with, in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])
        self.scale = Scale(4)
        self.decoder = nn.ParameterList([self.encoder[1].weight, self.encoder[0].weight])
        self.shift = nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = x
        for layer in self.encoder:
            code = torch.tanh(layer(code))
        code = self.scale(code)
        for weight in self.decoder:
            code = code @ weight
        return code + self.shift

    def loss(self) -> torch.Tensor:
        x = torch.linspace(-1, 1, 24).reshape(4, 6)
        return ((self(x) - x) ** 2).mean()


# ---- groups by hand ------------------------------------------------------------------------------
Groups = list[dict[str, Any]]


def transformer_by_hand(model: Any) -> Groups:
    """Decay by the layer (the ends are 0 and 4), and none of weights for biases and norms."""
    groups: Groups = [
        {"params": [model.wpe, model.wte.weight], "lr": 0.01 * 0.5**4, "weight_decay": 0.1}
    ]
    for depth, block in enumerate(model.blocks, start=1):
        lr = 0.01 * 0.5 ** (4 - depth)
        decays = [p for p in block.parameters() if p.ndim > 1]
        rest = [p for p in block.parameters() if p.ndim == 1]
        groups += [
            {"params": rest, "lr": lr, "weight_decay": 0.0},
            {"params": decays, "lr": lr, "weight_decay": 0.1},
        ]
    last = list(model.ln_f.parameters())
    return [*groups, {"params": last, "lr": 0.01, "weight_decay": 0.0}]


def conv_net_by_hand(model: Any) -> Groups:
    """Ten times the lr for the head; the stem is frozen."""
    blocks = [*model.layer1, *model.layer2]
    convs = [p for block in blocks for p in block.parameters() if p.ndim == 4]
    norms = [p for block in blocks for p in block.parameters() if p.ndim == 1]
    return [
        {"params": convs, "lr": 0.01, "weight_decay": 0.1},
        {"params": norms, "lr": 0.01, "weight_decay": 0.0},
        {"params": [model.fc.weight], "lr": 0.1, "weight_decay": 0.1},
        {"params": [model.fc.bias], "lr": 0.1, "weight_decay": 0.0},
    ]


def autoencoder_by_hand(model: Any) -> Groups:
    """No weight decay for what has one axis at most."""
    return [
        {"params": [p for p in model.parameters() if p.ndim <= 1], "lr": 0.01, "weight_decay": 0.0},
        {"params": [layer.weight for layer in model.encoder], "lr": 0.01, "weight_decay": 0.1},
    ]


def conv_net() -> ConvNet:
    model = ConvNet()
    for module in (model.conv1, model.bn1):
        module.requires_grad_(False)
    return model


Case = tuple[Callable[[], Any], Callable[[Any], Groups], dict[str, Any]]
CASES: dict[str, Case] = {
    "transformer": (Transformer, transformer_by_hand, {"layer_decay": 0.5}),
    "conv-net": (conv_net, conv_net_by_hand, {"lr_scale": {"fc.*": 10}}),
    "tied": (Autoencoder, autoencoder_by_hand, {"no_decay": "1d"}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for each other most of the time in nets so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build()


def trained(model: Any, optimizer: Any) -> list[torch.Tensor]:
    for _ in range(5):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def pair(group: dict[str, Any]) -> tuple[list[str], list[torch.Tensor]]:
    return group["param_names"], group["params"]


def as_sets(groups: Any) -> set[tuple[frozenset[int], float, float]]:
    return {
        (frozenset(map(id, group["params"])), group["lr"], group["weight_decay"])
        for group in groups
    }


@pytest.mark.parametrize("library", [steprule, torch.optim], ids=["steprule", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_groups_and_steps_are_those_of_groups_by_hand(name: str, library: Any) -> None:
    build, by_hand, options = CASES[name]
    model, other = made(build), made(build)
    groups = param_groups(model, lr=0.01, weight_decay=0.1, **options)
    assert as_sets(groups) == as_sets(by_hand(model))
    mine = trained(model, library.AdamW(groups))
    theirs = trained(other, library.AdamW(by_hand(other)))
    # Each parameter is updated by itself, in whatever group or order it stands.
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_every_trainable_parameter_is_there_once_with_its_first_name(name: str) -> None:
    model = made(CASES[name][0])
    groups = param_groups(model, lr=0.01, **CASES[name][2])
    named = {n: p for group in groups for n, p in zip(*pair(group), strict=True)}
    expected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(named)
    assert {n: id(p) for n, p in named.items()} == {n: id(p) for n, p in expected.items()}
    assert len({group["name"] for group in groups}) == len(groups)
    assert steprule.AdamW(groups).param_groups[0]["param_names"] == groups[0]["param_names"]


def test_the_table_shows_what_went_where() -> None:
    model = made(Transformer)
    model.wpe.requires_grad_(False)
    text = str(param_groups(model, weight_decay=0.1))
    assert text.splitlines()[0].split() == ["group", "name", "weight_decay", "tensors", "elements"]
    assert text.splitlines()[1].split() == ["0", "decay", "0.1", "13", "1,640"]
    assert "blocks.{0-2}.mlp.{0,2}.weight" in text
    assert "frozen: 1 tensor, 48 elements: wpe" in text
    assert "tied: lm_head.weight is wte.weight" in text
    assert "2 groups, 39 tensors, 1,920 elements" in text
    assert max(map(len, text.splitlines())) <= 110
    for line in str(param_groups(made(Autoencoder))).splitlines()[-2:]:
        assert line.startswith("tied: decoder.")


def test_groups_that_differ_by_depth_alone_are_one_row() -> None:
    groups = param_groups(made(Transformer), lr=1.0, layer_decay=0.5)
    lines = [line.split() for line in str(groups).splitlines() if line[0].isdigit()]
    assert [line[:4] for line in lines[:-1]] == [
        ["0", "layer_0.decay", "0.0625", "0.0625"],
        ["1,3,5", "layer_{1-3}.no_decay", "0.125..0.5", "0.125..0.5"],
        ["2,4,6", "layer_{1-3}.decay", "0.125..0.5", "0.125..0.5"],
        ["7", "layer_4.no_decay", "1", "1"],
    ]
    assert "blocks.{0-2}.attn.in_proj_weight" in str(groups)
    assert lines[-1][:2] == ["8", "groups,"]


def test_the_list_is_a_list() -> None:
    groups = param_groups(made(Autoencoder), lr=0.1)
    for twin in (copy.deepcopy(groups), pickle.loads(pickle.dumps(groups)), copy.copy(groups)):
        assert str(twin) == str(groups)
    groups.append({"params": [torch.ones(2, requires_grad=True)], "param_names": ["mine"]})
    assert "mine" in str(groups)
    assert len(steprule.AdamW(groups).param_groups) == 3


# ---- kinds and patterns --------------------------------------------------------------------------
class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class NormedLinear(nn.Module):
    """Named for a norm, but a layer with a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


def test_what_counts_as_a_norm_and_as_a_bias() -> None:
    model = nn.ModuleDict(
        {
            "a": LlamaRMSNorm(),
            "b": NormedLinear(),
            "c": nn.LayerNorm((2, 4)),
            "post_norm": Scale(4),
            "d": nn.LSTM(2, 2),
            "e": nn.GroupNorm(2, 4),
            "f": nn.InstanceNorm1d(4, affine=True),
            "g": Scale(4),
        }
    )
    groups = param_groups(model, weight_decay=1.0)
    exempt = {n for group in groups if not group["weight_decay"] for n in group["param_names"]}
    assert exempt == {
        "a.weight",
        "c.weight",
        "c.bias",
        "post_norm.gamma",
        "post_norm.temperature",
        "d.bias_ih_l0",
        "d.bias_hh_l0",
        "e.weight",
        "e.bias",
        "f.weight",
        "f.bias",
    }


def test_a_pattern_is_of_the_whole_name_or_of_its_last_part() -> None:
    model = made(Transformer)

    def scaled(pattern: str) -> set[str]:
        groups = param_groups(model, lr=1.0, lr_scale={pattern: 2})
        return {n for group in groups if group["lr"] == 2.0 for n in group["param_names"]}

    assert scaled("wpe") == {"wpe"}
    assert scaled("in_proj_weight") == {f"blocks.{i}.attn.in_proj_weight" for i in range(3)}
    assert scaled("blocks.[01].ln_?.weight") == {
        f"blocks.{i}.ln_{k}.weight" for i in (0, 1) for k in (1, 2)
    }
    assert scaled("blocks.1.*") == {n for n, _ in model.named_parameters() if ".1." in n[:9]}
    assert {"bias", "blocks.0.ln_1.bias"} & scaled("bias") == {"blocks.0.ln_1.bias"}
    both = param_groups(model, lr=1.0, lr_scale={"wpe": 2, "w*": 5})
    assert {g["lr_factor"] for g in both} == {1.0, 5.0, 10.0}


def test_frozen_parameters_are_no_reason_to_refuse_their_pattern() -> None:
    model = conv_net()
    groups = param_groups(model, lr=1.0, lr_scale={"conv1.*": 2})
    assert {group["lr"] for group in groups} == {1.0}
    assert "note: lr_scale: 'conv1.*' matches frozen parameters alone" in str(groups)


def test_names_are_those_of_the_model_within_its_wrapper() -> None:
    class Compiled(nn.Module):  # as torch.compile wraps it
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

    model = made(ConvNet)
    plain = param_groups(model, lr=1.0, lr_scale={"fc.*": 2})
    wrapped = param_groups(nn.DataParallel(Compiled(model)), lr=1.0, lr_scale={"fc.*": 2})
    assert str(wrapped) == str(plain)


def test_what_wraps_a_module_within_is_left_out_of_names() -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module, name: str) -> None:
            super().__init__()
            self.add_module(name, module)

    plain = str(param_groups(made(Transformer), lr=1.0, layer_decay=0.5))
    model = made(Transformer)
    model.blocks[0] = Wrapped(model.blocks[0], "_orig_mod")
    model.blocks[1].mlp = Wrapped(model.blocks[1].mlp, "_checkpoint_wrapped_module")
    model.blocks[2] = Wrapped(Wrapped(model.blocks[2], "_fsdp_wrapped_module"), "_orig_mod")
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert str(param_groups(averaged, lr=1.0, layer_decay=0.5)) == plain
    # A module of the model's own keeps its name.
    own = param_groups(nn.ModuleDict({"module": nn.Linear(2, 2)}))
    assert own[0]["param_names"] == ["module.weight"]


def test_what_the_model_says_to_have_no_weight_decay_has_none() -> None:
    class Vit(Transformer):
        def no_weight_decay(self) -> set[str]:
            return {"wpe", "cls_token"}

    groups = param_groups(made(Vit), weight_decay=0.1)
    assert "wpe" in {n for g in groups if not g["weight_decay"] for n in g["param_names"]}
    assert "note: no weight decay, as the model's no_weight_decay() says: wpe" in str(groups)


def test_a_schedule_is_scaled_for_each_group() -> None:
    model, lr = made(ConvNet), cosine(0.1, 0, steps=10)
    optimizer = steprule.SGD(param_groups(model, lr=lr, lr_scale={"fc.*": 10}))
    trained(model, optimizer)
    assert {group["lr"] for group in optimizer.param_groups} == {lr(5), lr(5) * 10}


# ---- depth ---------------------------------------------------------------------------------------
def depths(model: nn.Module) -> dict[str, int]:
    return dict(depths_of(model, named_params(model), None).by_name)


def weights(model: nn.Module) -> dict[str, int]:
    found = {name.removesuffix(".weight"): depth for name, depth in depths(model).items()}
    return {name: depth for name, depth in found.items() if not name.endswith("bias")}


def layers(names: list[str], count: int) -> dict[str, nn.Module]:
    return {name: nn.ModuleList(nn.Linear(2, 2) for _ in range(count)) for name in names}


def test_depths_go_by_numbered_layers() -> None:
    found = depths(made(ConvNet))
    assert found["conv1.weight"] == found["bn1.bias"] == 0
    assert found["layer1.0.conv1.weight"] == found["layer1.0.downsample.1.weight"] == 1
    assert found["layer1.1.bn1.weight"] == 2
    assert found["layer2.0.conv1.weight"] == 3
    assert found["fc.weight"] == 4
    plain = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2))
    assert depths(plain) == {
        **dict.fromkeys(["0.weight", "0.bias", "1.weight", "1.bias"], 1),
        **dict.fromkeys(["3.weight", "3.bias"], 2),
    }


class Parts(nn.Module):
    """A model of these parts, in this order."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_what_is_round_the_layers_is_told_by_its_place() -> None:
    model = Parts(
        {
            "heads": nn.ModuleList([nn.Linear(2, 2)]),  # before the layers: no head
            "fc1": nn.Linear(2, 2),
            "patch_embed": nn.Sequential(nn.Linear(2, 2)),
            **layers(["encoder"], 2),
            "decoder_embed": nn.Linear(2, 2),
            "mixer": nn.Linear(2, 2),
            "aux_head": nn.Linear(2, 2),
            **layers(["decoder"], 2),
            "norm": nn.LayerNorm(2),
            "positions": nn.Embedding(2, 2),
            "bbox_embed": nn.Sequential(nn.Linear(2, 2)),
            "fc2": nn.Linear(2, 2),
        }
    )
    assert weights(model) == {
        "heads.0": 0,
        "fc1": 0,
        "patch_embed.0": 0,
        "encoder.0": 1,
        "encoder.1": 2,
        "decoder_embed": 2,  # between the rows: with the layer before it
        "mixer": 2,
        "aux_head": 5,
        "decoder.0": 3,
        "decoder.1": 4,
        "norm": 5,
        "positions": 0,
        "bbox_embed.0": 5,
        "fc2": 5,
    }


@pytest.mark.parametrize("is_head_first", [False, True])
def test_a_head_that_shares_the_embedding_is_at_0_whichever_comes_first(
    is_head_first: bool,
) -> None:
    parts = {"wte": nn.Embedding(3, 2), **layers(["h"], 2), "lm_head": nn.Linear(2, 3, bias=False)}
    parts["lm_head"].weight = parts["wte"].weight
    model = nn.ModuleDict(dict(reversed(parts.items())) if is_head_first else parts)
    assert weights(model) == {"lm_head" if is_head_first else "wte": 0, "h.0": 1, "h.1": 2}


class PreNormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.fc = nn.Linear(2, 2)


def test_a_layer_that_is_named_for_its_norm_is_a_layer() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList(PreNormBlock() for _ in range(3))})
    assert [weights(model)[f"blocks.{i}.fc"] for i in range(3)] == [1, 2, 3]


def tower(count: int) -> nn.Module:
    return nn.ModuleDict({"embed": nn.Embedding(2, 2), **layers(["blocks"], count)})


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: layers(["downsample_layers", "stages"], 3), "'downsample_layers' and 'stages'"),
        (lambda: {"visual": tower(3), "text": tower(2)}, "'visual.blocks' and 'text.blocks'"),
        (
            lambda: {"visual": nn.ModuleDict(layers(["blocks"], 3)), **layers(["blocks"], 2)},
            "'visual.blocks' and 'blocks'",
        ),
    ],
    ids=["interleaved", "towers", "alike"],
)
def test_rows_that_may_lie_side_by_side_are_asked_about(model: Any, names: str) -> None:
    with pytest.raises(ValueError, match=rf"rows of layers, {names}, .* pass layer_depth"):
        param_groups(nn.ModuleDict(model()), lr=1.0, layer_decay=0.5)


def test_rows_that_are_counted_one_after_the_other_are_said() -> None:
    model = nn.ModuleDict({"encoder": tower(2), "decoder": tower(2)})
    text = str(param_groups(model, lr=1.0, layer_decay=0.5))
    assert "note: rows of layers counted one after the other: encoder.blocks, decoder.blocks" in (
        text
    )
    assert weights(model)["decoder.blocks.1"] == 4
    assert "note" not in str(param_groups(made(ConvNet), lr=1.0, layer_decay=0.5))


def test_a_matcher_of_timms_says_the_depths() -> None:
    class Vit(Transformer):
        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            assert not coarse
            return {
                "stem": r"^wte|wpe",
                "blocks": [(r"^blocks\.(\d+)", None), (r"^ln_f", (99999,))],
            }

    found = depths(made(Vit))
    assert found["wpe"] == found["wte.weight"] == 0
    assert [found[f"blocks.{i}.ln_1.bias"] for i in range(3)] == [1, 2, 3]
    assert found["ln_f.weight"] == 3  # with the group before it
    model = made(Vit)
    model.group_matcher = lambda coarse: lambda name: 7 if "ln" in name else 2
    assert set(depths(model).values()) == {0, 1}


def test_a_function_says_the_depths_instead() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"no numbered layers .* pass layer_depth"):
        param_groups(model, lr=1.0, layer_decay=0.5)
    groups = param_groups(
        model, lr=1.0, layer_decay=0.5, layer_depth=lambda name: name.startswith("second") + 0
    )
    assert {g["name"]: g["lr"] for g in groups} == {
        "layer_0.decay": 0.5,
        "layer_0.no_decay": 0.5,
        "layer_1.decay": 1.0,
        "layer_1.no_decay": 1.0,
    }


# ---- several optimizers --------------------------------------------------------------------------
def test_rules_by_pattern_are_one_optimizer_of_several() -> None:
    model, other = made(Transformer), made(Transformer)
    groups = param_groups(
        model, lr=3e-3, weight_decay=0.1, lr_scale={"wpe": 2}, rule={"blocks.*": "muon"}
    )
    text = str(groups)
    assert "muon.decay" in text
    optimizer = build_optimizer(
        groups, "adamw", {"muon": {"lr": 0.02, "momentum": 0.9}}, clip_grad_norm=1.0
    )
    hidden = [p for p in other.blocks.parameters() if p.ndim == 2]
    plain = [p for p in other.parameters() if p.ndim == 1]
    by_hand = steprule.combine(
        steprule.AdamW(
            [
                {"params": [other.wpe], "lr": 6e-3, "weight_decay": 0.1},
                {"params": [other.wte.weight], "weight_decay": 0.1},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=3e-3,
        ),
        steprule.Muon(hidden, lr=0.02, momentum=0.9, weight_decay=0.1),
        clip_grad_norm=1.0,
    )
    torch.testing.assert_close(trained(model, optimizer), trained(other, by_hand), rtol=0, atol=0)
    assert {g["optimizer"] for g in optimizer.param_groups} == {"AdamW", "Muon"}
    assert all("optimizer" not in g for g in groups if g["name"].endswith("no_decay"))


def test_options_keep_what_sets_groups_apart() -> None:
    groups = param_groups(made(Transformer), lr=1.0, layer_decay=0.5, rule={"*.mlp.*": "lamb"})
    optimizer = build_optimizer(
        groups, steprule.SGD, {"sgd": {"lr": 0.1, "weight_decay": 0.2}, "LAMB": {"lr": 0.01}}
    )
    for group in optimizer.param_groups:
        rate = {"SGD": 0.1, "LAMB": 0.01}[group["optimizer"]]
        assert group["lr"] == rate * group["lr_factor"]
        decay = 0.2 if group["optimizer"] == "SGD" else 0.0
        assert group["weight_decay"] == (0.0 if "no_decay" in group["name"] else decay)


def test_groups_of_one_optimizer_make_that_one() -> None:
    class Mine(steprule.SGD):
        pass

    model = made(Autoencoder)
    assert type(build_optimizer(param_groups(model, lr=0.1))) is steprule.AdamW
    assert type(build_optimizer(param_groups(model, lr=0.1, rule={"*": Mine}), "lion")) is Mine
    assert type(build_optimizer([{"params": [model.shift]}], "sgd", {"sgd": {"lr": 1.0}})) is (
        steprule.SGD
    )


def test_groups_of_others_are_not_taken_in_silence() -> None:
    groups = param_groups(made(Transformer), lr=0.1, rule={"blocks.*": "muon"})
    with pytest.raises(ValueError, match=r"Muon is to update it, not AdamW: .*build_optimizer"):
        steprule.AdamW(groups)
    mine = {"params": [torch.ones(1, requires_grad=True)], "optimizer": "of the body"}
    assert steprule.SGD([mine], lr=0.1).param_groups[0]["optimizer"] == "of the body"


def test_a_group_of_an_optimizer_of_matrices_has_matrices_alone() -> None:
    groups = param_groups(made(ConvNet), lr=0.1, rule={"*": "muon"})
    (muon,) = [group for group in groups if group.get("optimizer") == "Muon"]
    assert muon["param_names"] == ["fc.weight"]
    assert "note: Muon updates embeddings, heads or scales" not in str(groups)
    assert "note: Muon leaves parameters of more than two axes" in str(groups)


def test_a_rule_may_have_options_and_those_of_matrices_take_convolutions_then() -> None:
    model = made(ConvNet)
    flat = ("muon", {"flatten": True, "momentum": 0.8})
    rule: Any = {"fc.*": "sgd", "layer1.*": flat, "layer2.*": ("muon", {"flatten": True})}
    groups = param_groups(model, lr=0.1, rule={**rule, "conv1.*": flat})
    names = {group["name"]: group["param_names"] for group in groups}
    assert "layer1.0.conv1.weight" in names["muon.decay"]
    assert "conv1.weight" in names["muon.decay"]
    assert "layer2.0.conv1.weight" in names["muon_2.decay"]
    optimizer = build_optimizer(groups, options={"muon": {"lr": 0.02}})
    momenta = {g["name"]: g["momentum"] for g in optimizer.param_groups if "muon" in g["name"]}
    assert momenta == {"muon.decay": 0.8, "muon_2.decay": 0.95}
    trained(model, optimizer)


def test_embeddings_and_heads_that_muon_takes_are_said() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(3, 2),
            **layers(["blocks"], 2),
            "last": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "lm_head": nn.Linear(2, 3),
        }
    )
    text = str(param_groups(model, rule={"*": "muon"}))
    said = " ".join(text[text.index("note:") :].split())
    expected = "embed.weight, last.parametrizations.weight.original0, lm_head.weight (name"
    assert f"better left to another rule: {expected}" in said


def test_one_axis_to_one_optimizer_and_the_rest_to_another() -> None:
    groups = param_groups(made(Transformer), rule={"1d": "adamw", "*": "mars"})
    by_rule = {g["optimizer"]: {p.ndim for p in g["params"]} for g in groups}
    assert by_rule == {"AdamW": {1}, "MARS": {2}}


def test_slices_and_sums_know_the_classes_and_two_of_one_name_are_refused() -> None:
    def of(base: Any) -> Any:
        return type("Mine", (base,), {})

    model, sgd = made(Autoencoder), of(steprule.SGD)
    groups = param_groups(model, lr=0.1, rule={"*": sgd})
    for same in (groups[:], groups[:1] + groups[1:], groups.copy()):
        assert type(build_optimizer(same)) is sgd
    with pytest.raises(ValueError, match=r"'Mine'.*slices and sums"):
        build_optimizer(list(groups))
    with pytest.raises(ValueError, match=r"rule: two different classes are named 'Mine'"):
        param_groups(model, rule={"encoder.0.*": sgd, "encoder.1.*": of(steprule.Lion)})
    other = param_groups(made(Autoencoder), lr=0.1, rule={"*": of(steprule.Lion)})
    with pytest.raises(ValueError, match=r"two different classes are named 'Mine'"):
        groups + other


def test_options_go_by_classes_too_and_decay_by_what_groups_say() -> None:
    groups = param_groups(made(Autoencoder), lr=0.1, weight_decay=0.0, rule={"encoder.*": "sgd"})
    optimizer = build_optimizer(
        groups, options={steprule.SGD: {"momentum": 0.5, "weight_decay": 0.1}}
    )
    found = {g["name"]: g["weight_decay"] for g in optimizer.param_groups}
    assert found == {"sgd.decay": 0.1, "sgd.no_decay": 0.0, "decay": 0.0}
    assert optimizer.param_groups[-1]["momentum"] == 0.5
    by_hand = {"params": [torch.ones(1, requires_grad=True)], "weight_decay": 0.0}
    same = build_optimizer([by_hand], "sgd", {"sgd": {"lr": 0.1, "weight_decay": 0.1}})
    assert same.param_groups[0]["weight_decay"] == 0.0


def test_a_depth_may_be_any_whole_number() -> None:
    groups = param_groups(
        made(Autoencoder), lr=1.0, layer_decay=0.5, layer_depth=lambda name: np.int64(1)
    )
    assert {g["lr"] for g in groups} == {1.0}


def test_lazy_modules_are_to_be_called_first() -> None:
    with pytest.raises(ValueError, match=r"model: '0\.weight' .* lazy module: call the model"):
        param_groups(nn.Sequential(nn.LazyLinear(3)))
