"""What quantities are called on paper: the symbols of torch's documentation and of the papers."""

# ruff: noqa: RUF001  # Greek letters look like others
from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

# When a quantity is meant: in this step, in the one before, in the next; "" if it never changes.
Time: TypeAlias = Literal["", "t", "t-1", "t+1"]
# Tried in turn where a letter is taken.
ACCENTS = ("", "tilde", "hat", "bar", "check")

GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "zeta": "ζ",
    "eta": "η",
    "theta": "θ",
    "iota": "ι",
    "kappa": "κ",
    "lambda": "λ",
    "mu": "μ",
    "nu": "ν",
    "xi": "ξ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "upsilon": "υ",
    "phi": "φ",
    "chi": "χ",
    "psi": "ψ",
    "omega": "ω",
    "Gamma": "Γ",
    "Delta": "Δ",
    "Theta": "Θ",
    "Lambda": "Λ",
    "Xi": "Ξ",
    "Pi": "Π",
    "Sigma": "Σ",
    "Upsilon": "Υ",
    "Phi": "Φ",
    "Psi": "Ψ",
    "Omega": "Ω",
    "ell": "ℓ",
}
_NAMES_OF_GREEK = {letter: name for name, letter in GREEK.items()}


@dataclass(frozen=True)
class Symbol:
    """A letter with what stands on it and beside it, as ``\\tilde{g}_t``.

    Attributes:
        base: a letter, the name of a Greek one (``"beta"``), or a word.
        accent: what stands on it, one of :data:`ACCENTS`.
        above: a mark at its upper right, as in v^max; a word of more than one letter is upright.
        below: a mark at its lower right, before the time.
        time: the step that it belongs to.
    """

    base: str
    accent: str = ""
    above: str = ""
    below: str = ""
    time: Time = ""

    @property
    def is_word(self) -> bool:
        """Whether it is no letter."""
        return len(self.base) > 1 and self.base not in GREEK

    @property
    def letter(self) -> Symbol:
        """It without its time: what must differ from one quantity to the next."""
        return replace(self, time="")

    def at(self, time: Time) -> Symbol:
        """Return the same quantity in another step."""
        return replace(self, time=time)

    def unlike(self, taken: Collection[Symbol]) -> Symbol:
        """Return it if it is free, else with a prime, and then an accent as well."""
        if self.letter not in taken:
            return self
        return replace(self, above=self.above or "prime").with_accent(taken, self.accent)

    def with_accent(self, taken: Collection[Symbol], first: str = "") -> Symbol:
        """Return it with the first accent that is free; with its name written out if none is."""
        start = ACCENTS.index(first)
        for accent in (*ACCENTS[start:], *ACCENTS[:start]):
            candidate = replace(self, accent=accent)
            if candidate.letter not in taken and not (self.accent and not accent):
                return candidate
        number = 1
        while replace(self, above=f"({number})").letter in taken:
            number += 1
        return replace(self, above=f"({number})")


def _s(base: str, below: str = "", above: str = "", accent: str = "") -> Symbol:
    return Symbol(base, accent, above, below)


PARAM, GRAD, STEP = _s("theta"), _s("g"), _s("t")

#: State, by the names of slots.
SLOTS = {
    "exp_avg": _s("m"),
    "exp_avg_normed": _s("m"),
    "exp_avg_sq": _s("v"),
    "max_exp_avg_sq": _s("v", above="max"),
    "exp_avg_var": _s("s"),
    "max_exp_avg_var": _s("s", above="max"),
    "exp_avg_slow": _s("m", above="slow"),
    "exp_avg_diff": _s("d"),
    "exp_inf": _s("u"),
    "momentum_buffer": _s("b"),
    "square_avg": _s("v"),
    "grad_avg": _s("g", above="avg"),
    "acc_delta": _s("u"),
    "sum": _s("s"),
    "row_var": _s("R"),
    "col_var": _s("C"),
    "variance": _s("V"),
    "mu_product": _s("Pi"),
    "mu": _s("mu"),
    "eta": _s("eta"),
    "ax": _s("theta", accent="bar"),
    "param_ema": _s("theta", accent="bar"),
    "prev": _s("g", accent="tilde"),
    "previous_grad": _s("g", accent="tilde"),
    "last_grad": _s("g", accent="tilde"),
    "step_size": _s("eta"),
    "grok_ema": _s("h"),
    "hessian": _s("h"),
    "s": _s("s"),
    "p0": _s("theta", "0"),
    "d": _s("d"),
    "d_max": _s("d", above="max"),
    "d_numerator": _s("r"),
    "z": _s("z"),
    "weight_sum": _s("W"),
    "lr_max": _s("gamma", above="max"),
    "x_weight": _s("omega"),
    "left_gram": _s("L"),
    "right_gram": _s("R"),
    "left_root": _s("P", "L"),
    "right_root": _s("P", "R"),
    "left_basis": _s("Q", "L"),
    "right_basis": _s("Q", "R"),
}

#: Options and what a rule is supplied with; the first ones have their letters before others.
NUMBERS = {
    "lr": _s("gamma"),
    "weight_decay": _s("lambda"),
    "eps": _s("epsilon"),
    "momentum": _s("mu"),
    "dampening": _s("tau"),
    "eps1": _s("epsilon", "1"),
    "eps2": _s("epsilon", "2"),
    "machine_eps": _s("epsilon", "machine"),
    "graft_eps": _s("epsilon", "graft"),
    # λ alone is weight_decay in each variant of an optimizer, whether it has one or not.
    "lambd": _s("lambda", above="prime"),
    "lamb": _s("lambda", above="prime"),
    "lr_decay": _s("eta"),
    "t0": _s("t", "0"),
    "etaminus": _s("eta", above="-"),
    "etaplus": _s("eta", above="+"),
    "step_size_min": _s("Gamma", "min"),
    "step_size_max": _s("Gamma", "max"),
    "beta2_decay": _s("tau"),
    "trust_coefficient": _s("eta"),
    "momentum_decay": _s("psi"),
    "alpha_init": _s("alpha", "0"),
    "alpha_warmup": _s("T", "alpha"),
    "beta3_warmup": _s("T", "beta"),
    "grokking_signal": _s("S"),
    "grokking_signal_decay_rate": _s("kappa"),
    "layer": _s("ell"),
    "clip_exp": _s("c"),
    "shampoo_beta": _s("beta", "S"),
    "warmup_steps": _s("T", "warmup"),
    "weight_lr_power": _s("p"),
    "d_coef": _s("d", "coef"),
    "growth_rate": _s("G"),
    "bs": _s("B"),
    "ema_decay": _s("beta", "ema"),
    "peak_lr": _s("gamma", above="peak"),
    "clip_factor": _s("c", "clip"),
    "clip_grad_norm": _s("c", "norm"),
    "clip_grad_value": _s("c", "value"),
}

#: Intermediate results, by the names of a rule's local variables.
LOCALS = {
    "param": PARAM,
    "grad": GRAD,
    "update": _s("u"),
    "adapted": _s("u"),
    "direction": _s("u"),
    "delta": _s("Delta", "theta"),
    "diff": _s("Delta", "g"),
    "surprise": _s("s"),
    "ahead": _s("g", accent="hat"),
    "amplified": _s("g", accent="hat"),
    "corrected": _s("c"),
    "normed": _s("n"),
    "denom": _s("D"),
    "trust": _s("r"),
    "factor": _s("r"),
    "rho_inf": _s("rho", "infty"),
    "mu_next": _s("mu"),
    "step_size": _s("gamma", accent="tilde"),
    "grad_weight": _s("w", "g"),
    "momentum_weight": _s("w", "m"),
    "weight": _s("w"),
    "scale": _s("kappa"),
    "estimate": _s("V", accent="hat"),
    "rms": _s("rms"),
    "projected": _s("g", accent="tilde"),
    "plain": _s("m", accent="hat"),
    "grafted": _s("a"),
    "gram_beta": _s("beta", "S"),
    "d_hat": _s("d", accent="hat"),
    "dlr": _s("gamma", accent="tilde"),
    "new": _s("c"),
    "kept": _s("kappa"),
    "towards_z": _s("w", "z"),
    "mask": _s("M"),
    "step": _s("Delta", "theta"),
    "new_param": PARAM,
    "agreement": _s("a"),
    "variance": _s("V"),
    "bound": _s("c"),
    "clip_factor": _s("c", "clip"),
    "correction1": _s("c", "1"),
    "correction2": _s("c", "2"),
    "correction3": _s("c", "3"),
    "weight1": _s("w", "1"),
    "weight2": _s("w", "2"),
    "updates": _s("k"),
    "count": _s("k"),
    "done": _s("p"),
    "lifetime": _s("tau"),
    "gain": _s("kappa"),
}
_NUMBERED = re.compile(r"([^\W\d_]+?)_?(\d+)")


def symbol_of(name: str) -> Symbol:
    """Return the symbol of a name that is in no table: a letter, a Greek one, or the word."""
    if name in _NAMES_OF_GREEK:
        name = _NAMES_OF_GREEK[name]
    if len(name) == 1 or name in GREEK:
        return Symbol(name)
    found = _NUMBERED.fullmatch(name)
    if found and (len(found[1]) == 1 or found[1] in GREEK):
        return Symbol(_NAMES_OF_GREEK.get(found[1], found[1]), below=found[2])
    if found and found[1] in {**NUMBERS, **LOCALS}:
        known = {**NUMBERS, **LOCALS}[found[1]]
        return replace(known, below=known.below or found[2])
    return Symbol(name)
