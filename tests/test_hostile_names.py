"""Rules whose slots, options and functions are called as nobody should call them.

Each computes what it computes under harmless names, on every engine, or is refused when it is made:
nothing that a user writes as a name reaches the text of a kernel but behind a name of ours.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENGINES

import steprule
from steprule.engines.cpu.kernel_text import source_of
from steprule.engines.gpu.tiles import Variant
from steprule.engines.gpu.update_text import update_source
from steprule.engines.kernels.layout import Layout
from steprule.engines.kernels.printed_names import with_printed_names
from steprule.engines.rows.kernel_text import rows_source_of
from steprule.formats.floating import FLOATING
from steprule.formats.storage import ROUNDING_STEP
from steprule.language.averaging import AVERAGE, DECAY
from steprule.language.form import form_of
from steprule.language.names import _OF_FORMS, _OF_GROUPS, SUPPLIED
from steprule.language.rule import Slot
from steprule.optimizer.custom import _SHARED
from steprule.optimizer.scheduled import SCHEDULES, STEP
from steprule.planning.settings import KIND

PLAIN = {
    "slot": "buffer",
    "other": "square",
    "number": "total",
    "option": "rate",
    "part": "low",
    "pair": "bounds",
    "flag": "is_on",
}
# Names of all kinds: of Python, of LLVM and C, of the kernels' own language, and of our arguments.
_TEXT = """
eval exec print compile int64 float32 range load_float32 store_int64 call_native prefetch
control scalars tensor tensors start i at x0 s0 r0 s0_buffer in_step in_first previous
previous_step key word matrix_0 sum place tl words self cls args kwargs fn function rule closure
state defaults main malloc llvm memcpy update prepare reduce_0 param_value grad_address
buffer_value buffer_address buffer_scale square_key bounds_ value address β 名 fi source chunk
counts numbers groups optional float sqrt where mode flush_denormals False_ group_0 last_step
step_address independent momentum eps shared on grad_
"""
NAMES = _TEXT.split()


def function_of(names: dict[str, str]) -> Any:
    """The update under these names, which are the function's own in its signature alone."""

    def made(param: Any, grad: Any, slot: Any, other: Any, number: Any, **given: Any) -> Any:
        rate, low = given[names["option"]], given[names["part"]]
        slot = 0.5 * slot + rate * grad
        other = given["high"] * other + low * grad * grad
        number = number + rate
        used = slot if given[names["flag"]] else grad
        return param - given["lr"] * (used + 0.1 * other + 0.01 * number), slot, other, number

    class Unchecked(str):
        """A name that a signature takes without a look."""

        __slots__ = ()

        def isidentifier(self) -> bool:
            return True

    by_position, by_name = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    arrays = ["param", "grad", names["slot"], names["other"], names["number"]]
    numbers = ["lr", names["option"], names["part"], "high"]
    made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(inspect.Parameter(Unchecked(name), by_position) for name in arrays),
            *(inspect.Parameter(Unchecked(name), by_name) for name in numbers),
            inspect.Parameter(Unchecked(names["flag"]), by_name, annotation=bool),
        ]
    )
    return made


def rule_of(names: dict[str, str]) -> Any:
    parts = {names["pair"]: (names["part"], "high")}
    return steprule.rule(parts=parts, **{names["number"]: Slot(shape="scalar")})(function_of(names))


def trained(hostile: dict[str, str], engine: str, size: int = 5, **more: Any) -> list[torch.Tensor]:
    names = {**PLAIN, **hostile}
    cls = steprule.make_optimizer(rule_of(names), name="Made")
    params = [torch.linspace(-1, 1, 3 * size).reshape(size, 3).requires_grad_(), torch.ones(7)]
    params[1].requires_grad_()
    given = {names["option"]: 0.3, names["pair"]: (0.2, 0.7), names["flag"]: True}
    optimizer = cls(params, lr=0.1, engine=engine, **given, **more)
    for i in range(3):
        for param in params:
            param.grad = torch.full_like(param, 0.3 * i - 0.1)
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {engine}
    again = cls(params, lr=0.1, engine=engine, **given, **more)
    again.load_state_dict(optimizer.state_dict())
    keys = [names[role] for role in ("slot", "other", "number")]
    state = [again.state[param][key] for param in params for key in keys]
    return [*(param.detach() for param in params), *state]


def sources(names: dict[str, str]) -> list[str]:
    """The texts of kernels for a rule, for processors, rows and devices."""
    options = {"lr": 0.1, names["option"]: 0.3, names["pair"]: (0.2, 0.7), names["flag"]: True}
    stored = ("param", "grad", names["slot"], names["other"])
    layout = with_printed_names(
        Layout(
            form=form_of(rule_of(names), options),
            formats=tuple((name, FLOATING[torch.float32]) for name in stored),
            count_dtypes=((names["number"], "float32"),),
            compute="float32",
        )
    )
    return [source_of(layout), rows_source_of(layout), update_source(Variant(layout))]


def known_words() -> list[str]:
    """Every word in the texts for the rule under its harmless names."""
    return sorted({word for text in sources(PLAIN) for word in re.findall(r"[A-Za-z_]\w*", text)})


def is_refused(names: dict[str, str]) -> bool:
    """Whether no rule is made, with an error that is ours or Python's own of its arguments."""
    found = ""
    try:
        rule_of(names)
    except (TypeError, ValueError) as error:
        found = str(error)
    ours = "can be called", "must be", "may not take", "must take param"
    pythons = "multiple values", "duplicate parameter", "has no slot", "not a valid parameter name"
    assert not found or any(text in found for text in (*ours, *pythons)), found
    return bool(found)


def test_texts_depend_on_names_only_behind_ours() -> None:
    plain, refused = sources(PLAIN), set()
    harmless = {*PLAIN.values(), *SUPPLIED, "lr", "high", "param", "grad"}
    for name in {*known_words(), *NAMES} - harmless:
        for role in ("slot", "number", "option"):
            names = {**PLAIN, role: name}
            try:
                texts = sources(names)
            except (TypeError, ValueError):
                refused.add(name)
                assert is_refused(names)
                continue
            number = {"slot": "_s0_", "other": "_s1_", "number": "_s2_"}.get(role)
            shown = re.sub("[^A-Za-z0-9_]", "", name)
            if number is not None:
                was = number + PLAIN[role]
                texts = [re.sub(rf"{number}{shown}(?=_|\b)", was, text) for text in texts]
            assert texts == plain, (name, role)
    assert len(refused) < 100


def test_numbers_are_those_of_harmless_names() -> None:
    """Many at once: each name in some role."""
    plain = {engine: trained({}, engine) for engine in ENGINES}
    at_a_time = len(PLAIN)
    for first in range(0, len(NAMES), at_a_time):
        names = dict(zip(PLAIN, NAMES[first : first + at_a_time], strict=False))
        if is_refused({**PLAIN, **names}):
            continue
        for engine in ENGINES:
            if engine == "triton" and first % (4 * at_a_time):
                continue  # interpreted: some are enough
            found = trained(names, engine)
            assert all(map(torch.equal, found, plain[engine])), (names, engine)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("storing", ["int8", "int4", "bfloat16"])
def test_numbers_in_blocks_and_with_random_bits(engine: str, storing: str) -> None:
    """A column of `square` is called as a slot beside it could be."""
    names = {"slot": f"square_{storing}", "number": "word", "option": "place"}
    one, other = (trained(n, engine, size=5000, state_format=storing) for n in (names, {}))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("role", PLAIN)
@pytest.mark.parametrize(
    "name",
    [
        "x; import os",
        "x\n    store_int64(0, 0, 0)",
        "a b",
        "x)",
        "1x",
        "lambda",
        "None",
        "__class__",
        "_group",
        "ﬁ",  # Python writes it fi
        "ªb",
        "params",
        "schedules",
        "optimizer",
        "rounding_step",
        "clip_factor",
        "step",
    ],
)
def test_refused_when_the_rule_is_made(role: str, name: str) -> None:
    of_state = role in ("slot", "other", "number")
    if of_state and name in ("params", "schedules", "optimizer"):
        assert not is_refused({**PLAIN, role: name})  # a key of the state is none of a group
    elif role == "option" and name == "step":
        assert not is_refused({**PLAIN, role: name})  # it is what the rule is given
    else:
        with pytest.raises((ValueError, TypeError)):
            rule_of({**PLAIN, role: name})


def test_slots_called_as_an_argument_of_rule() -> None:
    for name in ("source", "elementwise", "counts_steps", "parts"):
        function = function_of({**PLAIN, "slot": name})
        with pytest.raises(TypeError, match=f"{name} must be "):
            steprule.rule(**{name: Slot()})(function)  # type: ignore[call-overload]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_functions_name_is_nothing_to_its_kernel(engine: str) -> None:
    plain = trained({}, engine)
    function = function_of(PLAIN)
    function.__name__ = function.__qualname__ = 'x"""\nimport os; os._exit(3)\n#'
    function.__doc__ = '"""\nimport os; os._exit(3)'
    rule = steprule.rule(parts={"bounds": ("low", "high")}, total=Slot(shape="scalar"))(function)
    cls = steprule.make_optimizer(rule, name="Made")
    params = [torch.linspace(-1, 1, 15).reshape(5, 3).requires_grad_()]
    optimizer = cls(params, lr=0.1, rate=0.3, bounds=(0.2, 0.7), is_on=True, engine=engine)
    for i in range(3):
        params[0].grad = torch.full_like(params[0], 0.3 * i - 0.1)
        optimizer.step()
    assert torch.equal(params[0].detach(), plain[0])


def test_what_is_refused_is_what_there_is() -> None:
    refused = {*_OF_FORMS, *_OF_GROUPS}
    assert {SCHEDULES, STEP, KIND, ROUNDING_STEP, AVERAGE, DECAY, "params", "engine"} <= refused
    switches = {name for name, value in _SHARED.items() if value is None or value is False}
    assert switches - refused <= {"clip_grad_norm", "clip_grad_value", "state_format"}


# -- what would run text, or read it as objects ------------------------------------------------

RUNS_TEXT = re.compile(
    # Without an argument, or with self for its first, it is a method of that name.
    r"(?<![\w.])(eval|exec|compile|__import__)\((?!\)|self\b)|\b(c?[Pp]ickle|dill|marshal|shelve)\b(?!=False)"
    r"|torch\.load\(|np\.load\(|yaml\.load|os\.system\(|shell=True"
)
#: Lines that may stand, and why.
ALLOWED = {
    'exec(compile(source, file, "exec"), space)': "Triton's kernels are functions of our own text",
    "archive = np.load(file, allow_pickle=False)": "plain arrays: pickles are refused",
}


def test_no_text_is_run_and_nothing_is_unpickled() -> None:
    found = {}
    for file in sorted(Path(steprule.__file__).parent.rglob("*.py")):
        code = re.sub(r'"""(?:.|\n)*?"""', "", file.read_text())
        for line in code.splitlines():
            text = line.partition("  # ")[0].strip()
            if not text.startswith("#") and RUNS_TEXT.search(text):
                found[text] = file.name
    assert {text: name for text, name in found.items() if text not in ALLOWED} == {}
    assert found.keys() == ALLOWED.keys()
