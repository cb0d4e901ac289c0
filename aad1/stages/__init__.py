"""What each stage trains: its players, their turns and one loss for each."""
