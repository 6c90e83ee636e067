"""python -m jointsvd COMMAND ..."""

from jointsvd.commands.main import main

main()
