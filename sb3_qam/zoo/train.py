"""RL Zoo's training with QAM in it: ``python -m sb3_qam.zoo.train --algo qam --env ENV``, with the zoo's options."""

from rl_zoo3.train import train

__all__ = ["train"]

if __name__ == "__main__":
    train()
