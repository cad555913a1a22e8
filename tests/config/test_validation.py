"""Every key has a rule; defaults and shipped configurations keep theirs; nonsense is refused in one line that names the key."""

import math

import mutate_configs
import pytest
from detectron2.config import CfgNode, get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from u2seg.config import add_u2seg_config, check_config, setup_cfg
from u2seg.config.validation import _RULES, choice, flag, integer, number, several, text
from u2seg.modeling import build_model


def flat(node: CfgNode, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def make_cfg() -> CfgNode:
    cfg = get_cfg()
    add_u2seg_config(cfg)
    return cfg


def put(cfg: CfgNode, key: str, value) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    cfg[leaf] = value


def test_every_key_of_ours_has_a_rule_and_every_rule_a_key():
    theirs, all_keys = set(flat(get_cfg())), set(flat(make_cfg()))
    assert all_keys - theirs <= set(_RULES)
    assert set(_RULES) <= all_keys


def test_the_defaults_keep_their_rules():
    check_config(make_cfg())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MASKS.MIN_AREA", -1e30, "a number from 0 to 1"),
        ("MASKS.MIN_AREA", math.nan, "a number from 0 to 1"),
        ("CLUSTERS.NUM_RESTARTS", -1000, "an integer from 1 to 1000"),
        ("CLUSTERS.NUM_CLUSTERS", True, "an integer at least 1"),
        ("INPUT.MASK_FORMAT", "nonsense", "one of polygon, bitmask"),
        ("SOLVER.STEPS", ("a",), "a list, each an integer at least 0"),
        ("SOLVER.BASE_LR", 0.0, "a number above 0"),
        ("MODEL.CHANNELS_LAST", None, "True or False"),
        ("FEATURES.IMAGE_SIZE", (480,), "2 values, each an integer from 16 to 8192"),
        ("INPUT.COPY_PASTE.SCALE_RANGE", (1.0, 0.3), "2 values, each a number above 0 and at most 10, ascending"),
        ("LUSS.THRESHOLD", 1.5, "a number from 0 to 1"),
        ("TEST.NMS_ACROSS_CLUSTERS", 50, "a number from 0 to 1"),
        ("TEST.BOOTSTRAP", -3, "an integer from 0 to 1000000"),
    ],
)
def test_what_was_accepted_in_silence_is_refused(key, value, expected):
    cfg = make_cfg()
    put(cfg, key, value)
    with pytest.raises(ValueError) as error:
        check_config(cfg)
    assert str(error.value) == f"{key} must be {expected}, got {value!r}"


def test_all_wrong_keys_are_told_at_once():
    cfg = make_cfg()
    cfg.MASKS.TAU, cfg.SOLVER.MAX_ITER = "high", 0
    with pytest.raises(ValueError, match=r"impossible values:\n  MASKS.TAU must .*\n  SOLVER.MAX_ITER must"):
        check_config(cfg)


def test_the_command_line_is_checked_when_it_is_read():
    with pytest.raises(ValueError, match="MASKS.MIN_AREA must be a number from 0 to 1, got -1.0"):
        setup_cfg("quick_schedules/scenes.yaml", ["MASKS.MIN_AREA", "-1.0"])


NONSENSE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), -1),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=2)), max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_value_of_any_key_ends_in_another_error(data):
    cfg = make_cfg()
    key = data.draw(st.sampled_from(sorted(_RULES)))
    put(cfg, key, data.draw(NONSENSE))
    try:
        check_config(cfg)
    except ValueError as error:
        assert key in str(error)


def test_rules_at_their_bounds():
    assert number(0, 1).accepts(0) and number(0, 1).accepts(1.0) and not number(0, 1, above=True).accepts(0)
    assert not number().accepts(math.inf) and not number().accepts("1") and not number().accepts(True)
    assert integer(2).accepts(2) and not integer(2).accepts(1) and not integer().accepts(1.0)
    assert flag().accepts(False) and not flag().accepts(0)
    assert text(empty=True).accepts("") and not text().accepts("") and not text().accepts(None)
    assert choice("a", "b").accepts("b") and not choice("a").accepts(["a"])
    assert several(integer()).accepts(()) and not several(integer(), at_least=1).accepts(())
    assert several(number(), ascending=True).accepts([1, 1, 2]) and not several(number(), ascending=True).accepts(
        [2, 1]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MASKS: {ROUNDS: 1.5}", "MASKS.ROUNDS must be an integer from 1 to 1000, got 1.5"),
        ("MASKS: {ROUNDS: 'many'}", "MASKS.ROUNDS must be an integer from 1 to 1000, got 'many'"),
        ("MODEL: {FPN: {OUT_CHANNELS: 1000000000000}}", "MODEL.FPN.OUT_CHANNELS must be an integer from 1 to 65536"),
        ("MODEL: {RPN: {IN_FEATURES: [[p2]]}}", "MODEL.RPN.IN_FEATURES must be a list of 1 or more values, each a str"),
        ("MODEL: {PIXEL_MEAN: [1.0]}", "MODEL.PIXEL_MEAN must be 3 values, each a number, got"),
        ("MODEL: {DEVICE: gpu}", "MODEL.DEVICE must be a device such as cpu, cuda"),
        ("FEATURES: {DEVICE: gpu}", "FEATURES.DEVICE must be a device such as cpu, cuda"),
        ("MODEL: {DEVICE: 'cpu:1'}", "MODEL.DEVICE must be a device such as cpu, cuda"),
        ("MODEL: 7", r"MODEL must be a section of keys \(.*META_ARCHITECTURE.*\), got 7"),
        ("SOLVER: {BASE_LR_END: -3.0}", "SOLVER.BASE_LR_END must be a number at least 0, got -3.0"),
        ("SOLVER: {BASE_LR: 0.1, BASE_LR_END: 0.2}", r"SOLVER.BASE_LR_END must be at most SOLVER.BASE_LR \(0.1\)"),
        ("SOLVER: {LR_MULTIPLIERS: [[roi_heads]]}", "SOLVER.LR_MULTIPLIERS must be a list, each a pair of"),
        ("MODEL: {RETINANET: {NUM_CONVS: x}}", "MODEL.RETINANET.NUM_CONVS must be of type int, such as 4, got 'x'"),
        ("TEST: {EXPECTED_RESULTS: [[bbox, AP]]}", "TEST.EXPECTED_RESULTS must be a list, each .task, metric, value"),
    ],
)
def test_a_wrong_value_in_a_file_is_refused_with_what_it_may_be(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        setup_cfg(tmp_path / "a.yaml")


def test_an_integer_serves_where_a_key_holds_a_float(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: {BASE_LR: 1}")
    cfg = setup_cfg(tmp_path / "a.yaml", ["MASKS.TAU", "0", "OUTPUT_DIR", "'2024'"])
    assert (cfg.SOLVER.BASE_LR, cfg.MASKS.TAU, cfg.OUTPUT_DIR) == (1.0, 0.0, "2024")
    assert type(cfg.SOLVER.BASE_LR) is type(cfg.MASKS.TAU) is float
    with pytest.raises(ValueError, match="MASKS.ROUNDS must be an integer from 1 to 1000, got 2.5"):
        setup_cfg(tmp_path / "a.yaml", ["MASKS.ROUNDS", "2.5"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_HEADS.NAME", "Heads", "Unknown MODEL.ROI_HEADS.NAME 'Heads'; registered: .*StandardROIHeads"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p9"], "MODEL.ROI_HEADS.IN_FEATURES: the backbone .* has no output 'p9'"),
        ("MODEL.FPN.IN_FEATURES", [], "MODEL.FPN.IN_FEATURES is empty: build_resnet_fpn_backbone needs the names"),
        ("MODEL.RPN.CONV_DIMS", [-1, 0], "the settings under MODEL do not go together: "),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(key, value, message):
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["MODEL.DEVICE", "cpu", key, value])
    with pytest.raises(ValueError, match=message) as error:
        build_model(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_wrong_values_in_shipped_configurations_are_refused_by_the_commands():
    """The first of the mutations; ``python tests/config/mutate_configs.py`` runs 220."""
    results = mutate_configs.run(len(mutate_configs.ALWAYS) + 3, seed=0)
    assert [outcome for _, outcome, _ in results[: len(mutate_configs.ALWAYS)]] == ["refused"] * 5
    assert {outcome for _, outcome, _ in results} <= {"refused", "accepted"}
