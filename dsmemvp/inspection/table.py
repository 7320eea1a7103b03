"""How much the memory's branch weighs beside the feed-forward, and its learned slots beside the visual ones."""

from dataclasses import dataclass

from dsmemvp.inspection.probe import Probe
from dsmemvp.markdown import table


@dataclass(frozen=True)
class LayerShares:
    """Of one layer, over all tokens of a sample."""

    branch_norm: float
    """Mean norm of the branch's output."""
    feed_forward_norm: float
    """Mean norm of the frozen feed-forward's output."""
    visual_output: float
    """Share of the branch's output that the visual slots carry: their part of sum |o|^2, which may be negative or over
    1 if visual and learned slots work against each other. The learned slots carry the rest."""
    visual_activation: float
    """The visual slots' share of sum |a|."""

    @property
    def ratio(self) -> float:
        """The branch's norm over the feed-forward's."""
        return self.branch_norm / self.feed_forward_norm if self.feed_forward_norm else 0.0


def shares(probe: Probe, sample: int = 0) -> list[LayerShares]:
    """Layer by layer."""
    tokens = slice(probe.offsets[sample], probe.offsets[sample + 1])
    found = []
    for layer in range(probe.layers):
        contribution = probe.contribution[layer, tokens].double()
        activation = probe.activation[layer, tokens].double().abs()
        found.append(
            LayerShares(
                probe.branch_norm[layer, tokens].mean().item(),
                probe.feed_forward_norm[layer, tokens].mean().item(),
                _share(contribution[:, : probe.visual].sum().item(), contribution.sum().item()),
                _share(activation[:, : probe.visual].sum().item(), activation.sum().item()),
            )
        )
    return found


def memory_norms(probe: Probe, sample: int = 0) -> dict[str, float]:
    """Mean norms of keys and values, which all layers share, of visual and learned slots (the latter only if there
    are any)."""
    norms = {}
    for name, norm in (("keys", probe.key_norm[sample]), ("values", probe.value_norm[sample])):
        norms[f"visual_{name}"] = norm[: probe.visual].mean().item()
        if norm.numel() > probe.visual:
            norms[f"learned_{name}"] = norm[probe.visual :].mean().item()
    return norms


def lines(probe: Probe, sample: int = 0) -> list[str]:
    """As Markdown."""
    slots = probe.activation.shape[-1]
    norms = memory_norms(probe, sample)
    text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in norms.items())
    found = shares(probe, sample)
    columns = [
        ["layer", *map(str, range(len(found)))],
        ["feed-forward", *(f"{layer.feed_forward_norm:.3f}" for layer in found)],
        ["memory", *(f"{layer.branch_norm:.3f}" for layer in found)],
        ["ratio", *(f"{layer.ratio:.3f}" for layer in found)],
        ["output: visual", *(f"{layer.visual_output:.1%}" for layer in found)],
        ["learned", *(f"{1 - layer.visual_output:.1%}" for layer in found)],
        ["activation: visual", *(f"{layer.visual_activation:.1%}" for layer in found)],
        ["learned", *(f"{1 - layer.visual_activation:.1%}" for layer in found)],
    ]
    return [
        f"{probe.visual} visual and {slots - probe.visual} learned slots; mean norms, shared by all layers: {text}",
        "",
        *table(columns),
    ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
