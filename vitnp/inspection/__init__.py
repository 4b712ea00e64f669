"""Looking into a model: where it attends, drawn with Pillow."""

from vitnp.inspection.attention import attention_picture, attention_rollout

__all__ = ["attention_picture", "attention_rollout"]
