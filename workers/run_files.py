"""Names of what lies in a run's folder. Light: the engine, which lists and serves it, loads no torch."""

from workers.logs import RUN_LOG

CHECKPOINT = "checkpoint.pt"
ARTIFACTS = "artifacts"
WEIGHTS = "student.safetensors"
ONNX = "student.onnx"
INT8 = "student.int8.onnx"
MODEL = "model.zip"
BUNDLE = "bundle.json"
# One flat name, as routes and downloads have it: `tensorboard --logdir` finds it in any folder by "tfevents".
EVENT_FILE = "events.out.tfevents.retort"
MEDIA_TYPES = {
    WEIGHTS: "application/octet-stream",
    ONNX: "application/octet-stream",
    INT8: "application/octet-stream",
    MODEL: "application/zip",
    BUNDLE: "application/json",
    "config.json": "application/json",
    "metrics.jsonl": "application/jsonl",
    "evaluation.json": "application/json",
    "temperatures.json": "application/json",
    "logits.safetensors": "application/octet-stream",
    EVENT_FILE: "application/octet-stream",
    RUN_LOG: "application/jsonl",
    "result.json": "application/json",
}
