"""Looking into a model: where it attends, what it predicts and mistakes, drawn with Pillow."""

from vitnp.inspection.attention import attention_picture, attention_rollout
from vitnp.inspection.pictures import check_new_picture, mistakes_picture, prediction_picture

__all__ = ["attention_picture", "attention_rollout", "check_new_picture", "mistakes_picture", "prediction_picture"]
