"""Where the stages leave what they make, as dvc.yaml declares it."""

from pathlib import Path

KERNEL_CHECK = Path("metrics/kernel_check.json")
KERNEL_CURVES = Path("plots/kernel_check.csv")
KERNEL_PICTURE = Path("plots/kernel_check.png")

WEIGHTS = Path("models/lenet5.pth")
HISTORY = Path("plots/history.csv")
TRAINING = Path("metrics/training.json")

EVALUATION = Path("metrics/evaluation.json")
PREDICTIONS = Path("plots/predictions.csv")
CURVES = Path("plots/curves.png")
CONFUSION = Path("plots/confusion.png")
CLASS_SCORES = Path("plots/classes.png")
MISTAKES = Path("plots/mistakes.png")
RELIABILITY = Path("plots/reliability.png")
FEATURE_MAPS = Path("plots/feature_maps.png")
SAMPLES = Path("plots/samples.png")
CARD = Path("reports/model_card.md")
CARD_PAGE = Path("reports/model_card.html")

ONNX = Path("models/lenet5.onnx")
PROGRAM = Path("models/lenet5.pt2")
EXPORT = Path("metrics/export.json")

REGISTRATION = Path("metrics/registration.json")
HEADLINE = Path("metrics/headline.json")
