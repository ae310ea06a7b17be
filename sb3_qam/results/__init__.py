"""What runs of RL Zoo have come to: read, compared, drawn."""
