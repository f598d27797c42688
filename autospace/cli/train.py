"""``autospace train``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.accelerator import Accelerator
from autospace.cli.common import FILE, OUTPUT, Session, common_options, data_options

__all__ = ["command"]


@click.command("train")
@click.option("--arch", type=FILE, required=True, metavar="ARCH", help="From 'search'.")
@data_options
@click.option("--epochs", type=int, default=40, show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True, help="Of a step.")
@click.option("--learning-rate", type=float, default=0.1, show_default=True)
@click.option("--holdout", is_flag=True, help="Keep the validation split out of the training.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    default=Path("checkpoint.safetensors"),
    show_default=True,
    metavar="CHECKPOINT",
)
@common_options
def command(
    session: Session,
    arch: Path,
    data: str,
    data_root: Path | None,
    resolution: int | None,
    accelerator: Accelerator,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    holdout: bool,
    output: Path,
) -> None:
    """Train an architecture.

    Trains on the training and validation splits and quotes the accuracy on the test split, which
    neither search nor training has seen. The input size and the classifier follow the data.

    \b
    Example:
      autospace train --arch architecture.json --data fashion-mnist --epochs 10
    """
    from autospace import steps as step
    from autospace.data import check_data_name
    from autospace.files import check_writable
    from autospace.space import Architecture
    from autospace.train_options import TrainOptions

    check_data_name(data)
    check_writable(output)
    options = TrainOptions(
        epochs=epochs, batch=batch_size, learning_rate=learning_rate, holdout=holdout
    )
    options.check()
    session.detail(f"options: {options}")
    architecture = Architecture.load(arch)
    images = step.load_proxy(data, data_root, architecture.skeleton, resolution, accelerator)
    session.note(f"training on: {images.description}")
    state = output.with_name(f"{output.name}.state")
    with session.progress("training") as progress:
        trained = step.train(
            architecture,
            data=images,
            options=options,
            seed=session.seed,
            state=state,
            progress=progress,
        )
    trained.save(output)
    state.unlink(missing_ok=True)
    session.say(
        f"{output}: test accuracy {trained.accuracy:.2%} on {images.description}; "
        f"{trained.architecture.params / 1e6:.4g}M parameters, "
        f"{trained.architecture.madds / 1e6:.4g}M multiply-adds at "
        f"{images.resolution}×{images.resolution}"
    )
    session.result(
        {
            "checkpoint": str(output),
            "accuracy": trained.accuracy,
            "params": trained.architecture.params,
            "madds": trained.architecture.madds,
            **trained.meta,
        }
    )
