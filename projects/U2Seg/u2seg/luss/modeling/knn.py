"""The weighted vote of nearest neighbors, and the accuracy of a classifier made of it. Pure functions."""

import torch
from torch import Tensor

MAX_ELEMENTS = 2**24  # similarities held at once: 64 MiB


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int,
    temperature: float,
    own: Tensor | None = None,
) -> float:
    """Returns the share of queries that get their label by a weighted vote of their ``k`` nearest bank entries, 0..1.

    Args:
        bank: float32 (M, C), rows of length 1.
        bank_labels: int64 (M,), from 0.
        queries: float32 (N, C), rows of length 1; N is at least 1.
        query_labels: int64 (N,), from 0; a label that the bank does not hold is never found.
        k: neighbors that vote; all there are, where there are fewer.
        temperature: a neighbor of cosine s weighs exp(s / temperature).
        own: see `knn_vote`. ``torch.arange(M)``, with the bank as queries, leaves one out.

    Raises:
        ValueError: no query, labels of another number, or what `knn_vote` refuses.

    Source: Wu et al., CVPR 2018 (InstDisc), section 3.4; DINO (Caron et al., ICCV 2021) with k = 20 and T = 0.07.
    """
    if len(queries) == 0 or len(queries) != len(query_labels):
        raise ValueError(
            f"expected at least one query and a label for each, got {len(queries)} queries and {len(query_labels)} labels"
        )
    num_ids = int(bank_labels.max()) + 1 if len(bank_labels) else 0
    found = knn_vote(queries, bank, bank_labels, num_ids=num_ids, neighbors=k, temperature=temperature, own=own)
    return int((found == query_labels).sum()) / len(queries)


def knn_vote(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    num_ids: int,
    neighbors: int,
    temperature: float,
    own: Tensor | None = None,
    max_elements: int = MAX_ELEMENTS,
) -> Tensor:
    """Returns the label of each query by a weighted vote of its nearest bank entries, int64 (N,).

    Of equally near entries the earlier ones vote; of labels with equal votes the lowest wins.

    Args:
        queries: float32 (N, C), rows of length 1.
        bank: float32 (M, C), rows of length 1.
        bank_labels: int64 (M,), 0..num_ids-1.
        num_ids: labels that can be voted for.
        neighbors: k; all there are, where there are fewer.
        temperature: a neighbor of cosine s weighs exp(s / temperature).
        own: int64 (N,), the bank's row that is the query itself and must not vote, -1 where there is none; None: nowhere.
        max_elements: similarities held at once; a query's at least.

    Raises:
        ValueError: no neighbor could vote.

    Source: LUSS, distance matching (k = 10, T = 0.07), after Wu et al., CVPR 2018.
    """
    needed = 1 if own is None else 2
    if neighbors < 1 or len(bank) < needed:
        raise ValueError(
            f"a vote needs at least one neighbor beside the query itself: k must be at least 1, got {neighbors}, and the bank at "
            f"least {needed} entries, got {len(bank)}"
        )
    step = max(1, max_elements // max(len(bank), num_ids))
    labels = []
    for part in torch.arange(len(queries), device=queries.device).split(step):
        similarity = queries[part] @ bank.T
        if own is not None:
            rows = torch.nonzero(own[part] >= 0).flatten()
            similarity[rows, own[part][rows]] = -torch.inf
        near, index = _nearest(similarity, neighbors)
        # In units of the nearest one's weight, which changes no vote and keeps exp() finite at small temperatures.
        weights = torch.exp((near - near[:, :1]) / temperature)
        votes = weights.new_zeros(len(part), num_ids).scatter_add_(1, bank_labels[index], weights)
        labels.append(votes.argmax(dim=1))
    return torch.cat(labels) if labels else bank_labels.new_zeros(0)


def _nearest(similarity: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """Returns the ``neighbors`` largest values of each row, descending, and their columns; of equal ones the first columns."""
    if neighbors >= similarity.shape[1]:
        return similarity.topk(similarity.shape[1], dim=1)
    near, index = similarity.topk(neighbors + 1, dim=1)
    # Which of equal values topk takes is not said: rows where the last one in equals the first one out are sorted.
    tied = near[:, neighbors - 1] == near[:, neighbors]
    if tied.any():
        index[tied] = similarity[tied].argsort(dim=1, descending=True, stable=True)[:, : neighbors + 1]
    return near[:, :neighbors], index[:, :neighbors]
