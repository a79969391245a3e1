"""A learner of your own: a likelihood ratio with a KL penalty, in 30 lines with its settings."""

import os
from dataclasses import dataclass

import rlpg
from rlpg import estimators


@dataclass(frozen=True)
class PenaltySettings(rlpg.LearnerSettings):
    kl_coef: float = 1.0
    """weight of the KL penalty"""
    num_epochs: int = 4
    """passes over a rollout"""


class KLPenalty(rlpg.Learner):
    Settings = PenaltySettings

    def surrogate(self, batch, log_prob):  # a scalar to maximize
        gain = estimators.likelihood_ratio(
            log_prob, batch.log_prob, batch.advantage, weight=batch.weight
        )
        log_ratio = log_prob - batch.log_prob
        return gain - self.settings.kl_coef * batch.mean(log_ratio.expm1() - log_ratio)

    def improve(self, batch, lr_scale):
        for _ in range(self.settings.num_epochs):
            for part in batch.minibatches(4, self.generator):
                objective, _, _ = self.objective(part)
                norm = self.optimizer.step(self.optimizer.gradient(objective), lr_scale)
        return {"train/approx_kl": self.approx_kl(batch), "gradient/norm": norm}


if __name__ == "__main__":
    run = rlpg.train(
        "CartPole-v1",
        agent=KLPenalty,
        total_steps=int(os.environ.get("STEPS", "50_000")),
        overrides={"learner.kl_coef": 0.5, "learner.learning_rate": 1e-3},
    )
    print(run.evaluation)
