"""What each configuration key may be: a type, a range or a list of choices, checked before any work begins.

A section registers its rules beside its defaults; :func:`check_config` reports every key that breaks its rule.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real

from detectron2.config import CfgNode


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Attributes:
        expected: in words, for the message: "a number from 0 to 1".
        accepts: whether a value is that.
    """

    expected: str
    accepts: Callable[[object], bool]


_RULES: dict[str, Rule] = {}


def register_rules(rules: Mapping[str, Rule]) -> None:
    """Adds rules, by configuration key; a method with keys of its own registers theirs."""
    _RULES.update(rules)


def rules() -> dict[str, Rule]:
    """Returns all rules, by configuration key."""
    return dict(_RULES)


def check_config(cfg: CfgNode) -> None:
    """Checks every key that has a rule.

    Args:
        cfg: with this project's keys; a key that is absent is not checked.

    Raises:
        ValueError: values break their rules; the message has a line for each, with what was expected and what came.
    """
    wrong = []
    for key, rule in _RULES.items():
        found, value = _look_up(cfg, key)
        if found and not rule.accepts(value):
            wrong.append(f"{key} must be {rule.expected}, got {value!r}")
    if wrong:
        raise ValueError(
            "\n  ".join(["the configuration has impossible values:", *wrong]) if len(wrong) > 1 else wrong[0]
        )


def _look_up(cfg: CfgNode, key: str) -> tuple[bool, object]:
    node: object = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False, None
        node = node[part]
    return True, node


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Rule:
    """Returns the rule for a finite number from ``low`` to ``high``; ``above``: ``low`` itself is refused."""
    bounds = _bounds("above" if above else "at least", low, high)

    def accepts(value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return low <= float(value) <= high and not (above and value == low)

    return Rule(f"a number{bounds}", accepts)


def integer(low: int | None = None, high: int | None = None) -> Rule:
    """Returns the rule for an integer from ``low`` to ``high``; None: no bound."""
    bounds = _bounds("at least", -math.inf if low is None else low, math.inf if high is None else high)

    def accepts(value: object) -> bool:
        if not isinstance(value, Integral) or isinstance(value, bool):
            return False
        return (low is None or int(value) >= low) and (high is None or int(value) <= high)

    return Rule(f"an integer{bounds}", accepts)


def flag() -> Rule:
    """Returns the rule for True or False."""
    return Rule("True or False", lambda value: isinstance(value, bool))


def text(*, empty: bool = False) -> Rule:
    """Returns the rule for a string; ``empty``: it may be empty."""
    return Rule(
        "a string" if empty else "a string that is not empty", lambda v: isinstance(v, str) and bool(v or empty)
    )


def choice(*names: str) -> Rule:
    """Returns the rule for one of several names."""
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def several(rule: Rule, *, count: int | None = None, at_least: int = 0, ascending: bool = False) -> Rule:
    """Returns the rule for a tuple or list.

    Args:
        rule: of each entry.
        count: how many entries there must be; None: any number.
        at_least: how many there must be at the least.
        ascending: whether no entry may be smaller than the one before it.
    """
    size = f"{count} values" if count is not None else f"a list of {at_least} or more values" if at_least else "a list"

    def accepts(value: object) -> bool:
        if not isinstance(value, (tuple, list)) or not all(rule.accepts(entry) for entry in value):
            return False
        if (count is not None and len(value) != count) or len(value) < at_least:
            return False
        return not ascending or all(first <= second for first, second in zip(value, value[1:]))

    return Rule(f"{size}, each {rule.expected}" + (", ascending" if ascending else ""), accepts)


def _bounds(low_word: str, low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" {low_word} {low:g}"
    if math.isinf(low):
        return f" of {high:g} at most"
    return f" {low_word} {low:g} and at most {high:g}" if low_word == "above" else f" from {low:g} to {high:g}"


SHARE = number(0, 1)
PROBABILITY = SHARE
COUNT = integer(1)
NON_NEGATIVE = integer(0)
POSITIVE = number(0, above=True)
