"""Time, memory and multiply-accumulates of pruned models; engines and exported files."""
