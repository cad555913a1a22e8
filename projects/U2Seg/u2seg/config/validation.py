"""What each configuration key may be: a type, a range or a list of choices, checked before any work begins.

A section registers its rules beside its defaults; :func:`check_config` reports every key that breaks its rule.
"""

import math
import re
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
_ORDERED: list[tuple[str, str]] = []


def register_rules(rules: Mapping[str, Rule]) -> None:
    """Adds rules, by configuration key; a method with keys of its own registers theirs."""
    _RULES.update(rules)


def register_order(low: str, high: str) -> None:
    """Adds the rule that the number under one key may not be above that under another."""
    _ORDERED.append((low, high))


def check_config(cfg: CfgNode) -> None:
    """Checks every key that has a rule.

    Args:
        cfg: with this project's keys; a key that is absent is not checked.

    Raises:
        ValueError: values break their rules; the message has a line for each, with what was expected and what came.
    """
    found = {key: _look_up(cfg, key) for key in _RULES}
    _refuse([fault(key, value) for key, (is_there, value) in found.items() if is_there])
    for low, high in _ORDERED:
        (has_low, least), (has_high, most) = found[low], found[high]
        if has_low and has_high and least > most:  # type: ignore[operator]  # both are numbers by their rules
            raise ValueError(f"{low} must be at most {high} ({most!r}), got {least!r}")


def fitted_values(values: Mapping, cfg: CfgNode, prefix: str = "") -> dict:
    """Returns values that are to be merged into a configuration, an integer as a float where the key holds one.

    The merging itself refuses another type than the default's, without saying what the key may be; so the values are checked here.

    Args:
        values: by key, sections as mappings.
        cfg: the configuration, or the section of it, that they are merged into.
        prefix: of the section, "SOLVER." for example.

    Raises:
        ValueError: values break their rules, or are no sections where the key is one; the message has a line for each.
    """
    faults: list[str] = []
    fitted = _fitted(values, cfg, prefix, faults)
    _refuse(faults)
    return fitted


def _fitted(values: Mapping, cfg: object, prefix: str, faults: list[str]) -> dict:
    fitted = {}
    for key, given in values.items():
        default = cfg.get(key) if isinstance(cfg, CfgNode) else None
        name, value = f"{prefix}{key}", CfgNode._decode_cfg_value(given)  # merging reads text as Python's literals
        fitted[key] = given
        if isinstance(value, Mapping):
            fitted[key] = _fitted(value, default, f"{name}.", faults)
        elif isinstance(default, CfgNode):
            faults.append(f"{name} must be a section of keys ({', '.join(default)}), got {value!r}")
        else:
            faults.append(fault(name, value) or _type_fault(name, value, default))
            if type(value) is int and isinstance(default, float):
                fitted[key] = float(value)
    return fitted


def fault(key: str, value: object) -> str:
    """Returns what is wrong with the value of a key; empty if nothing is, or if the key has no rule."""
    rule = _RULES.get(key)
    return "" if rule is None or rule.accepts(value) else f"{key} must be {rule.expected}, got {value!r}"


def _type_fault(key: str, value: object, default: object) -> str:
    """Returns what is wrong with the type of a value for a key without a rule."""
    alike: list[set[type]] = [{int, float}, {list, tuple}, {type(default)}]
    if (
        key in _RULES
        or None in (value, default)
        or any(type(value) in types and type(default) in types for types in alike)
    ):
        return ""
    return f"{key} must be of type {type(default).__name__}, such as {default!r}, got {value!r}"


def _refuse(faults: list[str]) -> None:
    wrong = [line for line in faults if line]
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


def optional(rule: Rule) -> Rule:
    """Returns the rule for None, or for what another rule accepts."""
    return Rule(f"None or {rule.expected}", lambda value: value is None or rule.accepts(value))


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
        return f" {low_word} {_plain(low)}"
    if math.isinf(low):
        return f" of {_plain(high)} at most"
    if low_word == "above":
        return f" above {_plain(low)} and at most {_plain(high)}"
    return f" from {_plain(low)} to {_plain(high)}"


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def device() -> Rule:
    """Returns the rule for a device's name; "auto" is CUDA where there is one, else the CPU; on "meta", models have shapes alone."""
    return Rule(
        "a device such as cpu, cuda, cuda:1 or mps, or auto",
        lambda value: isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps|meta", value) is not None,
    )


SHARE = number(0, 1)
PROBABILITY = SHARE
COUNT = integer(1)
NON_NEGATIVE = integer(0)
POSITIVE = number(0, above=True)
