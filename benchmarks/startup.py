"""What commands that compute nothing cost before they print: CPU seconds, beside `import torch` alone.

`bench --help` needs no torch at all. `bench list attacks` imports torch, since attacks are written with it, and little
else. `results` is what each command imports that reads results. Each number is the median of some runs, one after the
other in turn, so that a busy machine slows all alike.
"""

import resource
import subprocess
import sys
from statistics import median

ROUNDS = 5
TORCH = ("-c", "import torch")
COMMANDS = {
    "help": ("-m", "bench.cli", "--help"),
    "run_help": ("-m", "bench.cli", "run", "--help"),
    "list_attacks": ("-m", "bench.cli", "list", "attacks"),
    "list_defenses": ("-m", "bench.cli", "list", "defenses"),
    "results": ("-c", "import reports.compare"),
    "show_rvpt": ("-m", "bench.cli", "show", "rvpt"),
}


def seconds(arguments: tuple[str, ...]) -> float:
    """CPU seconds, of the user and of the system, of Python with some arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = [{name: seconds(args) for name, args in {"torch": TORCH, **COMMANDS}.items()} for _ in range(ROUNDS)]
    took = {name: median(round[name] for round in rounds) for name in rounds[0]}
    print(f"import torch: {took['torch']:.2f} s")
    for name, arguments in COMMANDS.items():
        print(f"bench {' '.join(arguments[2:])}: {took[name]:.2f} s")
        print(f"startup_{name} ratio {took[name] / took['torch']:.2f}")


if __name__ == "__main__":
    main()
