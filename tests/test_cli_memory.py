"""`steprule memory`: what state takes, told before any is allocated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import steprule
from steprule.cli import main
from steprule.cli.memory import memory_rows, params_of


class Model(nn.Module):
    """Made on the meta device by the command; its parameters must not take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(100, 50))
        self.fixed = nn.Parameter(torch.empty(100), requires_grad=False)
        assert self.weight.is_meta


def test_predicted_bytes_are_those_of_a_run() -> None:
    for name, options in (("adamw", {}), ("sgd", {"momentum": 0.9}), ("adafactor", {})):
        shapes = [torch.empty(100, 50, dtype=torch.bfloat16), torch.empty(7, dtype=torch.bfloat16)]
        cls = steprule.OPTIMIZERS[name]
        for row in memory_rows(shapes, cls, dict(options)):
            params = [torch.zeros_like(x).requires_grad_() for x in shapes]
            optimizer = cls(
                params,
                **options,
                state_format=row.state_format,
                param_rounding=row.param_rounding,
            )
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
            random = {
                entry["rounding_step"].element_size()
                for entry in optimizer.state.values()
                if "rounding_step" in entry
            }
            assert row.state == int(optimizer.state_bytes()), (row, random)
            assert row.total == row.state + 2 * 2 * 5007
            assert row.in_backward == row.state + 2 * 5007 + 2 * 5000


def test_goals_for_bytes_a_parameter() -> None:
    params = [torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta") for _ in range(40)]
    rows = {
        (row.state_format, row.param_rounding): row
        for row in memory_rows(params, steprule.Adam, {})
    }
    elements = 40 * 4096**2
    for state_format, most in (("float32", 8.0), ("bfloat16", 4.0), ("int8", 2.1), ("int4", 1.1)):
        assert rows[state_format, "nearest"].state / elements <= most + 1e-6
    for choice, (most, in_backward) in {
        ("int8", "split"): (8.2, 6.2),
        ("int8", "split24"): (7.2, 5.2),
        ("int4", "split24"): (6.2, 4.2),
    }.items():
        assert rows[choice].total / elements <= most
        assert rows[choice].in_backward / elements <= in_backward


def test_sources(tmp_path: Path) -> None:
    assert [tuple(p.shape) for p in params_of("3x4,2*5, 7")] == [(3, 4), (5,), (5,), (7,)]
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 2, dtype=torch.bfloat16), "ids": torch.zeros(4).int()}, path)
    (found,) = params_of(str(path))
    assert (tuple(found.shape), found.dtype, found.is_meta) == ((3, 2), torch.bfloat16, True)
    (weight,) = params_of(f"{__name__}:Model")
    assert tuple(weight.shape) == (100, 50)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "2*1000x100", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "AdamW, 2 tensors of 200,000 parameters in all, 400 kB of weights" in out
    assert "split24" in out
    row = next(line for line in out.splitlines() if line.split()[:2] == ["int8", "split"])
    assert row.split()[2:5] == ["4.02", "803", "kB"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["3xx"], "'3xx' is no shape"),
        (["nothing.safetensors"], "nothing.safetensors: "),
        (["torch.nn:Linear"], "torch.nn:Linear: TypeError: "),
        (["nowhere:model"], "nowhere:model: ModuleNotFoundError"),
        (["builtins:dict"], "builtins:dict returned dict, not a torch.nn.Module"),
        (["3", "--optimizer", "adm"], "unknown optimizer 'adm' (did you mean 'adam'?)"),
        (["3", "--optimizer", "lbfgs"], "LBFGS has no state that could be stored otherwise"),
        (["3", "--dtype", "int8"], "unknown dtype 'int8'; valid: float64"),
        (["3", "--options", "betas=3"], "betas must be 2 numbers"),
        (["3", "--options", "speed=3"], "speed"),
        (["3", "--options", "state_format=int8"], "state_format is what the rows"),
        (["3x0"], "3x0: no parameters there"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.count("\n") == 1
