"""How several processes, on one machine or on many, share the shards of a stage."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Worker:
    """One of several workers that fill the same directory.

    Which shards it makes depends on its number alone, so that it can be killed and started again anywhere.

    Attributes:
        index: its number, 0..count-1.
        count: how many workers there are.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuses a number that no worker has.

        Raises:
            ValueError: ``index`` is not in 0..count-1.
        """
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"worker {self.index}/{self.count} does not exist; expected INDEX/COUNT with INDEX from 0 to COUNT - 1"
            )

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """Returns the worker that a text such as ``"3/8"`` names.

        Raises:
            ValueError: the text is not INDEX/COUNT, or no worker has that number.

        Example:
            >>> Worker.parse("3/8")
            Worker(index=3, count=8)
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError(f"expected a worker as INDEX/COUNT, such as 3/8, got {text!r}")
        return cls(int(index), int(count))

    def share(self, num_shards: int) -> range:
        """Returns the numbers of the shards, of ``num_shards``, that are this worker's.

        Example:
            >>> list(Worker(1, 3).share(7))
            [1, 4]
        """
        return range(self.index, num_shards, self.count)
