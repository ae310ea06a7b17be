"""What runs of RL Zoo have reached: read, compared, drawn."""
