"""Which action to take when it may not be random: ``python benchmarks/deterministic.py [--json FILE]``.

On the data and with the settings of the quickstart, evaluates on the same 50 starts, at several points of offline
training,

* sampled actions,
* the most typical of 16 samples, what ``deterministic=True`` does,
* of the same 16 samples the one that the critics value most.

Takes about five minutes on two CPU cores.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam import QAM, FlowPolicy

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart

STEPS = range(2_000, 12_001, 2_000)


class HighestValuedPolicy(FlowPolicy):
    """Its deterministic action is the sample with the highest mean value."""

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        assert isinstance(observation, dict)
        batch_size = len(next(iter(observation.values())))
        noise = self.head.fixed_noise(self.deterministic_noise.unsqueeze(1).expand(-1, batch_size, -1))
        return self.sample_actions(observation, noise)


def measure(seed: int) -> list[dict[str, Any]]:
    """Success and mean episode length of each way, at each point of training."""
    quickstart.load_or_collect()
    model = quickstart.make_model(seed)
    env = quickstart.StartsEvaluation().env
    rows: list[dict[str, Any]] = []
    for steps in STEPS:
        model.pretrain(gradient_steps=STEPS.step, reset_num_timesteps=False, progress_bar=True)
        highest_valued = HighestValuedPolicy(**model.policy._get_constructor_parameters())
        highest_valued.load_state_dict(model.policy.state_dict())
        ways: dict[str, tuple[QAM | FlowPolicy, bool]] = {
            "sampled": (model, False),
            "most typical": (model, True),
            "highest valued": (highest_valued, True),
        }
        for way, (policy, deterministic) in ways.items():
            env.seed(0)
            rewards, lengths = evaluate_policy(
                policy, env, quickstart.N_STARTS, deterministic=deterministic, return_episode_rewards=True
            )
            success = float(np.mean(np.array(rewards) > 0))
            rows.append(
                {"seed": seed, "steps": steps, "way": way, "success": success, "length": float(np.mean(lengths))}
            )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = measure(arguments.seed)
    ways = list(dict.fromkeys(row["way"] for row in rows))
    print("| gradient steps | " + " | ".join(ways) + " |")
    print("| --- |" + " --- |" * len(ways))
    for steps in STEPS:
        cells = [f"{row['success']:.2f} / {row['length']:.0f}" for row in rows if row["steps"] == steps]
        print(f"| {steps} | " + " | ".join(cells) + " |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
