"""``python -m longtake.cli``."""

from longtake.cli import main

main()
