"""``python -m sb3_qam`` is ``sb3-qam``."""

from sb3_qam.cli import app

app(prog_name="sb3-qam")
