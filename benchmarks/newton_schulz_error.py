"""How far Newton-Schulz in the iteration's dtype is from the exact iteration, by method.

Prints a table: relative error in the Frobenius norm, and the range of singular values. A random
matrix, and one of rank 4 with noise a hundredth as large.
"""

from __future__ import annotations

import torch

from steprule.matrix_ops import orthogonalization
from steprule.matrix_ops.orthogonalization import iteration_dtype, orthogonalized_list

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5


def exact(x: torch.Tensor) -> torch.Tensor:
    """Return the iteration in float64."""
    a, b, c = COEFFICIENTS
    x = x.double() / x.double().norm()
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def approximate(x: torch.Tensor, method: str) -> torch.Tensor:
    """Return what Muon makes of a matrix."""
    return orthogonalized_list([x], *COEFFICIENTS, 1e-7, STEPS, method)[0].double()


def without_restart(x: torch.Tensor) -> torch.Tensor:
    """Return what the Gram matrix alone would make of it."""
    kept = orthogonalization.RESTART_AFTER
    orthogonalization.RESTART_AFTER = STEPS
    try:
        return approximate(x, "gram")
    finally:
        orthogonalization.RESTART_AFTER = kept


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(f"iterations in {iteration_dtype(torch.device('cpu'))}")
    print("| matrix | standard | gram | gram without a restart | singular values, exact, "
          "standard, gram |")  # fmt: skip
    print("|---|---|---|---|---|")
    for rows, columns in ((64, 64), (256, 256), (512, 512), (256, 512), (256, 1024)):
        noise = torch.randn(rows, columns)
        low_rank = torch.randn(rows, 4) @ torch.randn(4, columns) + 0.01 * noise
        for kind, x in (("random", noise), ("rank 4 and noise", low_rank)):
            expected = exact(x)
            made = [approximate(x, "standard"), approximate(x, "gram"), without_restart(x)]
            errors = [float((m - expected).norm() / expected.norm()) for m in made]
            ranges = [torch.linalg.svdvals(m) for m in (expected, *made[:2])]
            spans = ", ".join(f"{s.min():.2f} to {s.max():.2f}" for s in ranges)
            cells = [f"{rows}x{columns}, {kind}", *(f"{e:.3f}" for e in errors), spans]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
