"""How good the images are: one encoder of features, then one score per file (docs/scores.md).

`register_metric` adds a figure of the user's own. Importing this package imports no torch.
"""

from osmotic.metrics.registry import METRICS, Metric, measure, register_metric

__all__ = ["METRICS", "Metric", "measure", "register_metric"]
