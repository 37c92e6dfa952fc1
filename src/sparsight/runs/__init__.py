"""What every long run shares: stored results and resuming, several processes, the sweep over chunks, intervals."""
