"""Train stage: BatchTopK dictionary learning whose cost follows k, not the width; exported as JumpReLU.

BatchTopK (Bussmann et al. 2024) keeps the ``k * batch`` largest activations of a batch. Only those enter the decoder,
so decoding and all weight gradients are sparse products; the one dense product left is the encoder's forward pass. It
only says which activations may be among the largest, so it is done in bfloat16 where the hardware has units for it; the
activations themselves, and which of them are kept, are computed in float32.
Gradients are written out by hand, since automatic differentiation would make them dense. Dead latents learn to
reconstruct the residual error (auxiliary loss, Gao et al. 2024). At the end one threshold per latent, the same for
all, gives the wanted mean L0 on validation text: a JumpReLU SAE.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sae_runtime.build.beginning import data_directions, encoder_scale
from sae_runtime.build.config import TrainConfig
from sae_runtime.build.harvest import load_residual
from sae_runtime.build.stages import Stage, read_tensors, write_tensors
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.errors import InputError
from sae_runtime.progress import progress
from sae_runtime.sae import SAE, JumpReLUSAE, load_sae, save_sae

_CHECKPOINT_STEPS = 200
_THRESHOLD_TOKENS = 16_000  # validation tokens that set the exported threshold
_MARGIN = 0.9  # activations above this share of the last step's threshold are candidates; bfloat16 errs by 0.004


@dataclass(frozen=True)
class Training:
    """A task: one training run, the arguments of :func:`run_train`."""

    stage: Stage
    harvest: Stage
    config: TrainConfig
    seed: int
    sae_metadata: dict[str, str]
    size: int = 1

    @property
    def path(self) -> Path:
        """What tells that it has ended."""
        return self.stage.folder / "done.json"


class Train:
    """The job of training; a run that was interrupted goes on from its checkpoint, whoever takes it up."""

    @contextmanager
    def open(self) -> Iterator[Callable[[Training], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        yield lambda run: run_train(run.stage, run.harvest, run.config, run.seed, run.sae_metadata)


def run_train(stage: Stage, harvest: Stage, config: TrainConfig, seed: int, sae_metadata: dict[str, str]) -> None:
    """Train on the harvest's train split and save the SAE (bfloat16) in the stage's folder."""
    x = load_residual(harvest, "train")["residual"]
    trainer = Trainer(config, x, seed=seed)
    losses = trainer.run(stage.folder / "checkpoint.safetensors")
    validation = threshold_sample(load_residual(harvest, "validation")["residual"])
    save_sae(trainer.export(validation, sae_metadata).to(dtype=torch.bfloat16), stage.folder)
    (stage.folder / "checkpoint.safetensors").unlink(missing_ok=True)
    stage.finish({"tokens_trained": trainer.step * config.batch_tokens, "loss": losses})


def threshold_sample(validation: Tensor) -> Tensor:
    """The part of a validation split ``[n, d_in]`` that sets the exported threshold, as float32.

    From all over the split: shards are sorted by length, and short texts fire fewer latents.
    """
    return validation[:: max(1, len(validation) // _THRESHOLD_TOKENS)].float()


def load_trained(stage: Stage) -> SAE:
    """The stage's SAE with its shipped (bfloat16-rounded) weights, as float32."""
    return load_sae(stage.folder)


@dataclass
class _Active:
    """The kept activations of a batch as a sparse matrix ``[batch, width]`` in compressed rows.

    Attributes:
        matrix: the activations.
        rows, columns: int64, their places in row order.
        order: permutation that sorts the places by column.
    """

    matrix: Tensor
    rows: Tensor
    columns: Tensor
    order: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> _Active:
        """From places in row order."""
        narrow = np.uint16 if shape[1] <= 65_536 else np.int32  # numpy sorts 16-bit keys by radix, in linear time
        order = torch.from_numpy(np.argsort(columns.numpy().astype(narrow), kind="stable"))
        return cls(_csr(rows, columns, values, shape), rows, columns, order)

    def transposed(self, values: Tensor) -> Tensor:
        """Sparse ``[width, batch]`` with ``values`` (given in row order) at the same places."""
        batch, width = self.matrix.shape
        return _csr(self.columns[self.order], self.rows[self.order], values[self.order], (width, batch))

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """``left @ right.T`` at these places alone, in row order."""
        return _products(self.rows, self.columns, left, right)


@dataclass(frozen=True)
class Forward:
    """What a step computed: centred inputs and the reconstruction's error ``[batch, d_in]``, and the batch's variance."""

    centred: Tensor
    error: Tensor
    variance: float


def geometric_median(x: Tensor, steps: int = 50) -> Tensor:
    """The point ``[d]`` with the least sum of distances to the rows of ``x`` ``[n, d]`` (Weiszfeld 1937)."""
    point = x.mean(0)
    for _ in range(steps):
        weights = 1 / (x - point).norm(dim=1).clamp_min(1e-6)
        point = (weights @ x) / weights.sum()
    return point


def _products(rows: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T`` at some places alone, given in row order; ``left`` ``[batch, d]``, ``right`` ``[width, d]``."""
    places = _csr(rows, columns, torch.zeros(len(rows)), (len(left), len(right)))
    return torch.sparse.sampled_addmm(places, left, right.T).values()


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class Trainer:
    """Trains one SAE on activations held in memory.

    Args:
        config: hyper-parameters.
        x: activations ``[tokens, d_in]``, bfloat16.
        seed: of initialisation and of the order of tokens.

    Raises:
        InputError: ``x`` holds less than one batch.
    """

    def __init__(self, config: TrainConfig, x: Tensor, *, seed: int) -> None:
        if len(x) < config.batch_tokens:
            raise InputError(
                f"The corpus gives {len(x)} training tokens, fewer than one batch of {config.batch_tokens}.",
                "Add text, or lower train.batch_tokens.",
            )
        self.config = config
        self.x = x
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        sample = x[torch.randperm(len(x), generator=generator)[:50_000]].float()
        d_in = x.shape[1]
        # Inputs are scaled to a mean squared norm of d_in while training; the scale is folded away on export.
        self.scale = (d_in / (sample - sample.mean(0)).pow(2).sum(1).mean()).sqrt().item()
        centre = sample.mean(0) if config.bias == "mean" else geometric_median(sample)
        self.b_dec = centre * self.scale
        centred = sample * self.scale - self.b_dec
        if config.directions == "data":
            self.w_dec = data_directions(centred, config.width, generator)
        else:
            self.w_dec = torch.randn(config.width, d_in, generator=generator)
            self.w_dec /= self.w_dec.norm(dim=1, keepdim=True)
        # Transposed, [width, d_in], like the decoder: rows are gathered and updated.
        self.w_enc = self.w_dec * encoder_scale(centred, self.w_dec, config.k)
        self.b_enc = torch.zeros(config.width)
        self.parameters = [self.w_enc, self.w_dec, self.b_enc, self.b_dec]
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
        self.search_dtype = compute_dtype()
        self.last_fired = torch.zeros(config.width, dtype=torch.int64)
        self.threshold = 0.0
        self.step = 0
        self.steps = int(len(x) * config.epochs) // config.batch_tokens

    def run(self, checkpoint: Path) -> list[tuple[int, float]]:
        """Train to the end, resuming from ``checkpoint``; returns (step, FVU of the batch) every 25 steps."""
        losses = self._resume(checkpoint)
        size = self.config.batch_tokens
        per_epoch = len(self.x) // size
        order, order_epoch = torch.empty(0), -1
        began, first = time.monotonic(), self.step
        with progress("train", self.steps, done=self.step) as advance, torch.no_grad():
            while self.step < self.steps:
                epoch, place = divmod(self.step, per_epoch)
                if epoch != order_epoch:
                    generator = torch.Generator().manual_seed(self.seed + 1 + epoch)
                    order, order_epoch = torch.randperm(len(self.x), generator=generator), epoch
                fvu = self.train_step(self.x[order[place * size : (place + 1) * size]].float() * self.scale)
                if self.step % 25 == 0:
                    losses.append((self.step, round(fvu, 4)))
                if self.step % _CHECKPOINT_STEPS == 0:
                    self._save(checkpoint, losses)
                speed = (self.step - first) * size / (time.monotonic() - began)
                advance(1, f"FVU {fvu:.3f}, dead {self._dead().sum().item()}, {speed:.0f} tokens/s")
        return losses

    def train_step(self, x: Tensor) -> float:
        """One update on a batch of scaled activations ``[batch, d_in]``; returns the batch's FVU."""
        self.step += 1
        grads, forward = self.gradients(x)
        dead = self._dead().nonzero().squeeze(1)
        if len(dead):
            self._add_auxiliary(grads, dead, forward)
        self._update(grads)
        return forward.error.pow(2).sum().item() / forward.variance

    def gradients(self, x: Tensor) -> tuple[list[Tensor], Forward]:
        """Gradients of ``w_enc, w_dec, b_enc, b_dec`` for the FVU of a batch (mean over nested widths, if there are)."""
        centred = x - self.b_dec
        groups = self._batch_top_k(centred)
        variance = (x - x.mean(0)).pow(2).sum().item()
        error, upstream = -centred, []
        for active in groups:
            error = error + active.matrix @ self.w_dec
            upstream.append(error * (2 / variance / len(groups)))
        # A latent takes part in the reconstructions of its own group and of all wider ones.
        grads: list[Tensor] = []
        total = torch.zeros_like(x)
        for active, grad in zip(reversed(groups), reversed(upstream), strict=True):
            total = total + grad
            more = self._weight_gradients(active, total, centred)
            grads = [a.add_(b) for a, b in zip(grads, more, strict=True)] if grads else more
            self.last_fired[active.columns] = self.step
        grads.append(total.sum(0) - grads[2] @ self.w_enc)
        return grads, Forward(centred, error, variance)

    def export(self, validation: Tensor, metadata: dict[str, str]) -> JumpReLUSAE:
        """The JumpReLU SAE in residual-stream units, its threshold set so that mean L0 on ``validation`` is k."""
        pre = torch.addmm(self.b_enc, validation * self.scale - self.b_dec, self.w_enc.T)
        threshold = pre.flatten().kthvalue(pre.numel() - self.config.k * len(pre)).values
        return JumpReLUSAE(
            {
                "W_enc": self.w_enc.T.contiguous(),
                "W_dec": self.w_dec,
                "b_enc": self.b_enc / self.scale,
                "b_dec": self.b_dec / self.scale,
                "threshold": torch.full((self.config.width,), threshold.item() / self.scale),
            },
            dict(metadata),
        )

    def _batch_top_k(self, centred: Tensor) -> list[_Active]:
        """The ``k * batch`` largest positive activations of centred inputs, by group of nested latents (one group
        without nesting)."""
        wanted = self.config.k * len(centred)
        rows, columns, values = self._candidates(centred)
        if len(values) < wanted:
            rows, columns, values = self._candidates(centred, everywhere=True)
        if len(values) > wanted:
            cut = values.kthvalue(len(values) - wanted).values
            keep = values > cut
            rows, columns, values = rows[keep], columns[keep], values[keep]
            self.threshold = cut.item()
        shape = (len(centred), self.config.width)
        groups = []
        for low, high in pairwise([0, *self.config.nested_widths, self.config.width]):
            inside = (columns >= low) & (columns < high) if self.config.nested_widths else slice(None)
            groups.append(_Active.of(rows[inside], columns[inside], values[inside], shape))
        return groups

    def _candidates(self, centred: Tensor, *, everywhere: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and value of all activations above the margin (``everywhere``: above zero), in row order.

        The last step's threshold narrows the search to a few of the ``batch * width`` places.
        """
        search = torch.float32 if everywhere or not self.threshold else self.search_dtype
        least = 0.0 if everywhere else _MARGIN * self.threshold
        encoder = (parameter.to(search) for parameter in (self.w_enc, self.b_enc))
        pre = torch.nn.functional.linear(centred.to(search), *encoder).flatten()
        found = torch.from_numpy(np.flatnonzero((pre > least).numpy()))  # three times as fast as torch's nonzero
        rows, columns = found // self.config.width, found % self.config.width
        if search == torch.float32:
            return rows, columns, pre[found]
        values = _products(rows, columns, centred, self.w_enc) + self.b_enc[columns]
        # One that bfloat16 had rounded up across zero would be no activation.
        return rows, columns, values.clamp_min_(torch.finfo(torch.float32).tiny)

    def _weight_gradients(self, active: _Active, grad: Tensor, centred: Tensor) -> list[Tensor]:
        """Gradients of ``w_enc, w_dec, b_enc`` for the error gradient ``grad`` ``[batch, d_in]``."""
        upstream = active.products(grad, self.w_dec)
        w_enc = active.transposed(upstream) @ centred
        w_dec = active.transposed(active.matrix.values()) @ grad
        b_enc = torch.zeros(self.config.width).index_add_(0, active.columns, upstream)
        return [w_enc, w_dec, b_enc]

    def _add_auxiliary(self, grads: list[Tensor], dead: Tensor, forward: Forward) -> None:
        """Dead latents reconstruct the error of a quarter of the batch; adds to ``grads`` in place.

        The gradient passes straight through the ReLU, so that a latent which is zero on the whole batch still moves.
        """
        rows = max(1, len(forward.centred) // 4)
        pre = torch.addmm(self.b_enc[dead], forward.centred[:rows], self.w_enc[dead].T).relu_()
        top = pre.topk(min(self.config.auxiliary_k, len(dead)), dim=1)
        places = torch.arange(rows).repeat_interleave(top.values.shape[1])
        columns = dead[top.indices].sort(dim=1)
        values = top.values.gather(1, columns.indices).flatten()
        active = _Active.of(places, columns.values.flatten(), values, (rows, self.config.width))
        target = -forward.error[:rows]
        guess = active.matrix @ self.w_dec
        scale = self.config.auxiliary_weight * 2 / max(target.pow(2).sum().item(), 1e-9)
        extra = self._weight_gradients(active, (guess - target) * scale, forward.centred[:rows])
        for grad, more in zip(grads[:3], extra, strict=True):
            grad += more

    def _update(self, grads: list[Tensor]) -> None:
        # The decoder's rows have unit norm; the part of the gradient along a row would only be undone.
        grads[1] -= (grads[1] * self.w_dec).sum(1, keepdim=True) * self.w_dec
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * self._schedule()
        self.optimiser.step()
        self.w_dec /= self.w_dec.norm(dim=1, keepdim=True)

    def _schedule(self) -> float:
        warm = min(1.0, self.step / self.config.warmup_steps)
        decay_steps = max(1.0, self.steps * self.config.decay_fraction)
        return warm * max(0.0, min(1.0, (self.steps + 1 - self.step) / decay_steps))

    def _dead(self) -> Tensor:
        return (self.step - self.last_fired) * self.config.batch_tokens > self.config.dead_after_tokens

    def _save(self, path: Path, losses: list[tuple[int, float]]) -> None:
        tensors = {"last_fired": self.last_fired}
        for number, parameter in enumerate(self.parameters):
            tensors[f"parameter.{number}"] = parameter
            for name, value in self.optimiser.state[parameter].items():
                tensors[f"{name}.{number}"] = value
        state = {"step": self.step, "threshold": self.threshold, "losses": losses}
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def _resume(self, path: Path) -> list[tuple[int, float]]:
        if not path.exists():
            return []
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        for number, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"parameter.{number}"])
            for name in ("step", "exp_avg", "exp_avg_sq"):
                self.optimiser.state[parameter][name] = tensors[f"{name}.{number}"]
        self.last_fired, self.threshold, self.step = tensors["last_fired"], state["threshold"], state["step"]
        return [(step, fvu) for step, fvu in state["losses"]]
