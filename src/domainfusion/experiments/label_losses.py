"""What trained classifiers say of every image's label: the cross-entropy of the stored image, from models that were not
trained on it wherever there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from domainfusion.config import AuditConfig, TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import build_split
from domainfusion.devices import choose_dtype
from domainfusion.errors import DataError, UsageError
from domainfusion.experiments.evaluation import load_run
from domainfusion.experiments.runs import build_algorithm, context_of
from domainfusion.files import hash_of, read_json
from domainfusion.interruption import stoppable
from domainfusion.locks import exclusive
from domainfusion.tensors import load_state, save_state
from domainfusion.training.checkpoint import load_model
from domainfusion.training.evaluation import collect_logits
from domainfusion.training.trainer import train


@dataclasses.dataclass(frozen=True)
class ModelVerdict:
    """What one model says of all images of a data set, and which it was trained on."""

    log_probabilities: np.ndarray  # (N, K) float64
    trained_on: np.ndarray  # (N,) bool


@dataclasses.dataclass(frozen=True)
class LabelLosses:
    """What several models say together: of each image those that were not trained on it, or all where there is none."""

    log_probabilities: np.ndarray  # (N, K), the mean over these models
    trained_on: np.ndarray  # (N,) bool, whether every model was trained on the image
    models: int

    def losses(self, labels: np.ndarray) -> np.ndarray:
        """(N,) mean cross-entropy of labels (N,): the larger, the more suspicious."""
        return -self.log_probabilities[np.arange(len(labels)), labels]

    def suggestions(self, labels: np.ndarray) -> np.ndarray:
        """(N,) the most probable label that is not the given one."""
        others = self.log_probabilities.copy()
        others[np.arange(len(labels)), labels] = -np.inf
        return others.argmax(1)


def combine(verdicts: Iterable[ModelVerdict]) -> LabelLosses:
    """The mean, image by image, over the models that were not trained on it; over all where there is none."""
    found = list(verdicts)
    trained = np.stack([verdict.trained_on for verdict in found])  # (M, N)
    by_all = np.all(trained, axis=0)
    used = ~trained | by_all
    values = np.stack([verdict.log_probabilities for verdict in found])
    mean = (values * used[:, :, None]).sum(0) / used.sum(0)[:, None]
    return LabelLosses(mean, np.asarray(by_all), len(found))


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The folders of finished, trained runs at or below `paths`. Raises `UsageError` where one names none."""
    folders: list[Path] = []
    for path in paths:
        below = sorted(found.parent for found in path.rglob("model.safetensors") if _finished(found.parent))
        if not below:
            raise UsageError(f"--run {path}: no finished run with a trained model at or below it")
        folders += [folder for folder in below if folder not in folders]
    return folders


def _finished(folder: Path) -> bool:
    return (folder / "result.json").exists() and (folder / "config.toml").exists()


def losses_of_runs(folders: list[Path], data: str, dataset: MultiDomainDataset, device: torch.device) -> LabelLosses:
    """What finished runs on the data set `data` say of its images (read at each run's own size)."""
    return combine(_verdict_of_run(folder, data, dataset, device) for folder in folders)


def _verdict_of_run(folder: Path, data: str, dataset: MultiDomainDataset, device: torch.device) -> ModelVerdict:
    config, classes, classifier = load_run(folder)
    own = dataset if config.data.size == dataset.size else load_dataset(data, config.data)
    recorded = read_json(folder / "data.json")
    if recorded["fingerprint"] != own.fingerprint:
        raise DataError(
            f"the run in {folder} was trained on other images ({recorded['data']}): which of {data} it has seen "
            "cannot be told; give a run on these"
        )
    if tuple(classes) != dataset.classes:
        raise DataError(f"the run in {folder} has other classes than {data}")
    split = build_split(own, config.data, config.target, config.trial, config.second_target)
    trained = np.zeros(len(own), dtype=bool)
    trained[np.concatenate(list(split.train.values()))] = True
    classifier.to(device).eval()
    return ModelVerdict(_log_probabilities(classifier, own, device, choose_dtype(config.precision, device)), trained)


def _log_probabilities(
    classifier: torch.nn.Module, dataset: MultiDomainDataset, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    dtype = torch.float32 if dtype == torch.float16 else dtype
    logits = collect_logits(classifier, dataset, np.arange(len(dataset)), device=device, dtype=dtype)
    return torch.from_numpy(logits).double().log_softmax(-1).numpy()


def losses_by_trials(
    dataset: MultiDomainDataset, config: AuditConfig, trials: tuple[int, ...], folder: Path, *, steps: int,
    backbone: str, progress: bool = True,
) -> LabelLosses:  # fmt: skip
    """What classifiers (ERM) trained here on all domains, one on each trial's split, say of the images.

    With labels of its own making, such as planted ones, this is the fair comparison: the classifier has learnt from
    the same wrong labels. The strict splits of the trials 0, 2 and 4 leave each image out at least once.

    Args:
        folder: for the models, a folder each; the same call again reads what is there.
    """
    verdicts = []
    for trial in trials:
        options = TrainConfig(
            algorithm="erm", trial=trial, seed=config.seed % 2**31, steps=steps, backbone=backbone, data=config.data,
            device=config.device, precision=config.precision,
        )  # fmt: skip
        name = hash_of([dataset.fingerprint, dataset.labels.tolist(), plain_values(options)])
        verdicts.append(_verdict_of_trial(dataset, options, folder / f"classifier-{name}", progress))
    return combine(verdicts)


def _verdict_of_trial(dataset: MultiDomainDataset, config: TrainConfig, folder: Path, progress: bool) -> ModelVerdict:
    context = context_of(dataset, config, folder, progress)
    trained = np.zeros(len(dataset), dtype=bool)
    trained[np.concatenate(list(context.split.train.values()))] = True
    path = folder / "log_probabilities.safetensors"
    if not path.exists():
        with exclusive(folder), stoppable():
            algorithm = build_algorithm(context)
            train(algorithm)
            load_model(folder, algorithm.classifier)
            algorithm.to(context.device).eval()
            found = _log_probabilities(algorithm.classifier, dataset, context.device, context.dtype)
            save_state(path, {"log_probabilities": torch.from_numpy(found)})
    return ModelVerdict(load_state(path)["log_probabilities"].numpy(), trained)
