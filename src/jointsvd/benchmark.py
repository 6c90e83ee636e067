"""python -m jointsvd.benchmark: what committed rows call it by; now `jointsvd benchmark`."""

from jointsvd.commands.main import run

if __name__ == "__main__":
    run("benchmark")
