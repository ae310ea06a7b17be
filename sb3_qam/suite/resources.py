"""What a launcher may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """
    What runs may take.

    :param jobs: Number of runs side by side, ``None`` for as many as there is room for
    :param address: Address of a Ray cluster, ``None`` for the one that Ray finds
    :param gpus: Share of a GPU that each run asks Ray for
    """

    jobs: int | None = None
    address: str | None = None
    gpus: float = 0.0

    def check_local(self) -> None:
        """
        :raises ValueError: if there is something that only a cluster has
        """
        for name, value in {"address": self.address, "gpus": self.gpus}.items():
            if value:
                raise ValueError(f"--{name} {value} is for --launcher ray: give that too, or leave it out.")
