"""Reading what a run wrote."""

from clipdec.training.run_folder import read_history as history  # noqa: F401


def results(metrics):
    """The figures of metrics.json in one flat dict."""
    parts = {k: metrics[k] for k in ("zsl", "gzsl", "seen")} | {f"raw {k}": v for k, v in metrics["raw_clip"].items()}
    return {f"{part} {name}": value for part, figures in parts.items() for name, value in figures.items()}
