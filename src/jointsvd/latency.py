"""python -m jointsvd.latency: what committed rows call it by; now `jointsvd latency`."""

from jointsvd.commands.main import run

if __name__ == "__main__":
    run("latency")
