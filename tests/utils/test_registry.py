"""The rule for names, over every registry of the package."""

import re
import sys

import pytest
import u2seg  # noqa: F401 - registers everything
from u2seg.utils.registry import NamedRegistry, UnknownNameError, get_registered

CAMEL_CASE, SNAKE_CASE = r"[A-Z][A-Za-z0-9]*", r"[a-z][a-z0-9]*(_[a-z0-9]+)*"


def test_names_of_a_registry_are_of_one_case():
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "u2seg"]
    registries = {id(r): r for module in modules for r in vars(module).values() if isinstance(r, NamedRegistry)}
    assert len(registries) > 10
    for registry in registries.values():
        names = [name for name, _ in registry]
        assert any(all(re.fullmatch(case, name) for name in names) for case in (CAMEL_CASE, SNAKE_CASE)), names


def test_an_entry_has_its_own_name_or_the_one_given():
    registry = NamedRegistry("FRUIT")

    @registry.register()
    class Apple:
        pass

    @registry.register("green_apple")
    def make_green_apple():
        return Apple()

    assert registry.get("Apple") is Apple
    assert registry.get("green_apple") is make_green_apple
    with pytest.raises(UnknownNameError, match="Unknown FRUIT 'pear'; registered: Apple, green_apple"):
        get_registered(registry, "pear", "FRUIT")
