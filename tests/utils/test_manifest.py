"""Stages: manifests guard directories, files are written whole or not at all, failures are counted."""

import json

import pytest
from detectron2.config import CfgNode
from u2seg.utils.files import atomic_path, read_json, stream_json, write_json
from u2seg.utils.manifest import (
    Failure,
    IncompleteStageError,
    StageMismatchError,
    TooManyFailuresError,
    check_stage,
    close_stage,
    is_complete,
    keys_read_by,
    open_stage,
    reads,
    report_failures,
    require_shards,
    settings_digest,
    settings_of,
    shard_path,
    shard_slices,
)


def test_the_same_settings_reopen_a_directory(tmp_path):
    settings = {"tau": 0.15, "size": (480, 480)}
    directory = open_stage(tmp_path / "s", "masks", settings)
    assert open_stage(directory, "masks", settings) == directory
    assert not is_complete(directory)
    close_stage(directory, {"masks": 3})
    assert is_complete(directory)
    assert open_stage(directory, "masks", settings) == directory


def test_other_settings_are_refused_by_name(tmp_path):
    directory = open_stage(tmp_path / "s", "masks", {"tau": 0.15, "nested": {"a": 1}})
    (directory / "shard-000000.parquet").write_bytes(b"a result")
    with pytest.raises(StageMismatchError, match=r"settings\.tau: asked for 0\.2, the directory has 0\.15"):
        open_stage(directory, "masks", {"tau": 0.2, "nested": {"a": 1}})
    with pytest.raises(StageMismatchError, match=r"settings\.nested\.a: asked for 2"):
        open_stage(directory, "masks", {"tau": 0.15, "nested": {"a": 2}})
    with pytest.raises(StageMismatchError, match="stage: asked for 'clusters'"):
        open_stage(directory, "clusters", {"tau": 0.15, "nested": {"a": 1}})


def test_a_setting_that_only_the_directory_has_does_not_count(tmp_path):
    directory = open_stage(tmp_path / "s", "masks", {"MASKS": {"TAU": 0.15, "OLD": 1}, "OLD": 2})
    (directory / "shard-000000.parquet").write_bytes(b"a result")
    open_stage(directory, "masks", {"MASKS": {"TAU": 0.15}})
    check_stage(directory, "masks", {"MASKS": {"TAU": 0.15}})
    with pytest.raises(StageMismatchError, match=r"settings\.MASKS\.NEW: asked for 3, the directory has None"):
        open_stage(directory, "masks", {"MASKS": {"TAU": 0.15, "NEW": 3}})


def test_settings_of_keys_and_nodes():
    cfg = CfgNode({"A": {"B": 1, "C": {"D": (2, 3), "E": "x"}, "F": 4}, "G": 5})
    assert settings_of(cfg, ["A.B", "A.C", "G"]) == {"A": {"B": 1, "C": {"D": [2, 3], "E": "x"}}, "G": 5}
    assert settings_of(cfg, ["A", "A.C.D"])["A"] == {"B": 1, "C": {"D": [2, 3], "E": "x"}, "F": 4}
    with pytest.raises(KeyError, match="NOTHING"):
        settings_of(cfg, ["A.NOTHING"])


def test_a_declaration_is_not_inherited():
    @reads("A.B", "A.C")
    class Declared: ...

    class Subclass(Declared): ...

    assert keys_read_by(Declared) == ("A.B", "A.C")
    assert keys_read_by(Subclass) is None


def test_a_run_that_failed_before_its_first_result_binds_nobody(tmp_path):
    directory = open_stage(tmp_path / "s", "clusters", {"num_clusters": 500})
    assert open_stage(directory, "clusters", {"num_clusters": 5}) == directory
    (directory / "centroids.npy").write_bytes(b"a result")
    with pytest.raises(StageMismatchError, match=r"asked for 7, the directory has 5"):
        open_stage(directory, "clusters", {"num_clusters": 7})


def test_a_strangers_directory_is_not_written_into(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StageMismatchError, match="is not empty"):
        open_stage(tmp_path, "masks", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_digest_depends_on_settings_and_on_what_came_out(tmp_path):
    digests = []
    for name, settings, counts in (("a", 1, 5), ("b", 2, 5), ("c", 1, 6), ("d", 1, 5)):
        directory = open_stage(tmp_path / name, "masks", {"tau": settings})
        close_stage(directory, {"masks": counts})
        digests.append(settings_digest(directory))
    assert len(set(digests[:3])) == 3 and digests[3] == digests[0]


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": 2})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half a fi")
        raise RuntimeError
    assert read_json(path) == {"a": 2, "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_bytes_do_not_depend_on_insertion_order(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": 2})
    write_json(tmp_path / "b", {"a": 2, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_streamed_json_has_the_bytes_of_json_in_memory(tmp_path):
    rows = [{"b": [1, {"c": "line\nend"}], "a": {}}, {"b": [], "a": None}]
    for items in ([], rows[:1], rows):
        write_json(tmp_path / "whole", {"rows": items, "info": {"z": 1, "a": []}, "list": [2, 1]})
        stream_json(tmp_path / "stream", {"rows": iter(items), "info": {"z": 1, "a": []}, "list": [2, 1]})
        assert (tmp_path / "stream").read_bytes() == (tmp_path / "whole").read_bytes()


def test_missing_shards_are_named(tmp_path):
    for index in (0, 2):
        shard_path(tmp_path, index).touch()
    require_shards(tmp_path, 1)
    with pytest.raises(IncompleteStageError, match=r"lacks 1 of 3 shards: shard-000001\.parquet\. Run"):
        require_shards(tmp_path, 3)
    with pytest.raises(IncompleteStageError, match=r"lacks 12 of 14 shards: .*shard-000011\.parquet and 2 more"):
        require_shards(tmp_path, 14)


def test_a_directory_that_another_run_took_is_noticed(tmp_path):
    open_stage(tmp_path, "masks", {"size": (2, 3)})
    check_stage(tmp_path, "masks", {"size": (2, 3)})
    open_stage(tmp_path, "masks", {"size": (4, 3)})  # no result yet: it fixes nothing
    with pytest.raises(StageMismatchError, match="another run with other settings took"):
        check_stage(tmp_path, "masks", {"size": (2, 3)})


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_slices_cover_everything_once():
    assert shard_slices(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert shard_slices(0, 2) == []
    with pytest.raises(ValueError, match="at least 1"):
        shard_slices(3, 0)


def test_failures_are_listed_and_too_many_end_the_run(tmp_path):
    failures = [Failure("b.jpg", "empty"), Failure("a.jpg", "truncated")]
    report_failures(tmp_path, failures, total=200, max_share=0.01)
    assert json.loads((tmp_path / "failures.json").read_text()) == [
        {"file_name": "a.jpg", "reason": "truncated"},
        {"file_name": "b.jpg", "reason": "empty"},
    ]
    message = r"(?s)2 of 199 images.*a\.jpg: truncated.*with a larger MASKS\.MAX_FAILURES to go on without them, or fix them\.$"
    with pytest.raises(TooManyFailuresError, match=message):
        report_failures(tmp_path, failures, total=199, max_share=0.01, remedy=", or fix them")
