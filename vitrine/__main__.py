"""`python -m vitrine`: the same as the `vitrine` command; torchrun starts it so."""

from vitrine.cli.main import main

main()
