"""python -m jointsvd.train: what committed rows call it by; now `jointsvd train`."""

from jointsvd.commands.main import run

if __name__ == "__main__":
    run("train")
