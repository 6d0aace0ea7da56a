"""Our trainer against SAELens' own, on the same activations: ``python -m benchmarks.trainer``.

What is compared:

- ``Sensecheck``: :class:`sae_runtime.build.train.Trainer`, ``run``.
- ``SAELens``: ``BatchTopKTrainingSAE`` in ``SAETrainer.fit``, float32, no logging, and its defaults where nothing is said here
  (neither compiled nor autocast).

Both learn a BatchTopK dictionary with the same width, k, batch size, number of steps, number of threads, release of torch,
Adam with the same learning rate (linear warm-up, linear decay at the end), and the same number of tokens after which
a silent latent counts as dead. Each keeps what makes it what it is: initialisation, auxiliary loss for dead latents,
clipping, decoder norms. The same learning rate does not mean steps of the same size: SAELens begins with decoder rows of
norm 0.1, ours have norm 1, and Adam moves either by the same amount. So compare the quality at each one's best rate
(``--saelens-learning-rate``); the speed does not depend on it. The activations are centred and brought to a mean squared norm of d beforehand, since SAELens
does not centre by itself; ours then finds nothing left to do. Both see the same tokens, in orders of their own.

Time: each arm runs in a process of its own, one after the other; who begins alternates from round to round, and every
round trains both anew with another seed. The time of a step is, for SAELens, from a batch handed out to the next one
asked for, so its activation feed is not measured; for ours from one step's begin to the next one's, feed and checkpoints
included. Of each round the median step counts, without the first ``--skip`` steps; reported is the median over rounds.

Quality: both export a JumpReLU SAE, which is loaded here. Its threshold, one for all latents, is set so that k latents are
active on average on validation tokens (SAELens' running estimate of it has not settled after few steps; the L0 it gives
is shown as ``own L0``). Then the fraction of variance unexplained (FVU) is measured on test tokens. Validation and test
tokens are blocks of 256 from all over the file that nobody trains on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from benchmarks import isolated
from benchmarks.table import show
from sae_runtime.build.config import TrainConfig
from sae_runtime.errors import InputError
from sae_runtime.progress import progress
from sae_runtime.sae import SAE, JumpReLUSAE, load_sae

_ARMS = {"Sensecheck": "benchmarks.inside.train_sensecheck", "SAELens": "benchmarks.inside.train_saelens"}
_BLOCK = 256  # neighbouring tokens that go to the same part
_CHUNK = 4096  # tokens that are worked on at once
_D_IN = 576  # of generated activations, as in the small model


def generated(tokens: int, d_in: int, seed: int) -> Tensor:
    """Structured activations ``[tokens, d_in]``, bfloat16: sparse sums of fixed random directions, and noise.

    d/12 of 8 d directions are drawn per token, common ones more often than rare ones, with strengths of at least 0.5.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(8 * d_in, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    share = 1 / torch.arange(20, 20 + len(directions))
    parts = []
    for first in range(0, tokens, _CHUNK):
        count = min(_CHUNK, tokens - first)
        drawn = torch.multinomial(share.expand(count, -1), max(1, d_in // 12), generator=generator)
        strengths = 0.5 + torch.empty(drawn.shape).exponential_(generator=generator)
        noise = 0.1 * torch.randn(count, d_in, generator=generator)
        sums = embedding_bag(drawn, directions, mode="sum", per_sample_weights=strengths)
        parts.append((sums + noise).to(torch.bfloat16))
    return torch.cat(parts)


def load(path: Path) -> Tensor:
    """The tensor ``residual`` ``[tokens, d_in]`` of a harvest.

    Raises:
        InputError: the file cannot be read or has no such tensor.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("residual")
    except Exception as error:  # safetensors has its own exception class
        raise InputError(
            f"{path} has no activations: {error}.", "Name a shard that `sensecheck build` harvested."
        ) from error


def parts_of(x: Tensor, train: int, held_out: int, batch: int, seed: int) -> dict[str, Tensor]:
    """Disjoint ``train``, ``validation`` and ``test`` tokens of ``x``, centred and scaled by the train part, bfloat16.

    Args:
        x: activations ``[tokens, d_in]``.
        train: tokens wanted to train on; when ``x`` has fewer, whole batches of what it has.
        held_out: tokens of validation and of test each.
        batch: tokens per batch.
        seed: of the choice.

    Raises:
        InputError: ``x`` has less than one batch beside the held-out tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x) // _BLOCK, generator=generator)[:, None] * _BLOCK + torch.arange(_BLOCK)
    rows = order.flatten()
    test, validation, rest = rows[:held_out], rows[held_out : 2 * held_out], rows[2 * held_out :]
    rest = rest[: min(train, len(rest)) // batch * batch]
    if not len(rest):
        raise InputError(f"{len(x)} tokens are too few for a batch and the held-out tokens.", "Lower --held-out.")
    mean, square = torch.zeros(x.shape[1]), 0.0
    for some in rest.split(_CHUNK):
        chunk = x[some].float()
        mean += chunk.sum(0) / len(rest)
        square += chunk.pow(2).sum().item() / len(rest)
    scale = (x.shape[1] / (square - mean.pow(2).sum().item())) ** 0.5
    chosen = {"train": rest, "validation": validation, "test": test}
    return {
        name: torch.cat([((x[some].float() - mean) * scale).to(torch.bfloat16) for some in part.split(_CHUNK)])
        for name, part in chosen.items()
    }


def scores(sae: SAE, parts: dict[str, Tensor], k: int) -> dict[str, float]:
    """FVU on test tokens with ``k`` latents active on average, and the L0 there of that threshold and of the SAE's own."""
    own = _l0(sae, parts["test"])
    pre = torch.cat([sae.pre_activations(chunk) for chunk in parts["validation"].split(_CHUNK)]).flatten()
    threshold = pre.kthvalue(len(pre) - k * len(parts["validation"])).values.clamp(min=0)
    weights = sae.weights | {"threshold": threshold.expand(sae.d_sae)}
    fitted = JumpReLUSAE(weights, apply_b_dec_to_input=sae.apply_b_dec_to_input)
    error = variance = 0.0
    mean = parts["test"].float().mean(0)
    for chunk in parts["test"].float().split(_CHUNK):
        error += (fitted.decode(fitted.encode(chunk)) - chunk).pow(2).sum().item()
        variance += (chunk - mean).pow(2).sum().item()
    return {"fvu": error / variance, "l0": _l0(fitted, parts["test"]), "own_l0": own}


def _l0(sae: SAE, x: Tensor) -> float:
    return sum((sae.encode(chunk) > 0).sum().item() for chunk in x.split(_CHUNK)) / len(x)


def measure(
    parts: dict[str, Tensor], request: dict[str, Any], rounds: int, skip: int, folder: Path
) -> dict[str, list[dict[str, float]]]:
    """Per arm, one result per round."""
    activations = folder / "activations.safetensors"
    save_file(parts, activations)
    pythons = {"Sensecheck": Path(sys.executable), "SAELens": isolated.saelens_python()}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in _ARMS}
    with progress("trainer", rounds * len(_ARMS)) as advance:
        for number in range(rounds):
            for name in list(_ARMS)[:: -1 if number % 2 else 1]:
                advance(0, f"round {number + 1}, {name}")
                place = folder / f"{name}-{number}"
                place.mkdir()
                told = {**request, "activations": str(activations), "seed": request["seed"] + number}
                told["learning_rate"] = request["learning_rate"][name]
                answer = isolated.run(pythons[name], _ARMS[name], place, told, threads=request["threads"])
                if answer["steps"] != request["steps"]:
                    raise isolated.IsolatedError(f"{name} made {answer['steps']} steps of {request['steps']}.")
                step = median(answer["seconds"][skip:])
                results[name].append({"step": step, **scores(load_sae(place / "sae"), parts, request["k"])})
                advance(1)
    return results


def table_of(results: dict[str, list[dict[str, float]]], request: dict[str, Any]) -> list[dict[str, Any]]:
    """Medians over rounds, and speed and FVU as ratios to SAELens."""
    medians = {
        name: {key: median(result[key] for result in rounds) for key in rounds[0]} for name, rounds in results.items()
    }
    base = medians["SAELens"]
    return [
        {
            "trainer": name,
            "learning_rate": request["learning_rate"][name],
            "tokens_per_second": round(request["batch_tokens"] / found["step"]),
            "speed_ratio": round(base["step"] / found["step"], 3),
            "fvu": round(found["fvu"], 5),
            "fvu_ratio": round(found["fvu"] / base["fvu"], 3),
            "l0": round(found["l0"], 1),
            "own_l0": round(found["own_l0"], 1),
            "tokens": request["steps"] * request["batch_tokens"],
            "rounds": len(results[name]),
        }
        for name, found in medians.items()
    ]


def main(
    activations: Annotated[Path | None, typer.Option(help="Safetensors file with `residual`; else generated.")] = None,
    width_factor: Annotated[int, typer.Option(help="Latents per dimension of the activations.")] = 16,
    k: Annotated[int, typer.Option(help="Active latents per token.")] = 92,
    steps: Annotated[int, typer.Option(min=20, help="Steps of each training.")] = 300,
    batch: Annotated[int, typer.Option(help="Tokens per step.")] = 2048,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-4,
    saelens_learning_rate: Annotated[float | None, typer.Option(help="Another one for SAELens.")] = None,
    rounds: Annotated[int, typer.Option(help="Trainings of each.")] = 3,
    skip: Annotated[int, typer.Option(help="First steps, which are not timed.")] = 10,
    threads: Annotated[int, typer.Option(help="Threads of each.")] = 2,
    held_out: Annotated[int, typer.Option(help="Tokens of validation and of test each.")] = 8192,
    d_in: Annotated[int, typer.Option(help="Width of generated activations.")] = _D_IN,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Prepare the activations, train, print."""
    if skip > steps // 2:
        raise InputError(f"Of {steps} steps {skip} are not timed, which leaves too few.", "Lower --skip.")
    tokens = steps * batch
    x = load(activations) if activations else generated(tokens + 2 * held_out + _BLOCK, d_in, seed)
    parts = parts_of(x, tokens, held_out, batch, seed)
    request = {
        "width": width_factor * x.shape[1], "k": k, "steps": steps, "batch_tokens": batch, "threads": threads, "seed": seed,
        "learning_rate": {"Sensecheck": learning_rate, "SAELens": saelens_learning_rate or learning_rate},
        "warmup_steps": max(2, min(50, steps // 10)),
        **{name: TrainConfig.model_fields[name].default for name in ("decay_fraction", "dead_after_tokens")},
    }  # fmt: skip
    del x
    with TemporaryDirectory() as folder:
        results = measure(parts, request, rounds, skip, Path(folder))
    show(table_of(results, request), as_json=as_json)


if __name__ == "__main__":
    with isolated.plain_errors():
        typer.run(main)
