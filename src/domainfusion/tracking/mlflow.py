"""MLflow. MLFLOW_TRACKING_URI says where to, MLFLOW_EXPERIMENT_NAME the experiment (domainfusion, if not set)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainfusion.tracking.base import Beginning

MOST_PARAMETERS = 100  # in a request of MLflow's REST interface
LONGEST_VALUE = 500  # characters of a parameter that every server takes


class MLflow:
    """One MLflow run for a run, by `MlflowClient`, which leaves the caller's active run alone."""

    def begin(self, beginning: Beginning) -> str:
        """Create the run with its options as parameters, or set it running again."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client: Any = MlflowClient()
        self.told = -1
        if beginning.identity:
            self.identity = beginning.identity
            self.client.update_run(self.identity, status="RUNNING")
            history = self.client.get_metric_history(self.identity, "validation_accuracy")
            # A metric is never overwritten: what was sent just before a kill is not sent again.
            self.told = max((metric.step for metric in history), default=-1)
            return self.identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "domainfusion")
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self.client.create_experiment(name)
        tags = {"dataset": beginning.group, "folder": str(beginning.folder)}
        self.identity = str(self.client.create_run(number, tags=tags, run_name=beginning.name).info.run_id)
        options = [Param(key(name), str(value)[:LONGEST_VALUE]) for name, value in beginning.options.items()]
        for start in range(0, len(options), MOST_PARAMETERS):
            self.client.log_batch(self.identity, params=options[start : start + MOST_PARAMETERS])
        return self.identity

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures at their step, in one request."""
        if step > self.told:
            self._log(step, values)

    def picture(self, name: str, step: int, path: Path) -> None:
        """Keep the picture as an artifact, in a folder of its name."""
        self.client.log_artifact(self.identity, str(path), artifact_path=f"pictures/{name}")

    def finish(self, step: int, result: Mapping[str, float]) -> None:
        """Log the result as metrics `result/...`."""
        self._log(step, {f"result/{name}": value for name, value in result.items()})

    def close(self, finished: bool) -> None:
        """Say whether the run is finished or will go on."""
        self.client.set_terminated(self.identity, status="FINISHED" if finished else "KILLED")

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.identity, metrics=[Metric(key(name), float(value), now, step) for name, value in values.items()]
        )


def key(name: str) -> str:
    """A name that MLflow takes: letters, digits, `_ - . / :` and spaces.

    >>> key("validation/it's, a photo")
    'validation/it_s_ a photo'
    """
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)
