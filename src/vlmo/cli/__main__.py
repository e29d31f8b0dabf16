"""`python -m vlmo.cli`, for torchrun."""

from vlmo.cli import main

if __name__ == "__main__":
    main()
