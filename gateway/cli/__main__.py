"""`python -m gateway.cli` is `mtok`, for processes that must not depend on what is on PATH."""

from . import main

if __name__ == "__main__":
    main()
