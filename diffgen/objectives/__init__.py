"""Training objectives: ``objective(network, x0, generator) -> loss``.

* `NoisePrediction`: the usual one, for every process and prediction target.
* `ForwardTime`: the noise of the last of two steps, with random gaps between them.
* `ClosedFormTarget`: the exact posterior mean of the target, over the set or over the batch.

Each draws a `Regression`, ``(x_t, t, target, scale, weight)``, and its loss is the mean over
samples and elements of ``weight |scale network(x_t, t) - target|^2``. Over a finite set, with the
noise drawn anew, all of them have one optimum: ``EmpiricalDenoiser.predictor``.
"""

from diffgen.objectives.closed_form import ClosedFormTarget
from diffgen.objectives.forward_time import ForwardTime
from diffgen.objectives.noise_prediction import NoisePrediction
from diffgen.objectives.regression import Objective, Regression

__all__ = ["ClosedFormTarget", "ForwardTime", "NoisePrediction", "Objective", "Regression"]
