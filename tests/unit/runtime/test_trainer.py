"""BatchTopK training: hand-written gradients, selection, learning, resuming, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_runtime.build import train
from sae_runtime.build.config import TrainConfig
from sae_runtime.build.metrics import reconstruction_figures
from sae_runtime.build.train import Forward, Trainer, geometric_median
from sae_runtime.errors import InputError
from sae_runtime.sae import load_sae, save_sae


@pytest.fixture(scope="module", autouse=True)
def small_runs() -> Iterator[None]:
    """One thread, which is faster for products as small as these, and no checkpoints unless a test wants them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_CHECKPOINT_STEPS", 10**9)
        yield
    torch.set_num_threads(threads)


Run = tuple[Trainer, list[tuple[int, float]]]  # the trainer and its (step, FVU) pairs


def sparse_data(tokens: int, d_in: int = 16, sources: int = 24, active: int = 2, seed: int = 0) -> Tensor:
    """Sums of a few of ``sources`` fixed directions with positive strengths, off centre, bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(sources, d_in, generator=torch.Generator().manual_seed(99))
    directions /= directions.norm(dim=1, keepdim=True)
    chosen = torch.rand(tokens, sources, generator=generator).argsort(dim=1)[:, :active]
    strengths = torch.zeros(tokens, sources).scatter_(1, chosen, 1 + torch.rand(tokens, active, generator=generator))
    return (strengths @ directions * 3 + 1.5).to(torch.bfloat16)


def config(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "width": 48, "k": 3, "batch_tokens": 64, "epochs": 1.0, "learning_rate": 4e-3, "warmup_steps": 10,
        "auxiliary_k": 8, "dead_after_tokens": 1_000,
    }  # fmt: skip
    return TrainConfig(**(defaults | changes))


def varied(trainer: Trainer, seed: int = 5) -> Trainer:
    """Weights as they might be in mid-training: encoder and decoder apart, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter, size in zip(trainer.parameters, (0.1, 0.0, 0.2, 0.2), strict=True):
        parameter += size * torch.randn(parameter.shape, generator=generator)
    return trainer


def batch(trainer: Trainer) -> Tensor:
    return trainer.x[: trainer.config.batch_tokens].float() * trainer.scale


def pre_activations(trainer: Trainer, x: Tensor) -> Tensor:
    return torch.addmm(trainer.b_enc, x - trainer.b_dec, trainer.w_enc.T).relu()


def leaves(trainer: Trainer) -> list[Tensor]:
    return [parameter.clone().requires_grad_() for parameter in trainer.parameters]


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for name, a, b in zip(("w_enc", "w_dec", "b_enc", "b_dec"), found, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=f"gradient of {name} differs")


@pytest.mark.parametrize("nested", [[], [12], [8, 20, 30]])
def test_gradients_equal_automatic_differentiation(nested: list[int]) -> None:
    trainer = varied(Trainer(config(nested_widths=nested), sparse_data(64), seed=0))
    x = batch(trainer)
    found, forward = trainer.gradients(x)

    w_enc, w_dec, b_enc, b_dec = parameters = leaves(trainer)
    pre = ((x - b_dec) @ w_enc.T + b_enc).relu()
    least = pre.flatten().topk(3 * 64).values.min().detach()
    features = pre * (pre >= least)
    variance = (x - x.mean(0)).pow(2).sum()
    widths = [*nested, 48]
    losses = [(features[:, :m] @ w_dec[:m] + b_dec - x).pow(2).sum() / variance for m in widths]
    assert int((features > 0).sum()) == 3 * 64
    assert_all_close(found, list(torch.autograd.grad(sum(losses) / len(widths), parameters)))
    torch.testing.assert_close(forward.error.pow(2).sum() / variance, losses[-1].detach())


def test_auxiliary_gradients_equal_automatic_differentiation() -> None:
    trainer = varied(Trainer(config(auxiliary_k=4), sparse_data(64), seed=0))
    trainer.b_enc += 3.0  # all pre-activations of dead latents are positive: the case in which they can learn
    x = batch(trainer)
    dead, rows = torch.arange(0, 48, 5), 16
    error = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    found = [torch.zeros_like(parameter) for parameter in trainer.parameters]
    trainer._add_auxiliary(found, dead, Forward(x - trainer.b_dec, error, 1.0))

    w_enc, w_dec, b_enc, _ = parameters = leaves(trainer)
    top = pre_activations(trainer, x)[:rows, dead].topk(4, dim=1)
    assert top.values.min() > 0
    kept = torch.zeros(rows, 48).scatter_(1, dead[top.indices], 1.0)
    features = ((x - trainer.b_dec)[:rows] @ w_enc.T + b_enc).relu() * kept
    target = -error[:rows]
    loss = trainer.config.auxiliary_weight * (features @ w_dec - target).pow(2).sum() / target.pow(2).sum()
    assert_all_close(found[:3], list(torch.autograd.grad(loss, parameters[:3])))
    assert torch.all(found[3] == 0)


def test_the_geometric_median_stays_where_most_points_are() -> None:
    points = torch.cat([torch.zeros(60, 3), torch.full((3, 3), 1e6)])
    assert geometric_median(points).norm() < 1.0 < points.mean(0).norm()


def test_a_nested_dictionary_reconstructs_with_its_head_alone() -> None:
    data, unseen = sparse_data(6_400), sparse_data(2_000, seed=2).float()
    heads = {}
    for nested in ((), (24,)):
        trainer = Trainer(config(epochs=4.0, nested_widths=list(nested)), data, seed=0)
        trainer.run(Path("no-such-folder") / "never-written.pt")
        sae = trainer.export(sparse_data(2_000, seed=1).float(), {})
        features = sae.encode(unseen)
        features[:, 24:] = 0
        heads[nested] = (sae.decode(features) - unseen).pow(2).sum() / (unseen - unseen.mean(0)).pow(2).sum()
    assert heads[(24,)] < 0.8 * heads[()]


@pytest.mark.parametrize("search", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5), size=st.integers(1, 6))
def test_selection_keeps_the_largest_positive_entries_over_many_steps(
    search: torch.dtype, seed: int, k: int, size: int
) -> None:
    trainer = Trainer(config(k=k, batch_tokens=size, width=8), sparse_data(32, d_in=4), seed=0)
    trainer.search_dtype = search
    generator = torch.Generator().manual_seed(seed)
    for step in range(4):  # the threshold of one step narrows the search of the next, also when values shrink
        centred = torch.randn(size, 4, generator=generator) * (10.0 if step == 1 else 1.0)
        (active,) = trainer._batch_top_k(centred)
        values, pre = active.matrix.to_dense(), pre_activations(trainer, centred + trainer.b_dec)
        wanted = pre.flatten().topk(min(k * size, pre.numel())).values
        torch.testing.assert_close(values[values > 0].sort().values, wanted[wanted > 0].sort().values)
        torch.testing.assert_close(values[values > 0], pre[values > 0])


@pytest.fixture(scope="module")
def trained() -> Run:
    """A short run on synthetic data, without checkpoints."""
    trainer = Trainer(config(epochs=4.0), sparse_data(6_400), seed=0)
    return trainer, trainer.run(Path("no-such-folder") / "never-written.pt")


def test_training_explains_most_of_the_variance_of_unseen_data(trained: Run) -> None:
    trainer, losses = trained
    sae = trainer.export(sparse_data(2_000, seed=1).float(), {})
    assert reconstruction_figures(sae, sparse_data(2_000, seed=2))["fvu"] < 0.3
    assert losses[-1][1] < 0.3 < losses[0][1]
    assert [step for step, _ in losses] == list(range(25, trainer.steps + 1, 25))


def test_decoder_rows_keep_unit_norm(trained: Run) -> None:
    torch.testing.assert_close(trained[0].w_dec.norm(dim=1), torch.ones(48))


def test_the_exported_sae_has_mean_l0_of_k_on_the_validation_data(trained: Run) -> None:
    validation = sparse_data(2_000, seed=1).float()
    sae = trained[0].export(validation, {"model_name": "tiny"})
    assert (sae.encode(validation) > 0).sum().item() / len(validation) == pytest.approx(3, rel=0.01)
    assert sae.weights["threshold"].unique().numel() == 1
    assert sae.metadata == {"model_name": "tiny"}


def test_the_export_undoes_the_scaling_of_training(trained: Run) -> None:
    trainer, _ = trained
    x = sparse_data(50, seed=3).float()
    sae = trainer.export(x, {})
    scaled = pre_activations(trainer, x * trainer.scale) / trainer.scale
    torch.testing.assert_close(sae.pre_activations(x).relu(), scaled, rtol=1e-4, atol=1e-4)
    features = sae.encode(x)
    decoded = (features * trainer.scale @ trainer.w_dec + trainer.b_dec) / trainer.scale
    torch.testing.assert_close(sae.decode(features), decoded, rtol=1e-4, atol=1e-4)


def test_the_saved_export_in_bfloat16_still_reconstructs(trained: Run, tmp_path: Path) -> None:
    sae = trained[0].export(sparse_data(2_000, seed=1).float(), {})
    save_sae(sae.to(dtype=torch.bfloat16), tmp_path)
    figures = reconstruction_figures(load_sae(tmp_path), sparse_data(2_000, seed=2))
    assert figures["fvu"] < 0.3
    assert figures["l0_mean"] == pytest.approx(3, rel=0.1)


def run(checkpoint: Path, *, stop_after: int | None = None) -> tuple[Trainer, list[tuple[int, float]] | None]:
    trainer = Trainer(config(epochs=3.0, dead_after_tokens=500), sparse_data(1_300), seed=7)
    step: Callable[[Tensor], float] = trainer.train_step

    def interrupted(x: Tensor) -> float:
        if trainer.step == stop_after:
            raise KeyboardInterrupt
        return step(x)

    trainer.train_step = interrupted  # type: ignore[method-assign]
    try:
        return trainer, trainer.run(checkpoint)
    except KeyboardInterrupt:
        return trainer, None


@pytest.mark.parametrize("stop_after", [5, 27, 40, 50])
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_STEPS", 15)  # an epoch has 20 steps
    straight, expected = run(tmp_path / "straight.pt")
    stopped, nothing = run(tmp_path / "resumed.pt", stop_after=stop_after)
    assert nothing is None and stopped.step == stop_after < straight.steps
    resumed, losses = run(tmp_path / "resumed.pt")
    assert losses == expected
    assert (resumed.step, resumed.threshold) == (straight.step, straight.threshold)
    for mine, theirs in zip(resumed.parameters, straight.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(resumed.last_fired, straight.last_fired)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_STEPS", 60)
    straight, expected = run(tmp_path / "run.pt")
    assert straight.steps == 60
    again, losses = run(tmp_path / "run.pt", stop_after=60)
    assert losses == expected
    assert torch.equal(again.w_enc, straight.w_enc)


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a.pt")
    second, _ = run(tmp_path / "b.pt")
    other = Trainer(config(), sparse_data(1_300), seed=8)
    assert torch.equal(first.w_enc, second.w_enc)
    assert not torch.equal(other.w_enc, Trainer(config(), sparse_data(1_300), seed=7).w_enc)


def test_a_corpus_smaller_than_a_batch_is_an_input_error() -> None:
    with pytest.raises(InputError, match="fewer than one batch of 64"):
        Trainer(config(), sparse_data(63), seed=0)
