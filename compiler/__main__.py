"""`python -m compiler` is `compile`."""

from compiler.cli.main import main

if __name__ == "__main__":
    main()
