"""jointsvd compress: a trained network in, the network at a budget out, and what was done to each layer."""

import json
from typing import Any

import hydra
from omegaconf import DictConfig

from jointsvd.commands.config import CONF
from jointsvd.commands.sentence import in_one_sentence
from jointsvd.commands.train import start
from jointsvd.experiment.settings import Settings
from jointsvd.network.cost import num_flops
from jointsvd.network.files import read_metadata
from jointsvd.network.parsing import parse_json
from jointsvd.network.plan import Plan
from jointsvd.results.describe import describe
from jointsvd.results.report import print_table
from jointsvd.results.report_html import write_report
from jointsvd.training.devices import is_main_process
from jointsvd.training.models import build_model


@hydra.main(config_path=CONF, config_name="compress", version_base="1.3")
def main(cfg: DictConfig) -> None:
    with in_one_sentence():
        _show(start(cfg))


def _show(settings: Settings) -> None:
    """What was done to each layer, for a network at a budget."""
    if is_main_process() and settings.plan is None:
        file = settings.decomposed_file
        header = read_metadata(file)
        facts = parse_json(header["facts"], f"what {file} says of itself")
        table = describe(facts["report"], file.parent)
        held_out = facts.get("held_out")
        print_table(table, _note(held_out))
        options = {"settings": Plan.from_json(header["plan"]).settings, "held_out": held_out}
        options["untouched"] = facts.get("untouched", [])
        write_report(file.parent / "report.html", facts["report"], totals=_totals(settings), **options)
        print(f"Saved {file}, and report.html, layers.md and layers.png beside it")


def _note(held_out: dict[str, Any] | None) -> str:
    note = "Errors: KL divergence from the dense network's predictions, nats an image."
    if held_out is None:
        return f"{note} Too few calibration images to hold any out."
    return note + (
        " On {images} held-out images the network finds the dense one's class in {top1_agreement:.1f} %; KL {kl:.4f}, "
        "predicted {predicted_kl:.4f}."
    ).format(**held_out)


def _totals(settings: Settings) -> dict[str, Any]:
    """What the dense network and the compressed one cost and reach, before any training."""
    row = json.loads(settings.row_file.read_text())
    files = {"dense_bytes": settings.dense_file, "bytes": settings.decomposed_file}
    parameters, factor = row["num_parameters"], row["compression_factor"]
    dense = parse_json(read_metadata(settings.dense_file)["facts"], f"what {settings.dense_file} says of itself")
    return {
        "dense_parameters": round(parameters * factor),
        "parameters": parameters,
        "dense_flops": num_flops(build_model(**settings.architecture), settings.data.input_size),
        "flops": row["flops"],
        "dense_top1": dense["accuracy"]["top1"],
        "top1": row["raw_top1"],
        **{name: file.stat().st_size for name, file in files.items()},
    }


if __name__ == "__main__":
    main()
