"""RL Zoo's scripts with QAM in them: ``python -m sb3_qam.zoo SCRIPT``, with the script's options."""

import runpy
import sys

import sb3_qam.zoo  # noqa: F401

# ``sb3-qam`` has the others
SCRIPTS = ("push_to_hub", "load_from_hub")

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in SCRIPTS:
        sys.exit(f"Usage: python -m sb3_qam.zoo {{{','.join(SCRIPTS)}}} [OPTION...]")
    runpy.run_module(f"rl_zoo3.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
