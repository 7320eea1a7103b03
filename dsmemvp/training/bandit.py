"""KAB-APP, the bandit that looks for a prompt's place (Dynamic_Visual_Prompting, dvp/modules/llama_module.py; facts in
docs/methods.md): a preference alpha for each of L arms, a policy pi = softmax(alpha), and its update from the scores of
S arms that were drawn from pi.

    published   r_i = score_i - mean of all        alpha[a_i] += rate * r_i * pi[a_i] * (1 - pi[a_i])
    corrected   r_i = score_i - mean of the others alpha += rate / S * sum of r_i * (onehot(a_i) - pi)

pi is that of before the update; an arm that was drawn twice is counted twice.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

RuleName = Literal["corrected", "published"]


class Bandit:
    def __init__(self, arms: int, rule: RuleName, rate: float, seed: int):
        self.alpha = torch.zeros(arms)
        """[L] float32"""
        self._rule, self._rate = rule, rate
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def pi(self) -> torch.Tensor:
        """[L] float64"""
        return self.alpha.double().softmax(0)

    @property
    def entropy(self) -> float:
        """In nats; log L at the start."""
        return float(torch.special.entr(self.pi).sum())

    @property
    def best(self) -> int:
        return int(self.alpha.argmax())

    def any_arm(self) -> int:
        """All are equally likely."""
        return int(torch.randint(len(self.alpha), (), generator=self._generator))

    def draw(self, number: int) -> list[int]:
        """Arms drawn from pi, with repetition."""
        return torch.multinomial(self.pi, number, replacement=True, generator=self._generator).tolist()

    def update(self, arms: Sequence[int], scores: Sequence[float]) -> None:
        pi, drawn = self.pi, len(arms)
        mean = math.fsum(scores) / drawn
        alpha = self.alpha.double()
        for arm, score in zip(arms, scores, strict=True):
            if self._rule == "published":
                alpha[arm] += self._rate * (score - mean) * pi[arm] * (1 - pi[arm])
            else:
                reward = (score - mean) * drawn / (drawn - 1)
                alpha -= self._rate / drawn * reward * pi
                alpha[arm] += self._rate / drawn * reward
        self.alpha = alpha.float()

    def state_dict(self) -> dict[str, Any]:
        """As JSON; the generator's state included, so that a search goes on with the same draws."""
        random = base64.b64encode(bytes(self._generator.get_state().tolist())).decode()
        return {"alpha": self.alpha.tolist(), "random": random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha = torch.tensor(state["alpha"], dtype=torch.float32)
        self._generator.set_state(torch.tensor(list(base64.b64decode(state["random"])), dtype=torch.uint8))
