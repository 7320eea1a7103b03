"""dsmemvp: fine-tune frozen LLaMA models on image-text tasks with memory-space visual prompts.

The rooms stand in the order in which a sample passes through them, and imports point only backwards:
recipe -> data -> prompts -> models -> training -> evaluation -> cli.
"""

__version__ = "0.1.0"
