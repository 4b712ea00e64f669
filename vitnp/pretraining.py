"""What pre-training by masked patch prediction has of its own; all else is `vitnp.train`'s.

The targets of a batch are the colours of its patches, as augmentation has left them; labels are read by probes alone.
With every checkpoint, and so after each epoch, backbone.safetensors is written: the encoder as an ordinary checkpoint
of a VisionTransformer with a head of zeros, which fine-tuning, probe.py and `load_classifier` read.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vitnp.checkpoint import save_checkpoint
from vitnp.console import say
from vitnp.context import StreamingContext
from vitnp.data import Dataset, normalize
from vitnp.losses import softmax_cross_entropy
from vitnp.masked import MaskedPatchPrediction, patch_colours
from vitnp.options import check_shift, make_config
from vitnp.train import BACKBONE, Trainer

AT_A_TIME = 128  # images of an evaluation


def masked_model(args: argparse.Namespace, images: dict[str, Any]) -> MaskedPatchPrediction:
    """Return the network that pre-training begins with, of the options' sizes and the fields of ViTConfig in `images`.

    Raises ValueError for images that are mixed, as there are no labels to be mixed with them, and for a layer before a
    head that predicts classes.
    """
    for name in ("mixup", "cutmix"):
        if getattr(args, name):
            raise ValueError(f"--{name} is {getattr(args, name)}, which mixes labels, of which there are none")
    if args.representation_size is not None:
        raise ValueError(
            f"--representation-size is {args.representation_size}, for a head that is not here: leave it out"
        )
    config = make_config(args, images)
    check_shift(args, config)
    return MaskedPatchPrediction(config, rng=args.seed)


class MaskedTrainer(Trainer):
    """A run of masked patch prediction: accuracies are shares of corrupted patches whose colour was right."""

    model: MaskedPatchPrediction

    def targets(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the colours of all patches of uint8 images (B, H, W, C), (B, n)."""
        return patch_colours(images, self.model.config.patch_size)

    def evaluate(self, dataset: Dataset) -> tuple[float, float]:
        """Return the mean loss and the share of colours that were right, dropout off, the same patches every time.

        ValueError where they would not be finite, and FloatingPointError where a norm's variance overflows, on a CPU.
        """
        ctx, losses, correct = StreamingContext(rng=self.args.seed), 0.0, 0
        for ctx.first_row in range(0, len(dataset), AT_A_TIME):
            images = dataset.images[ctx.first_row : ctx.first_row + AT_A_TIME]
            try:
                with np.errstate(over="ignore", invalid="ignore"):  # it raises instead
                    loss, right = self._judge(images, ctx)
            except (ValueError, FloatingPointError) as error:
                rows = f"images {ctx.first_row} to {ctx.first_row + len(images) - 1}"
                raise type(error)(f"after step {self.optimizer.steps}, {dataset.name}: {rows}: {error}") from error
            losses, correct = losses + loss, correct + right
        answers = len(dataset) * self.model.answers
        return losses / answers, correct / answers

    def _judge(self, images: NDArray[np.uint8], ctx: StreamingContext) -> tuple[float, int]:
        """Return the sum of the losses, and how many colours were right."""
        model = cast(MaskedPatchPrediction, self.judged)
        logits = model.forward(normalize(images, self.batches.mean, self.batches.std), ctx)
        targets = model.targets(self.targets(images), ctx)
        loss = float(softmax_cross_entropy(logits, targets, batch_size=1)[0])
        if not math.isfinite(loss):  # on a GPU, where nothing has looked at the logits
            raise ValueError(f"the loss is {loss}")
        return loss, int((logits.argmax(-1) == targets).sum())

    stale = True  # backbone.safetensors, which is not known to be of the last step that is saved

    def _write_models(self) -> None:
        super()._write_models()
        self._write_backbone()

    def _save_the_rest(self) -> None:
        """The backbone, too: a run that resumes at its end does not know what is there."""
        super()._save_the_rest()
        if self.stale:
            self._write_backbone()

    def _write_backbone(self) -> None:
        self.stale, classes = True, len(self.batches.dataset.class_names)
        backbone = cast(MaskedPatchPrediction, self.judged).backbone(classes)
        try:
            save_checkpoint(self.folder / BACKBONE, backbone, progress=self._progress())
        except OSError as error:
            raise OSError(error.errno, f"{BACKBONE} could not be written: {error.strerror or error}") from error
        self.stale = False

    def _print_head(self) -> None:
        config = self.model.config
        say(
            f"masked patch prediction: {config.num_classes} colours of {self.model.answers} patches, "
            f"of {config.num_patches} in an image"
        )
        super()._print_head()

    def _draw_attention(self) -> None:
        """Draw nothing: there is no class to look at."""
