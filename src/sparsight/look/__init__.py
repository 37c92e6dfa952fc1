"""Looking into models: kept patches, heat maps, statistics of attention and tokens block by block."""
