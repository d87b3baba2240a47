"""What optimizers do, written to TensorBoard, Weights & Biases and the like by plain hooks."""

from steprule.step_log.step_log import StepLog as StepLog
from steprule.step_log.step_log import log_to as log_to
