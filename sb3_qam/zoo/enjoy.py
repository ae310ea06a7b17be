"""RL Zoo's player with QAM in it: ``python -m sb3_qam.zoo.enjoy --algo qam --env ENV``, with the zoo's options."""

from rl_zoo3.enjoy import enjoy

if __name__ == "__main__":
    enjoy()
