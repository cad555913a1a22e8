"""Dataset dicts that are held as bytes: what a dataset of millions of images may take in memory."""

import pickle
from collections.abc import Iterable, Iterator
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class SerializedRecords(Dataset):
    """A read-only sequence of dataset dicts, each pickled, all in one block of memory.

    This is how Detectron2's ``DatasetFromList`` keeps a dataset, and for the same reason: worker processes share one block and would
    each copy millions of Python objects. Unlike that one it is filled from a stream, so that the objects of no more than one dict
    are in memory at a time.
    """

    def __init__(self, records: Iterable[dict]):
        """Serializes the dicts one by one."""
        block, ends = bytearray(), np.zeros(1024, np.int64)
        count = 0
        for record in records:
            block += pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
            if count == len(ends):
                ends = np.concatenate([ends, np.zeros_like(ends)])
            ends[count] = len(block)
            count += 1
        ends = ends[:count].copy()
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[:count]
        # A tensor, since PyTorch moves it to shared memory where worker processes are not forked.
        self._blocks: list[Tensor] = [torch.frombuffer(block, dtype=torch.uint8)] if block else []
        # Block, first and last byte of each record.
        self._places = np.stack([np.zeros_like(starts), starts, ends], axis=1)

    @classmethod
    def joined(cls, parts: "Iterable[list[dict] | SerializedRecords]") -> "SerializedRecords":
        """Returns several datasets as one, without copying those that are serialized already."""
        whole = cls(())
        places = [whole._places]
        for part in parts:
            records = part if isinstance(part, cls) else cls(part)
            places.append(records._places + (len(whole._blocks), 0, 0))
            whole._blocks.extend(records._blocks)
        whole._places = np.concatenate(places)
        return whole

    def select(self, indices: np.ndarray) -> "SerializedRecords":
        """Returns the records of the given indices, int (N,), in that order; the memory is shared."""
        chosen = SerializedRecords(())
        chosen._blocks, chosen._places = self._blocks, self._places[indices]
        return chosen

    @property
    def num_bytes(self) -> int:
        """Bytes of the serialized records, those that were not selected included."""
        return sum(len(block) for block in self._blocks) + self._places.nbytes

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> dict: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        block, start, end = self._places[index]
        return pickle.loads(memoryview(self._blocks[block].numpy())[start:end])
