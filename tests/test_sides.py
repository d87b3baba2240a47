"""Square matrices of a parameter's sides: SOAP, Shampoo, and what they are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import TOLERANCES

import steprule
from steprule import matrix_ops
from steprule.matrix_ops.eigen import LABELS, eigenbasis_list, inverse_root_list

NAMES = ("SOAP", "Shampoo")
SQUARES = {
    "SOAP": ("left_gram", "right_gram", "left_basis", "right_basis"),
    "Shampoo": ("left_gram", "right_gram", "left_root", "right_root"),
}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gram(side: int, seed: int = 0) -> torch.Tensor:
    x = numbers(side, 2 * side, seed=seed)
    return x @ x.T


def train(
    make: Callable[..., Any], shapes: list[tuple[int, ...]], steps: int, **options: Any
) -> tuple[list[torch.Tensor], Any]:
    dtype = options.pop("dtype", torch.float64)
    params = [numbers(*s, seed=i, dtype=dtype).requires_grad_() for i, s in enumerate(shapes)]
    optimizer = make(params, **options)
    for step in range(steps):
        for i, param in enumerate(params):
            param.grad = numbers(*param.shape, seed=100 * step + i, dtype=dtype)
        optimizer.step()
    return params, optimizer


def cls_of(name: str) -> Any:
    return getattr(steprule, name)


# -- what they are made of --------------------------------------------------------------------


def test_refined_bases_come_to_the_eigenvectors_each_in_its_column() -> None:
    values = torch.tensor([1.0, 100.0, 10.0], dtype=torch.float64)
    turn = torch.linalg.qr(numbers(3, 3)).Q
    matrix = turn @ values.diag() @ turn.T
    basis = torch.linalg.qr(turn + 0.1 * numbers(3, 3, seed=1)).Q
    for _ in range(40):  # a factor of 10 a step
        basis = matrix_ops.eigenbasis(matrix, basis, anew=False, refined=True)
    torch.testing.assert_close((turn.T @ basis).abs(), torch.eye(3, dtype=torch.float64))
    assert matrix_ops.eigenbasis(matrix, basis, anew=False, refined=False) is basis


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_inverse_roots_by_another_way(exponent: float) -> None:
    matrix = gram(4)
    root = matrix_ops.inverse_root(
        matrix, torch.zeros(4, 4), exponent, weight=0.5, eps=1e-3, is_due=True
    )
    power = torch.linalg.matrix_power(root, round(1 / exponent))
    shifted = matrix / 0.5 + 1e-3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(power @ shifted, torch.eye(4, dtype=torch.float64))


def test_eigenvalues_below_0_are_rounding() -> None:
    matrix = torch.diag(torch.tensor([4.0, -1e-7], dtype=torch.float64))
    root = matrix_ops.inverse_root(matrix, None, 0.5, weight=1.0, eps=1e-4, is_due=True)
    expected = torch.diag(torch.tensor([4.0001001**-0.5, 1e-4**-0.5], dtype=torch.float64))
    torch.testing.assert_close(root, expected)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_makes_nan_of_its_own_matrix_alone(bad: float) -> None:
    grams = [gram(3, seed=i) for i in range(3)]
    grams[1][0, 2] = bad
    eyes = [torch.eye(3, dtype=torch.float64)] * 3
    for made in (
        eigenbasis_list(grams, eyes, True, False),
        eigenbasis_list(grams, eyes, False, True),
        inverse_root_list(grams, eyes, 1.0, 1e-6, True, 0.25),
    ):
        assert [bool(x.isfinite().all()) for x in made] == [True, False, True]


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[torch.Tensor], bool]) -> list[Any]:
    """Have LAPACK not converge for some stacks; return the dtypes and counts it is asked for."""
    eigh, asked = torch.linalg.eigh, []

    def failing_eigh(stack: torch.Tensor) -> Any:
        asked.append((stack.dtype, len(stack)))
        if fails(stack):
            raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")
        return eigh(stack)

    monkeypatch.setattr(torch.linalg, "eigh", failing_eigh)
    return asked


def test_what_float32_does_not_converge_for_is_tried_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = failing(monkeypatch, lambda stack: stack.dtype is torch.float32)
    grams = [gram(3, seed=i).float() for i in range(2)]
    eyes = [torch.eye(3)] * 2
    roots = inverse_root_list(grams, eyes, 1.0, 1e-6, True, 0.5)
    assert asked[:3] == [(torch.float32, 2), (torch.float32, 1), (torch.float64, 1)]
    for root, matrix in zip(roots, grams, strict=True):
        assert root.dtype is torch.float32
        torch.testing.assert_close(root @ root @ matrix, torch.eye(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["eager", "foreach"])
@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_converges_the_parameter_is_named_and_training_goes_on(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = numbers(4, 4, seed=7)
    model = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    first, second = (layer.weight for layer in model)
    options = {"precondition_frequency": 1} if name == "Shampoo" else {}
    optimizer = cls_of(name)(
        [("first.weight", first), ("second.weight", second)], engine=engine, **options
    )
    first.grad, second.grad = odd.float(), numbers(4, 4).float()
    trace = float((odd * odd).sum())

    def is_of_first(stack: torch.Tensor) -> bool:
        traces = stack.double().diagonal(dim1=1, dim2=2).sum(1)
        weight = 0.05 if name == "SOAP" else 1.0
        return bool(((traces / weight - trace).abs() < 1e-3 * trace).any())

    failing(monkeypatch, is_of_first)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer.step()
    messages = [str(one.message) for one in told]
    assert messages
    assert all("'first.weight'" in x and "converge" in x for x in messages), messages
    assert {one.filename for one in told} == {__file__}
    monkeypatch.undo()
    for _ in range(2):
        first.grad, second.grad = odd.float(), numbers(4, 4, seed=3).float()
        optimizer.step()
    for param in (first, second):
        assert param.isfinite().all()
        assert all(optimizer.state[param][key].any() for key in SQUARES[name])


def test_labels_are_of_the_step_at_hand() -> None:
    train(steprule.SOAP, [(3, 3)], 1, engine="eager")
    assert list(LABELS.of) == ["parameter 0 of group 0"]


def test_equal_shapes_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, lambda _: False)
    shapes = [(6, 5)] * 4 + [(5, 6)] * 2 + [(7,)]
    together, _ = train(steprule.SOAP, shapes, 3, engine="foreach")
    assert asked == [(torch.float64, 4), (torch.float64, 2)] * 2
    one_by_one, _ = train(steprule.SOAP, shapes, 3, engine="eager")
    torch.testing.assert_close(together, one_by_one, **TOLERANCES[torch.float64])


def test_sides_are_not_mixed_up() -> None:
    @steprule.rule(
        elementwise=False,
        batched=True,
        left=steprule.Slot(shape="left"),
        right=steprule.Slot(shape="right"),
    )
    def odd(param: Any, grad: Any, left: Any, right: Any, *, lr: Any) -> Any:
        return param - lr * grad, left + right, right

    param = torch.ones(3, 3, requires_grad=True)
    optimizer = steprule.make_optimizer(odd, lr=0.1)([param])
    param.grad = torch.ones(3, 3)
    with pytest.raises(TypeError, match=r"`add` got square matrices .* of one side only"):
        optimizer.step()


# -- the optimizers ---------------------------------------------------------------------------


def test_soaps_first_step_makes_the_bases_and_no_more() -> None:
    before = [numbers(3, 4, seed=0), numbers(5, seed=1)]
    params, optimizer = train(steprule.SOAP, [(3, 4), (5,)], 1)
    torch.testing.assert_close(params, before, rtol=0, atol=0)
    state = optimizer.state[params[0]]
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()
    basis = state["left_basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    diagonal = basis.T @ state["left_gram"] @ basis
    torch.testing.assert_close(diagonal, diagonal.diagonal().diag(), rtol=0, atol=1e-14)


def test_soap_of_what_has_no_bases_is_adamw_a_step_later() -> None:
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
    shapes = [(6,), (3, 4)]
    params, _ = train(steprule.SOAP, shapes, 6, weight_decay=0.0, max_precond_dim=2, **options)
    theirs = [numbers(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    # torch's adds eps after the correction: theirs is eps / sqrt(1 - beta2**t), of 1e-8.
    adam = torch.optim.Adam(theirs, **options)
    for step in range(1, 6):
        for i, param in enumerate(theirs):
            param.grad = numbers(*param.shape, seed=100 * step + i)
        adam.step()
    torch.testing.assert_close(params, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grafting", ["adam", "sgd", "none"])
def test_shampoo_begins_as_what_is_grafted(grafting: str) -> None:
    options = {"lr": 0.01, "betas": (0.9, 0.99)}
    shapes = [(6,), (3, 4)]
    params, _ = train(
        steprule.Shampoo, shapes, 4, grafting=grafting, start_preconditioning_step=5, **options
    )
    theirs = [numbers(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    adam = torch.optim.Adam(theirs, **options)
    averages = [torch.zeros_like(p) for p in theirs]
    for step in range(4):
        for i, param in enumerate(theirs):
            param.grad = numbers(*param.shape, seed=100 * step + i)
            averages[i] = 0.9 * averages[i] + 0.1 * param.grad
            if grafting != "adam":
                param.data -= 0.01 * averages[i] / (1 - 0.9 ** (step + 1))
        if grafting == "adam":
            adam.step()
    torch.testing.assert_close(params, [p.detach() for p in theirs])


def test_the_paper_of_2018() -> None:
    (param,), _ = train(
        steprule.Shampoo,
        [(3, 3)],
        2,
        lr=0.1,
        betas=(0.0, 1.0),
        eps=1e-4,
        grafting="none",
        precondition_frequency=1,
    )
    expected = numbers(3, 3)
    left = right = 1e-4 * torch.eye(3, dtype=torch.float64)
    for step in range(2):
        grad = numbers(3, 3, seed=100 * step)
        left, right = left + grad @ grad.T, right + grad.T @ grad
        roots = []
        for side in (left, right):
            values, vectors = torch.linalg.eigh(side)
            roots.append(vectors @ (values**-0.25).diag() @ vectors.T)
        expected = expected - 0.1 * roots[0] @ grad @ roots[1]
    torch.testing.assert_close(param.detach(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_more_axes_are_a_matrix_of_the_first_and_all_others(name: str) -> None:
    deep, flat = numbers(4, 3, 2).requires_grad_(), numbers(4, 6).requires_grad_()
    flat.data.copy_(deep.data.reshape(4, 6))
    optimizers = [cls_of(name)([p], lr=0.1, precondition_frequency=2) for p in (deep, flat)]
    for step in range(5):
        deep.grad = numbers(4, 3, 2, seed=step)
        flat.grad = deep.grad.reshape(4, 6)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(deep.detach().reshape(4, 6), flat.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "limit"), [("SOAP", "max_precond_dim"), ("Shampoo", "max_preconditioner_dim")]
)
def test_which_sides_have_matrices(name: str, limit: str) -> None:
    def squares(shape: tuple[int, ...], **options: Any) -> set[str]:
        (param,), optimizer = train(cls_of(name), [shape], 1, **options)
        return set(optimizer.state[param]) & set(SQUARES[name])

    left = {key for key in SQUARES[name] if key.startswith("left")}
    right = set(SQUARES[name]) - left
    assert squares((3, 5)) == left | right
    assert squares((3, 5), **{limit: 4}) == left
    assert squares((5, 3), **{limit: 4}) == right
    assert squares((2, 3, 2), **{limit: 5}) == left
    assert squares((5, 5), **{limit: 4}) == set()
    assert squares((3,)) == squares(()) == squares((0, 3)) == set()
    assert squares((3,), precondition_1d=True) == left
    assert squares((5,), precondition_1d=True, **{limit: 4}) == set()


@pytest.mark.parametrize("engine", ["eager", "foreach"])
@pytest.mark.parametrize("name", NAMES)
def test_square_matrices_keep_full_precision(name: str, engine: str) -> None:
    shapes = [(6, 6), (3, 5)]
    for dtype, options in (
        (torch.bfloat16, {}),
        (torch.bfloat16, {"state_format": "int8", "state_format_min_size": 1}),
        (torch.float32, {"state_format": "bfloat16"}),
        (torch.float64, {"state_format": "int4", "state_format_min_size": 1}),
    ):
        params, optimizer = train(
            cls_of(name),
            shapes,
            12,
            engine=engine,
            dtype=dtype,
            precondition_frequency=2,
            **options,
        )
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        for param in params:
            assert param.isfinite().all()
            assert {optimizer.state[param][key].dtype for key in SQUARES[name]} == {wide}
        other = cls_of(name)([torch.zeros_like(p) for p in params], engine=engine)
        other.load_state_dict(optimizer.state_dict())
        for param, mine in zip(other.param_groups[0]["params"], params, strict=True):
            for key in SQUARES[name]:
                loaded, saved = other.state[param][key], optimizer.state[mine][key]
                assert torch.equal(loaded, saved)
                assert loaded.dtype is wide


@pytest.mark.parametrize("engine", ["eager", "foreach"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_spoils_its_parameter_alone(name: str, engine: str) -> None:
    params = [numbers(4, 4, seed=i).requires_grad_() for i in range(2)]
    optimizer = cls_of(name)(params, engine=engine, precondition_frequency=1)
    for step in range(4):
        for i, param in enumerate(params):
            param.grad = numbers(4, 4, seed=10 * step + i)
        if step == 1:
            params[0].grad[2, 1] = torch.inf  # type: ignore[index]
        optimizer.step()
    assert not params[0].isfinite().any()
    assert params[1].isfinite().all()


def test_a_side_that_comes_to_have_a_basis_later() -> None:
    params, optimizer = train(steprule.SOAP, [(4, 3)], 4, max_precond_dim=3)
    optimizer.param_groups[0].update(max_precond_dim=4, precondition_frequency=1)
    for step in range(3):
        params[0].grad = numbers(4, 3, seed=50 + step)
        optimizer.step()
    basis = optimizer.state[params[0]]["left_basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("SOAP", {"precondition_frequency": 0}, ValueError, "precondition_frequency .* >= 1"),
        ("SOAP", {"precondition_frequency": 2.0}, TypeError, "precondition_frequency .* integer"),
        ("SOAP", {"max_precond_dim": -1}, ValueError, "max_precond_dim .* >= 0, got -1"),
        ("SOAP", {"eps": 0}, ValueError, "eps"),
        ("SOAP", {"shampoo_beta": 1.0}, ValueError, "shampoo_beta"),
        ("SOAP", {"normalize_grads": None}, TypeError, "normalize_grads must be True or False"),
        ("Shampoo", {"grafting": "adagrad"}, ValueError, "grafting must be one of 'adam', 'sgd'"),
        ("Shampoo", {"exponent": 0}, ValueError, "exponent must be a finite number > 0"),
        ("Shampoo", {"exponent": "1/4"}, TypeError, "exponent must be a number or None"),
        ("Shampoo", {"start_preconditioning_step": 0}, ValueError, "start_preconditioning_step"),
        ("Shampoo", {"betas": (0.9, 1.1)}, ValueError, "beta"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        cls_of(name)([torch.ones(2, 2)], **options)


# -- matrices that come late ------------------------------------------------------------------

LATE: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "SOAP, a longer side": ("SOAP", {"max_precond_dim": 3}, {"max_precond_dim": 9}, (5, 4)),
    "SOAP, vectors": ("SOAP", {}, {"precondition_1d": True}, (5,)),
    "Shampoo, a longer side": (
        "Shampoo",
        {"max_preconditioner_dim": 4},
        {"max_preconditioner_dim": 9},
        (5, 4),
    ),
    "Shampoo, vectors": ("Shampoo", {}, {"precondition_1d": True}, (5,)),
    "Shampoo, an earlier start": (
        "Shampoo",
        {"start_preconditioning_step": 1000},
        {"start_preconditioning_step": 2},
        (5, 4),
    ),
}


@pytest.mark.parametrize("engine", ["eager", "foreach"])
@pytest.mark.parametrize("case", LATE)
def test_matrices_that_come_late_freeze_nothing(case: str, engine: str) -> None:
    name, before, after, shape = LATE[case]
    lr = 0.01
    (param,), optimizer = train(
        cls_of(name), [shape], 12, engine=engine, lr=lr, weight_decay=0.0, **before
    )
    optimizer.param_groups[0].update(after)
    for step in range(12):  # the renewal at 20 among them
        then = param.detach().clone()
        param.grad = numbers(*shape, seed=500 + step)
        optimizer.step()
        assert lr / 10 < (param - then).abs().mean() < 3 * lr, step


@pytest.mark.parametrize("name", NAMES)
def test_without_any_eigenvectors_the_axes_are_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda _: True)
    options = {"start_preconditioning_step": 1} if name == "Shampoo" else {}
    with pytest.warns(RuntimeWarning, match="no eigenvectors"):
        (param,), optimizer = train(cls_of(name), [(4, 3)], 1, **options)
    for step in range(2):
        then = param.detach().clone()
        param.grad = numbers(4, 3, seed=20 + step)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            optimizer.step()
        assert bool((param != then).all()), step


@pytest.mark.parametrize("engine", ["eager", "foreach"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e17, 1e19])
def test_large_gradients_that_are_finite_leave_the_matrices_finite(
    name: str, engine: str, size: float
) -> None:
    param = numbers(4, 3, dtype=torch.float32).requires_grad_()
    optimizer = cls_of(name)([param], engine=engine, precondition_frequency=2)
    for step in range(8):
        scale = size if step in (0, 4, 5) else 1.0
        param.grad = scale * numbers(4, 3, seed=step, dtype=torch.float32).clamp(-3, 3)
        optimizer.step()
    assert param.isfinite().all()
    assert all(optimizer.state[param][key].isfinite().all() for key in SQUARES[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_of_one_row_or_column_counts_as_a_vector(name: str) -> None:
    for shape, key in (((1, 6), "right"), ((6, 1), "left"), ((1, 2, 3), "right")):
        (param,), optimizer = train(cls_of(name), [shape], 1)
        assert not set(optimizer.state[param]) & set(SQUARES[name])
        (param,), optimizer = train(cls_of(name), [shape], 1, precondition_1d=True)
        kept = set(optimizer.state[param]) & set(SQUARES[name])
        assert kept == {square for square in SQUARES[name] if square.startswith(key)}


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("SOAP", "precondition_frequency", 0, "precondition_frequency must be .* >= 1, got 0"),
        ("SOAP", "max_precond_dim", None, "max_precond_dim must be a number, got None"),
        ("Shampoo", "precondition_frequency", 0, "precondition_frequency must be .* >= 1, got 0"),
        ("Shampoo", "grafting", "x", "grafting must be one of 'adam', 'sgd', 'none', got 'x'"),
    ],
)
def test_what_a_value_has_become_is_looked_at(
    name: str, option: str, value: Any, message: str
) -> None:
    (param,), optimizer = train(cls_of(name), [(4, 3)], 2)
    optimizer.param_groups[0][option] = value
    before = param.detach().clone()
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.step()
    assert torch.equal(param, before)


# -- rules of users' own ----------------------------------------------------------------------

LEFT, RIGHT = steprule.Slot(shape="left", init=1.0), steprule.Slot(shape="right", init=1.0)
MIXED_UP: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "gram of no side": (
        lambda g, left, right: (matrix_ops.gram(g, "lefty"), right),  # type: ignore[arg-type]
        ValueError,
        "side must be 'left' or 'right', got 'lefty'",
    ),
    "gram of a square matrix": (
        lambda g, left, right: (matrix_ops.gram(left, "left"), right),
        TypeError,
        "gram got a left square matrix",
    ),
    "a factor of the other side": (
        lambda g, left, right: (
            left + matrix_ops.gram(matrix_ops.sandwiched(right, g, None), "left"),
            right,
        ),
        TypeError,
        "sandwiched got a right square matrix where one of the left side belongs",
    ),
    "a basis of the other side": (
        lambda g, left, right: (matrix_ops.eigenbasis(left, right, anew=1.0, refined=0.0), right),
        TypeError,
        "eigenbasis got a right square matrix where one of the left side belongs",
    ),
    "a root of a gradient": (
        lambda g, left, right: (
            matrix_ops.inverse_root(g, left, 0.5, weight=1.0, eps=1.0, is_due=1.0),
            right,
        ),
        TypeError,
        "inverse_root got what is no square matrix",
    ),
    "an exponent that schedules could change": (
        lambda g, left, right: (
            matrix_ops.inverse_root(
                left, left, matrix_ops.gram(g, "left"), weight=1.0, eps=1.0, is_due=1.0
            ),
            right,
        ),
        TypeError,
        "exponent must be a plain number",
    ),
    "neither transposed": (
        lambda g, left, right: (
            left + matrix_ops.gram(matrix_ops.sandwiched(left, g, None, "rigth"), "left"),  # type: ignore[arg-type]
            right,
        ),
        ValueError,
        "transposed must be 'left', 'right' or None: 'rigth'",
    ),
}


@pytest.mark.parametrize("case", MIXED_UP)
def test_what_own_rules_mix_up(case: str) -> None:
    work, error, message = MIXED_UP[case]

    @steprule.rule(elementwise=False, batched=True, left=LEFT, right=RIGHT)
    def own(param: Any, grad: Any, left: Any, right: Any, *, lr: Any) -> Any:
        return param - lr * grad, *work(grad, left, right)

    param = torch.ones(3, 3, requires_grad=True)
    optimizer = steprule.make_optimizer(own, lr=0.1)([param])
    param.grad = torch.ones(3, 3)
    with pytest.raises(error, match=message):
        optimizer.step()


def test_a_rule_that_forgets_parameters_without_square_matrices() -> None:
    with pytest.raises(TypeError, match="inverse_root got None for a square matrix"):
        matrix_ops.inverse_root(None, None, 0.5, weight=1.0, eps=1.0, is_due=True)


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (steprule.Slot(shape="left", longest="max_dmi"), "longest of left .* got 'max_dmi'"),
        (steprule.Slot(shape="left", of_vectors="vector"), "of_vectors of left .* got 'vector'"),
        (steprule.Slot(longest="lr"), "longest of left is of square matrices"),
    ],
)
def test_options_of_square_matrices_that_a_rule_does_not_have(
    slot: steprule.Slot, message: str
) -> None:
    with pytest.raises(ValueError, match=message):

        @steprule.rule(elementwise=False, batched=True, left=slot)
        def own(param: Any, grad: Any, left: Any, *, lr: Any, max_dim: int) -> Any:
            return param - lr * grad, left
