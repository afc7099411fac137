"""The LightningModule that trains an encoder."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from v1fast.losses import Loss, PoissonLoss
from v1fast.metrics import SingleTrialCorrelation
from v1fast.models import of_session
from v1fast.training import ranks
from v1fast.training.batches import Share, as_fields, sessions_in, share_batches, take_share
from v1fast.training.schedule import EarlyStopping, Schedule, parameter_groups


class NonFiniteLossError(RuntimeError, ValueError):
    """The loss is NaN or infinite: data or settings are to blame.

    The message says in which session and step, which operand it comes from, and what to do.
    """


class EncodingModule(lightning.LightningModule):
    """Trains an encoder on one session or several, as neuralpredictors and the Sensorium baselines do.

    One optimiser step takes a batch of every session: a forward and a backward pass each, one after the other, so that
    the memory is that of one session; their gradients add up. The loss of a session's batch is
    ``sqrt(trials / batch) * loss + penalty``. After each epoch the objective, the correlation with single
    responses to the validation images (mean over all neurons that have one), decides on learning rate, best weights and
    end, see :class:`EarlyStopping`.

    It works with any ``lightning.Trainer`` and its callbacks. It logs "train_loss", "val_loss" and "val_correlation".

    Where the trainer has several ranks, by ``DDPStrategy``, they share each batch: gradients, losses, objective and
    sampled positions are those of one process with the whole batch. Batch norm has the statistics of each rank's part
    in training, and the mean of its running ones at the end of an epoch. See docs/scale.md.

    Args:
        encoder: e.g. :class:`v1fast.models.FiringRateEncoder`. Called with a batch's images and ``data_key``, and its
            other fields by name; ``regularizer(data_key)``, if it has one, is the penalty.
        loss: of :mod:`v1fast.losses`; default Poisson, summed over trials and neurons (``avg=False``).
        learning_rate: of all parameters, unless ``learning_rates`` names them.
        learning_rates: end of a parameter's name, e.g. "sigma" -> learning rate.
        optimizer: called with the groups of parameters; default ``torch.optim.Adam``.
        schedule: of the learning rate; default :class:`EarlyStopping`.
        gamma_dispersion: factor of a penalty that pulls the positions of a session's neurons together: the readout's
            ``mu_dispersion``, their standard deviation over neurons.
        scale_loss: whether to multiply the loss by sqrt(trials of the session / trials of the batch).
        check_every: after so many steps, losses are looked at (on a GPU this waits for it): a NaN ends training.

    Raises:
        NonFiniteLossError: in training, up to ``check_every`` steps after the first such loss; on every rank.
        ValueError: in training, batches that ranks cannot share; ranks that go on from different checkpoints.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        loss: Loss | None = None,
        learning_rate: float = 0.005,
        learning_rates: Mapping[str, float] | None = None,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        schedule: Schedule | None = None,
        gamma_dispersion: float = 0.0,
        scale_loss: bool = True,
        check_every: int = 10,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = encoder
        self.loss = PoissonLoss(avg=False) if loss is None else loss
        self.learning_rate, self.learning_rates = learning_rate, dict(learning_rates or {})
        self.schedule = EarlyStopping() if schedule is None else schedule
        self.gamma_dispersion, self.scale_loss, self.check_every = gamma_dispersion, scale_loss, check_every
        self._make_optimizer = optimizer
        self.best: dict[str, Tensor] | None = None
        self.epochs: list[dict[str, float]] = []
        self._validation: dict[str, SingleTrialCorrelation] = {}
        self._validation_loss: list[Tensor] = []
        self._restored: dict[str, Any] | None = None
        self._rank, self._ranks = 0, 1
        self._readouts: list[Any] = []
        self._begin_watching()

    # ranks

    def _share(self, loader: Any) -> None:
        """Give this rank its part of the batches of a loader of all sessions."""
        place = self.trainer.distributed_sampler_kwargs  # of the ranks that have images of their own
        self._rank, self._ranks = (0, 1) if place is None else (place["rank"], place["num_replicas"])
        share_batches(sessions_in(loader), self._rank, self._ranks)

    def count_images_from(self, first: int) -> None:
        """Let the readouts draw samples as for images of a larger batch that begin with number ``first``."""
        for readout in self._readouts:
            readout.first_image = first

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        mean: Tensor = self.trainer.strategy.reduce(value, reduce_op="mean")
        return mean

    def _check_ranks(self) -> None:
        """Ranks that disagree about what comes next would wait for each other."""
        own = {
            "finished epochs": self.current_epoch,
            "steps in all": int(self.trainer.estimated_stepping_batches),
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }
        for rank, other in enumerate(ranks.gathered(own)):
            for what, count in other.items():
                if count != own[what]:
                    raise ValueError(
                        f"rank {rank}: want {own[what]} {what}, as on rank {self.trainer.global_rank}, got {count}: "
                        "all ranks have to see the same data and the same folder"
                    )

    def _average_batch_norm(self) -> None:
        """Running statistics are those of the ranks' parts of the batches; keep their mean."""
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                statistics: Any = (module.running_mean, module.running_var)
                for statistic in statistics:
                    statistic.copy_(self._mean_over_ranks(statistic))

    # training

    def configure_optimizers(self) -> Optimizer:
        """See Lightning."""
        return self._make_optimizer(parameter_groups(self.encoder, self.learning_rate, self.learning_rates))

    def on_train_start(self) -> None:
        """Begin the schedule; in a resumed run, go on with random numbers and schedule where they were."""
        self._trials = _trials_of(self.trainer.train_dataloader)
        self._share(self.trainer.train_dataloader)
        if self._ranks > 1:
            from v1fast.distributed.images import that_count_images

            self._readouts = that_count_images(self.encoder)
            self._check_ranks()
        optimizer: Any = self.optimizers()
        self.schedule.begin(optimizer.optimizer, int(self.trainer.estimated_stepping_batches))
        if self._restored is not None:
            self.schedule.load_state_dict(self._restored["schedule"])
            self.trainer.should_stop = self._restored.get("stopped", False)
            _set_random_states(self._restored["random"])
            self._restored = None

    def on_train_epoch_start(self) -> None:
        """Begin a new average of the loss."""
        self._epoch_loss: list[Tensor] = []

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """One optimiser step on a batch of every session, ``{data_key: batch}``."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self._watch_parameters()
        total: list[Tensor] = []
        parallel: Any = self.trainer.strategy.model
        for data_key, fields in batch.items():
            loss = self._loss_of(data_key, fields)
            # The gradients of all sessions are added over ranks at once, with those of the last.
            waits = isinstance(parallel, DistributedDataParallel) and len(total) + 1 < len(batch)
            with parallel.no_sync() if waits else nullcontext():
                self.manual_backward(loss)
            total.append(loss.detach())
        optimizer.step()
        self.schedule.after_step()
        self._epoch_loss.append(torch.stack(total).sum())
        if (batch_idx + 1) % self.check_every == 0:
            self._look()

    def _loss_of(self, data_key: str, batch: Any) -> Tensor:
        inputs, responses, fields, share = self._taken(batch)
        self.count_images_from(share.first)
        rates: Tensor = self.encoder(inputs, data_key=data_key, **fields)
        loss: Tensor = self.loss(rates, responses)
        if self._ranks > 1:  # gradients are averaged over ranks
            loss = loss * self._ranks * (share.trials / share.whole if self.loss.avg else share.trials > 0)
        if self.scale_loss:
            loss = loss * math.sqrt(self._trials_in(data_key) / share.whole)
        self._watch(data_key, {"the images": inputs, "the responses": responses, **fields}, rates, loss)
        regularizer = getattr(self.encoder, "regularizer", None)
        if self.gamma_dispersion:
            loss = loss + self.gamma_dispersion * of_session(self.encoder.readout, data_key).mu_dispersion
        return loss if regularizer is None else loss + regularizer(data_key)

    def _taken(self, batch: Any) -> tuple[Tensor, Tensor, dict[str, Any], Share]:
        inputs, responses, fields = as_fields(batch)
        return inputs, responses, fields, take_share(fields, len(responses), self._rank, self._ranks)

    def _trials_in(self, data_key: str) -> int:
        trials = self._trials.get(data_key)
        if trials is None:
            raise ValueError(f"scale_loss: want a loader of session {data_key} with a dataset that has a length")
        return trials

    # a loss that is not finite

    def _begin_watching(self) -> None:
        self._seen: list[tuple[int, int, str, list[str]]] = []
        self._finite: list[Tensor] = []
        self._sizes: list[Tensor] = []

    def _watch_parameters(self) -> None:
        """Note, on the device, the largest magnitude of each parameter at the beginning of a step."""
        self._sizes.append(torch.stack(torch._foreach_norm(list(self.encoder.parameters()), math.inf)).detach())

    def _watch(self, data_key: str, given: Mapping[str, Any], rates: Tensor, loss: Tensor) -> None:
        """Note, on the device and without waiting for it, which operands of a step are finite."""
        given = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        self._seen.append((self.global_step, len(self._sizes) - 1, data_key, list(given)))
        operands = (*given.values(), rates, loss)
        self._finite.append(torch.stack([operand.detach().isfinite().all() for operand in operands]))

    def _look(self) -> None:
        """Raise NonFiniteLossError, on every rank, if a loss since the last look is not finite."""
        found = self._not_finite()
        if self._ranks > 1:
            found = min((one for one in ranks.gathered(found) if one is not None), default=None)
        if found is not None:
            raise NonFiniteLossError(found[1])

    def _not_finite(self) -> tuple[int, str] | None:
        """The first step since the last look whose loss is not finite, and why."""
        if not self._finite:
            return None
        lengths = [len(finite) for finite in self._finite]
        finite, seen, sizes = torch.cat(self._finite).cpu().split(lengths), self._seen, self._sizes
        self._begin_watching()
        for (step, index, data_key, names), (*given, rates, loss) in zip(seen, map(Tensor.tolist, finite), strict=True):
            if not loss:
                bad = [name for name, is_finite in zip(names, given, strict=True) if not is_finite]
                blame = self._blame(bad, rates, sizes[index])
                return step, f"the loss of session {data_key} is not finite at step {step}: {blame}"
        return None

    def _blame(self, bad: list[str], rates: bool, sizes: Tensor) -> str:
        """What is to blame, of operands that are not finite, finite rates or not, and magnitudes of parameters."""
        for name in ("the images", "the responses"):
            if name in bad:
                return f"{name} hold NaN or infinite values: mend them, or leave these trials out"
        pairs = zip(self.encoder.named_parameters(), sizes.tolist(), strict=True)
        names = [name for (name, _), size in pairs if not math.isfinite(size)]
        if bad and not (names or rates):
            return f"{bad[0]} holds NaN or infinite values: mend them, or leave these trials out"
        others = f" (and {len(names) - 1} others)" if len(names) > 1 else ""
        what = "the rates" if not rates else "the loss of finite rates"
        blame = f"the parameter {names[0]}{others} is not finite" if names else f"{what} overflowed"
        return f"{blame}: the learning rate may be too high: begin anew with a lower one"

    # validation

    def on_validation_epoch_start(self) -> None:
        """Begin new sums."""
        self._validation, self._validation_loss, self._validation_responses = {}, [], 0
        self._share(self.trainer.val_dataloaders)
        if self._ranks > 1:
            self._average_batch_norm()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Add a batch ``{data_key: batch}`` to the sums."""
        for data_key, given in batch.items():
            inputs, responses, fields, share = self._taken(given)
            metric = SingleTrialCorrelation(per_neuron=True, sync_on_compute=False).to(self.device)
            metric = self._validation.setdefault(data_key, metric)
            if not share.trials:
                metric.update(responses[:0].flatten(0, -2), responses[:0].flatten(0, -2))
                continue
            rates = self.encoder(inputs, data_key=data_key, **fields)
            metric.update(responses.flatten(0, -2), rates.flatten(0, -2))  # of videos [B, T, N], each frame
            loss: Tensor = self.loss(rates, responses).detach()
            self._validation_loss.append(loss * responses.numel() if self.loss.avg else loss)
            self._validation_responses += responses.numel()

    def on_validation_epoch_end(self) -> None:
        """Log objective and loss."""
        several = self._ranks > 1
        loss = float(torch.stack(self._validation_loss).sum()) if self._validation_loss else 0.0
        responses = self._validation_responses
        if several:
            sums = ranks.gathered((loss, responses))
            loss, responses = sum(one for one, _ in sums), sum(one for _, one in sums)
            self._validation = {name: ranks.joined(metric) for name, metric in self._validation.items()}
        values = torch.cat([metric.compute() for metric in self._validation.values()])
        self._objective = self.trainer.strategy.broadcast(float(values.nanmean()))
        self._objective_loss = loss / responses
        self.log("val_correlation", self._objective, prog_bar=True, sync_dist=several)
        self.log("val_loss", self._objective_loss, sync_dist=several)

    def on_train_epoch_end(self) -> None:
        """Judge the epoch: keep the best weights, go back to them, lower the rate, or stop."""
        self._look()
        train_loss = float(self._mean_over_ranks(torch.stack(self._epoch_loss).mean()))
        self.log("train_loss", train_loss, sync_dist=self._ranks > 1)
        if self._ranks > 1 and not self._validation:
            self._average_batch_norm()
        optimizer: Any = self.optimizers()
        epoch = {
            "epoch": self.current_epoch + 1,
            "train_loss": train_loss,
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        if self._validation:
            epoch |= {"val_loss": self._objective_loss, "val_correlation": self._objective}
            verdict = self.schedule.after_epoch(self._objective)
            if verdict == "better" or self.best is None:
                self.best = {name: value.detach().clone() for name, value in self.encoder.state_dict().items()}
            elif verdict in ("decay", "stop"):
                self.restore_best()
            self.trainer.should_stop = self.trainer.should_stop or verdict == "stop"
        self.epochs.append(epoch)

    def restore_best(self) -> None:
        """Bring back the weights of the best epoch, if one was judged."""
        if self.best is not None:
            self.encoder.load_state_dict(self.best)

    def on_train_end(self) -> None:
        """End with the best weights."""
        self.restore_best()

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep: best weights, schedule, history, states of the random generators."""
        checkpoint["v1fast"] = {
            "best": self.best,
            "schedule": self.schedule.state_dict(),
            "epochs": self.epochs,
            "stopped": self.trainer.should_stop,
            "random": _random_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back. The generators are set when training starts."""
        kept = checkpoint["v1fast"]
        self.best, self.epochs, self._restored = kept["best"], list(kept["epochs"]), kept


def _trials_of(loader: Any) -> dict[str, int]:
    """Trials of each session, as far as the loaders tell."""
    datasets: dict[str, Any] = {name: getattr(one, "dataset", None) for name, one in sessions_in(loader).items()}
    return {data_key: len(dataset) for data_key, dataset in datasets.items() if hasattr(dataset, "__len__")}


def _random_states() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  (the global generator)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002  (the global generator)
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
