"""What a stage begins with: tensors that earlier stages have trained, and its teacher."""

from dsmemvp.checkpoints.earlier import Earlier
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.training.engine import Trainer


def take_over(trainer: Trainer, origin: Earlier, ranks: Ranks) -> None:
    """The values of `origin` in the place of the initial ones, where it has any. All ranks call it together. Raises
    UserError on all of them."""
    shapes = trainer.shapes()
    found = ranks.together(lambda: origin.values(shapes))
    if found:
        trainer.set(trainer.values() | found)


def teach(trainer: Trainer, origin: Earlier, ranks: Ranks) -> None:
    """The values of the stage's teacher, if it has one. As above; none may be missing."""
    shapes = trainer.teacher_shapes()
    if not shapes:
        return
    needed = f"stage {trainer.stage.name} learns from what an earlier stage trains"
    trainer.teach(ranks.together(lambda: origin.values(shapes, needed)))
