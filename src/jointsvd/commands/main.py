"""jointsvd COMMAND ...: runs one of the modules beside this one."""

import re
import runpy
import sys

from jointsvd.network.extras import extra
from jointsvd.results.shipped import shipped

COMMANDS = {
    "train": "one run, or with -m a sweep: a network decomposed and fine-tuned, a result row",
    "compress": "a trained network to a budget",
    "evaluate": "accuracy and size of a saved network",
    "export": "a saved network to ONNX, int8 or torch.export",
    "benchmark": "saved networks side by side in several engines",
    "latency": "figure 6 of the paper: milliseconds, dense and decomposed",
    "tables": "tables and pictures of committed rows",
}


def main() -> None:
    """The command named first, with the rest of the arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        lines = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
        print(f"usage: jointsvd COMMAND [--help] [key=value ...]\n\n{lines}")
        raise SystemExit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    run(sys.argv.pop(1))


def run(name: str) -> None:
    """The module of a command as if by python -m, so that DDP and launchers can start it again by its name."""
    for argument in sys.argv[1:]:
        _check_choice(*argument.lstrip("+").partition("=")[::2])
    try:
        with extra("experiments"):
            runpy.run_module(f"jointsvd.commands.{name}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if "in the extra" not in str(error):
            raise
        raise SystemExit(f"jointsvd {name} cannot run: {error}") from error


def _check_choice(group: str, value: str) -> None:
    """Hydra has a traceback for who chooses a number, true, null or a list from a group of configurations."""
    folder = shipped("conf") / group
    wrong = re.fullmatch(r"(?i)null|true|false|nan|[-+]?inf|\[.*|[-+]?[\d._]+(e[-+]?\d+)?", value)
    if wrong and group.isidentifier() and folder.is_dir():
        names = sorted(path.stem for path in folder.glob("[!_]*.yaml"))
        raise SystemExit(f"{group}={value}: choose one of {', '.join(names)}")


if __name__ == "__main__":
    main()
