"""dsmemvp: fine-tune frozen LLaMA models on image-text tasks with memory-space visual prompts.

    import dsmemvp

    model = dsmemvp.load("runs/demo")
    picture = model.see("cat.png")
    print(model.answer("What colour is it?", picture))

The rooms stand in the order in which a sample passes through them, and imports point only backwards:
recipe -> data -> prompts -> models -> training -> generation -> evaluation -> cli.
"""

__version__ = "0.1.0"


def load(folder, checkpoint=None, **overrides):
    """The trained model of a run's folder, to answer questions with (generation/answers.py): whole, on this process's
    own device. `overrides` are keys of its recipe, such as **{"model.language_model": "/elsewhere/llama-13b"}. Raises
    FileNotFoundError or ValueError that say what is wrong and where."""
    from dsmemvp.generation.answers import load

    return load(folder, checkpoint, **overrides)
