"""What slots are called in the text of kernels, whatever the rule calls them.

Around a slot's name the text makes others (``exp_avg_value``, ``exp_avg_address``), among names of
its own. So that no name of a user's meets one of those, or another slot's, or is anything but a
name, each slot has its number in front: ``_s0_exp_avg``. Options have no names in the text, and
none that begins with an underscore.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

from steprule.engines.kernels.layout import Layout
from steprule.language.form import Form
from steprule.language.rule import Rule

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_]+")


def with_printed_names(layout: Layout) -> Layout:
    """Return the same layout for a rule whose slots have the names that are printed."""
    names = _printed_names(layout.form.rule)
    return replace(
        layout,
        form=_printed_form(layout.form),
        formats=tuple((names.get(name, name), storage) for name, storage in layout.formats),
        count_dtypes=tuple((names.get(name, name), dtype) for name, dtype in layout.count_dtypes),
        numbers=tuple((names.get(name, name), number) for name, number in layout.numbers),
    )


@functools.cache
def _printed_names(rule: Rule) -> dict[str, str]:
    return {name: f"_s{i}_{_NOT_PLAIN.sub('', name)}" for i, name in enumerate(rule.slots)}


@functools.cache
def _printed_form(form: Form) -> Form:
    names = _printed_names(form.rule)
    return replace(
        form,
        rule=_printed_rule(form.rule),
        present_slots=tuple(names[name] for name in form.present_slots),
    )


@functools.cache
def _printed_rule(rule: Rule) -> Rule:
    names = _printed_names(rule)
    return replace(rule, slots={names[name]: slot for name, slot in rule.slots.items()})
