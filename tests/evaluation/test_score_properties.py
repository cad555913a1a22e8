"""What must not change a score: names of clusters, order of images, number of processes, saving and loading."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.multiprocessing as mp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from score_oracles import categories, perturbed, random_map
from u2seg.evaluation import ScoreSettings, evaluate_tables, load_tables, save_tables
from u2seg.evaluation.scoring import detectron2_results
from u2seg.evaluation.tables.image_tables import (
    MapSegment,
    head_blocks,
    image_tables,
    instance_blocks,
    label_map_of,
    panoptic_blocks,
    regions_of_map,
)
from u2seg.evaluation.tables.segment_tables import BLOCKS, TableSpace, concatenate_tables, empty_tables
from u2seg.structures.label_space import LabelSpace

K, S = 6, 5
CATS = categories(4, 3)
PROTOCOLS = ("hungarian", "cups", "u2seg_paper", "u2seg_release", "stego", "majority")
SETTINGS = ScoreSettings(PROTOCOLS)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.lru_cache(maxsize=64)
def images(seed: int, count: int = 6) -> tuple:
    """Ground truth and predicted maps of small images, small enough for ties to be common."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = tuple(rng.integers(6, 14, 2))
        ids, infos = random_map(rng, size, int(rng.integers(2, 7)), CATS, crowds=True)
        predicted, found = perturbed(rng, ids, infos, CATS)
        # Clusters split the categories at random.
        isthing = {c["id"]: c["isthing"] for c in CATS}
        labels = [rng.integers(K) if isthing[i["category_id"]] else K + rng.integers(S) for i in found]
        rows.append((ids, infos, predicted, found, labels))
    return tuple(rows)


def joint(category_id: int) -> int:
    return [c["id"] for c in CATS].index(category_id)


def part(image_id, row, rename=None):
    ids, infos, predicted, found, labels = row
    rename = np.arange(K + S) if rename is None else rename
    space = TableSpace("toy", K, S, LabelSpace.of_coco_categories(CATS), ("panoptic", "box", "mask", "semantic"))
    gt = [MapSegment(i["id"], joint(i["category_id"]), crowd=bool(i["iscrowd"]), area=i["area"]) for i in infos]
    segments = [MapSegment(i["id"], int(rename[label]), i["score"]) for i, label in zip(found, labels)]
    predicted_labels = label_map_of(predicted, segments)
    head = np.where(predicted_labels >= K, predicted_labels - K + 1, 0)
    return image_tables(
        space,
        image_id,
        ids.shape,
        **panoptic_blocks(ids, gt, predicted, segments),
        **instance_blocks(
            regions_of_map(predicted, [s for s in segments if s.label < K]),
            regions_of_map(ids, [s for s in gt if s.label < 4]),
        ),
        **head_blocks(ids, {s.id: s.label for s in gt}, head),
    )


def parts_of(seed, rename=None):
    return [part(i + 1, row, rename) for i, row in enumerate(images(seed))]


@functools.lru_cache(maxsize=64)
def reference(seed):
    return evaluate_tables(concatenate_tables(parts_of(seed)), SETTINGS).results


def same(first, second):
    assert first.keys() == second.keys()
    for task in first:
        assert first[task].keys() == second[task].keys()
        for protocol in first[task]:
            assert first[task][protocol] == pytest.approx(second[task][protocol], abs=1e-9), (task, protocol)


@quick
@given(st.integers(0, 40), st.randoms(use_true_random=False))
def test_renaming_clusters_changes_nothing(seed, random):
    things, stuff = list(range(K)), list(range(K, K + S))
    random.shuffle(things)
    random.shuffle(stuff)
    renamed = concatenate_tables(parts_of(seed, np.array(things + stuff)))
    same(evaluate_tables(renamed, SETTINGS).results, reference(seed))


@quick
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=3, max_size=3), st.permutations(range(3)))
@example([[4, 3, 0], [3, 2, 0], [0, 0, 1]], [1, 0, 2])
@pytest.mark.parametrize("protocol", ["hungarian", "cups"])
def test_renaming_the_classes_of_a_semantic_head_alone_changes_nothing(protocol, counts, order):
    """In the example two matchings have the largest sum, 7, and other IoUs."""
    categories = LabelSpace((1,), (2, 3, 4), ("thing",), ("a", "b", "c"))
    empty = empty_tables(TableSpace("toy", 1, 3, categories, ("semantic",)))

    def score(stuff):
        cells = [
            (0, 1 + c, 1 + new, counts[old][c]) for new, old in enumerate(stuff) for c in range(3) if counts[old][c]
        ]
        head_pixels = np.array([(0, 0, 0, 1), *cells], empty.head_pixels.dtype)
        tables = replace(empty, images=np.array([(1, 9, 9)], empty.images.dtype), head_pixels=head_pixels)
        return evaluate_tables(tables, ScoreSettings((protocol,))).results["sem_seg"][protocol]

    assert score(order) == pytest.approx(score(range(3)))


@quick
@given(st.integers(0, 40), st.randoms(use_true_random=False), st.integers(1, 4))
def test_order_of_images_and_number_of_processes_change_nothing(seed, random, processes):
    parts = parts_of(seed)
    random.shuffle(parts)
    shares = [concatenate_tables(parts[rank::processes]) for rank in range(processes)]
    random.shuffle(shares)
    tables = concatenate_tables(shares)
    for name in BLOCKS:
        np.testing.assert_array_equal(getattr(tables, name), getattr(concatenate_tables(parts_of(seed)), name))
    same(evaluate_tables(tables, SETTINGS).results, reference(seed))


def test_saved_tables_score_the_same(tmp_path):
    for seed in range(3):
        save_tables(tmp_path / "tables.npz", concatenate_tables(parts_of(seed)))
        assert evaluate_tables(load_tables(tmp_path / "tables.npz"), SETTINGS).results == reference(seed)


@quick
@given(st.integers(0, 40))
def test_a_cluster_without_a_match_never_gains(seed):
    """Strict matching scores no more pixels right than the same with its left-over clusters given a category."""
    results = reference(seed)
    assert results["sem_seg"]["hungarian"]["pACC"] <= results["sem_seg"]["cups"]["pACC"] + 1e-9
    assert results["sem_seg"]["hungarian"]["pACC"] <= results["sem_seg"]["majority"]["pACC"] + 1e-9


@quick
@given(st.integers(0, 40))
def test_every_score_lies_between_0_and_100(seed):
    for rows in reference(seed).values():
        for row in rows.values():
            assert all(0 <= value <= 100 for value in row.values())


def test_bootstrap_intervals_hold_the_score_and_shrink_with_more_images():
    def interval(copies):
        parts = [
            replace(p, images=np.array([(i * 100 + c, 9, 9)], p.images.dtype))
            for i, p in enumerate(parts_of(3))
            for c in range(copies)
        ]
        evaluation = evaluate_tables(concatenate_tables(parts), ScoreSettings(("cups",), bootstrap=40))
        score, (low, high) = (
            evaluation.results["sem_seg"]["cups"]["pACC"],
            evaluation.intervals["sem_seg"]["cups"]["pACC"],
        )
        assert low <= score <= high
        return high - low

    # Sixteen copies of every image: the standard error falls to a quarter.
    assert interval(16) < 0.5 * interval(1)


def _gathered(rank: int, rendezvous: str, output: str) -> None:
    """One of two processes: evaluates its half of the images over gloo, as Detectron2's launcher would have it do."""
    import torch.distributed as dist
    from detectron2.utils import comm
    from u2seg.evaluation.evaluator import PanopticEvaluator

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    evaluator = PanopticEvaluator.__new__(PanopticEvaluator)
    evaluator.__dict__.update(
        _dataset="toy", _output=None, _settings=SETTINGS, _provenance={}, _num_things=K, _num_stuff=S
    )
    every = parts_of(0)
    ids = {int(part.images["id"][0]): None for part in every}
    evaluator.__dict__.update(_image_ids=ids, _parts=[], _latest=every[rank::2])
    results = evaluator.evaluate()
    assert (results is None) == (rank == 1)
    if rank == 0:
        expected = detectron2_results(reference(0), SETTINGS.protocols[0])
        assert results.keys() == expected.keys()
        assert all(results[task] == pytest.approx(expected[task], abs=1e-9) for task in expected)
        Path(output).write_text("equal")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_over_gloo_score_as_one(tmp_path):
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path / "done"))
    mp.start_processes(
        _gathered, args=arguments, nprocs=2, start_method="fork"
    )  # spawning would import everything anew
    assert (tmp_path / "done").read_text() == "equal"
