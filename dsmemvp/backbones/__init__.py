"""Vision tower and language model; weights in and out. Knows nothing of DeepSpeed but for the file that
fills partitioned parameters (`partitioned.py`)."""
