"""Recipe + cluster -> memory per GPU, bytes per step and time per step of every way to shard; no weights, no GPU and no
DeepSpeed are needed.

One way through it: `trace` runs the model on fake tensors under a `meter`, `gathers` works out what ZeRO-3 makes of the
order of its modules, `memory` and `traffic` count bytes, `duration` estimates seconds, `plan` compares, `table` prints.
"""
